"""The commands that steer a cycle, against a real API server and a real operator on simulated nodes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import ExitCode
from medgr2_operator.cli import connection
from medgr2_operator.cli.cluster_options import WhereOptions
from medgr2_operator.cli.connection import Cluster
from medgr2_operator.cli.errors import CommandError
from medgr2_operator.cli.lifecycle import approve
from medgr2_operator.kube.client import Resource
from medgr2_operator.kube.kubeconfig import connect
from medgr2_operator.render.render_context import RenderSettings
from medgr2_operator.render.volume_reader_pod import reader_pod
from tests.cluster import tools
from tests.cluster.commands import Medgr2
from tests.cluster.fixtures import eventually
from tests.cluster.kwok import behaviour
from tests.support.kwok_env import KwokEnv

#: Takes its time to write a checkpoint: who does not wait for it sees a pod.
FOREVER = behaviour(attempt=1, run="forever", term_delay_ms=4000, term_exit_code=85)


@pytest.fixture
def medgr2(env: KwokEnv) -> Medgr2:
    return Medgr2(env)


def test_suspend_and_resume(env: KwokEnv, medgr2: Medgr2) -> None:
    env.operator.start()
    env.apply(annotations_of={"prepare": FOREVER})
    env.running("prepare", 0)
    output = medgr2("suspend", "loop", "--wait")
    assert output.splitlines() == [
        "loop: suspended; running stages write a checkpoint and stop",
        "loop: everything has stopped",
    ]
    assert env.live_pods() == []
    assert env.condition("Suspended")["status"] == "True"
    assert medgr2("suspend", "loop") == "loop was suspended already\n"
    assert medgr2("resume", "loop", "--wait") == "loop: resumed\n"
    assert env.condition("Suspended")["status"] == "False"
    assert medgr2("resume", "loop") == "loop was not suspended\n"
    env.wait("Complete")
    refused = medgr2.run("suspend", "loop")
    assert (refused.code, refused.err) == (2, "loop is Complete: nothing is left to suspend\n")


def test_restart(env: KwokEnv, medgr2: Medgr2) -> None:
    env.operator.start()
    env.apply()
    env.wait("Complete")
    before = set(env.created_jobs())
    output = medgr2("restart", "loop", "grpo@1", "--wait")
    assert output == "loop: grpo@1 and what depends on it run again, 4 stages in all (token r1)\n"
    env.wait("Complete")
    again = {name.split("-i001-")[1].split("-a")[0] for name in set(env.created_jobs()) - before}
    assert again == {"grpo", "evaluategrpo", "measure", "report"}
    assert "(token r2)" in medgr2("restart", "loop", "report@1", "--wait")
    for stage, output in (
        ("grop@1", "no stage 'grop' (did you mean grpo?)"),
        ("grpo", "say of which iteration, such as grpo@2"),
        ("grpo@2", "grpo@2: loop has 1 iterations"),
        ("prepare@1", "loop has no stage prepare@1; of iteration 1 it has generate@1, score@1"),
    ):
        refused = medgr2.run("restart", "loop", stage)
        assert refused.code == 2
        assert output in refused.err
        assert refused.err.count("\n") == 1
    assert env.cycle()["spec"]["restartFrom"] == {"iteration": 1, "stage": "report", "token": "r2"}


def test_approve(env: KwokEnv, medgr2: Medgr2) -> None:
    env.operator.start()
    env.apply(pauseBefore=["generate", "sft"], annotations_of={"score": behaviour(run="forever")})
    early = medgr2.run("approve", "loop", "sft")
    assert (early.code, early.err) == (
        2, "loop: no sft waits for approval now; to approve it beforehand say sft@N\n"
    )  # fmt: skip
    eventually(lambda: env.condition("Progressing").get("reason") == "AwaitingApproval", "it waits")
    assert medgr2("approve", "loop", "--wait") == "loop: generate@1 may go on\n"
    env.running("score")
    assert medgr2("approve", "loop", "generate@1") == "loop: generate@1 was approved already\n"
    assert medgr2("approve", "loop", "sft@1") == "loop: sft@1 may go on\n"
    never = medgr2.run("approve", "loop", "grpo@1")
    assert (never.code, never.err) == (
        2, "loop does not wait before grpo: spec.pauseBefore has generate, sft\n"
    )  # fmt: skip
    env.finish("score")
    env.wait("Complete")
    assert medgr2.run("approve", "loop").err == "loop: nothing waits for approval\n"


def test_approvals_at_the_same_moment_are_all_kept(env: KwokEnv) -> None:
    """Twelve people approve a stage each while somebody else edits the spec, too."""
    env.apply(pauseBefore=["sft", "grpo"], iterations=6)
    stop = threading.Event()

    def edit() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            env.patch({"metadata": {"labels": {"edit": str(number)}}})

    async def all_at_once() -> list[int]:
        async with connect(str(env.control_plane.kubeconfig)) as (client, _):
            at = Cluster(client, env.namespace)
            return await asyncio.gather(
                *(approve(at, "loop", f"{stage}@{t}", 0) for stage in ("sft", "grpo") for t in range(1, 7))
            )

    editor = threading.Thread(target=edit)
    editor.start()
    try:
        assert asyncio.run(all_at_once()) == [0] * 12
    finally:
        stop.set()
        editor.join()
    approved = {(ref["stage"], ref["iteration"]) for ref in env.cycle()["spec"]["approved"]}
    assert approved == {(stage, t) for stage in ("sft", "grpo") for t in range(1, 7)}


def test_waiting_without_an_operator_ends(env: KwokEnv, medgr2: Medgr2) -> None:
    env.apply()
    late = medgr2.run("suspend", "loop", "--wait", "--timeout", "1")
    assert late.code == 75
    assert late.err == "loop: not within 1 s: the operator has not reconciled it; is it running?\n"
    assert env.cycle()["spec"]["suspend"] is True


# -- errors ------------------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_told_with_what_is(env: KwokEnv, medgr2: Medgr2) -> None:
    env.apply("loop")
    env.apply("other")
    for arguments in (["suspend", "lop"], ["logs", "lop"], ["cp", "lop:x"], ["report", "lop"], ["lineage", "lop", "t"]):
        missing = medgr2.run(*arguments)
        assert missing.code == 2
        assert missing.err == (
            f"no cycle 'lop' in namespace {env.namespace} (did you mean loop?); there: loop, other\n"
        )
    assert medgr2.run("logs", "loop").err == "loop: no stage has run yet\n"
    for path in ("../x", "/etc/passwd", "a/../../b"):
        refused = medgr2.run("cp", f"loop:{path}", env.folder)
        assert refused.code == 2
        assert "must" in refused.err
    assert "expected CYCLE:PATH" in medgr2.run("cp", "loop").err
    assert "its image is not known: --image" in medgr2.run("cp", "loop:x", env.folder).err
    assert env.control_plane.audit.created("pods", env.namespace) == []


def test_rights_and_namespace_come_from_the_kubeconfig(env: KwokEnv, medgr2: Medgr2) -> None:
    """Somebody without a right is told which one; with it the same command works, without --namespace."""
    env.apply()
    env.kubectl("create", "serviceaccount", "jane")
    kubeconfig = env.control_plane.service_account_kubeconfig(env.namespace, "jane")
    jane = f"system:serviceaccount:{env.namespace}:jane"

    def grant(name: str, *verbs: str) -> None:
        options = [f"--verb={verb}" for verb in verbs]
        env.kubectl("create", "role", name, "--resource=medgr2cycles.medgr2.io", *options)
        env.kubectl("create", "rolebinding", name, f"--role={name}", f"--serviceaccount={env.namespace}:jane")

    def refused(verb: str) -> bool:
        done = medgr2.run("suspend", "loop", kubeconfig=kubeconfig)
        message = f"not allowed: {jane} may not {verb} medgr2cycles.medgr2.io in namespace {env.namespace}\n"
        return (done.code, done.err) == (2, message)

    assert refused("get")
    grant("look", "get")
    eventually(lambda: refused("patch"), "the right to look is known")
    assert medgr2.run("suspend", "lop", kubeconfig=kubeconfig).err == f"no cycle 'lop' in namespace {env.namespace}\n"
    grant("steer", "patch")
    eventually(lambda: medgr2.run("suspend", "loop", kubeconfig=kubeconfig).code == 0, "the right to patch is known")
    assert env.cycle()["spec"]["suspend"] is True
    stranger = json.loads(kubeconfig.read_text())
    stranger["users"][0]["user"] = {"token": "of nobody"}
    kubeconfig.write_text(json.dumps(stranger))
    unknown = medgr2.run("suspend", "loop", kubeconfig=kubeconfig)
    assert unknown.code == 2
    assert unknown.err.startswith("the cluster does not know you (401)")


def test_a_cluster_without_our_kind_is_told(env: KwokEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CYCLES", Resource("medgr2.io", "v1alpha1", "nothings", "Nothing"))

    async def look(at: Cluster) -> int:
        await at.cycle("loop")
        return 0

    with pytest.raises(
        CommandError, match=r"^this cluster knows no MedGR2Cycle; is the operator installed\?$"
    ) as error:
        connection.run(WhereOptions(None, env.namespace, "", str(env.control_plane.kubeconfig)), look)
    assert error.value.exit_code == ExitCode.USAGE


# -- kubectl -----------------------------------------------------------------------------------------------------------


def test_kubectl_finds_it(env: KwokEnv, tmp_path: Path) -> None:
    env.apply()
    program = tmp_path / "kubectl-medgr2"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m medgr2_operator.cli.cluster "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(env.control_plane.kubeconfig)}
    kubectl = str(tools.path_of("kubectl"))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([kubectl, *arguments], env=environment, capture_output=True, text=True, check=False)

    done = run("medgr2", "suspend", "loop", "-n", env.namespace, "--context", "test")
    assert (done.returncode, done.stderr) == (0, "")
    assert env.cycle()["spec"]["suspend"] is True
    assert run("medgr2", "suspend", "loop", "-n", "default").returncode == 2
    assert run("medgr2", "--help").stdout.startswith("Usage: kubectl medgr2 ")


# -- the pod that reads the volume -------------------------------------------------------------------------------------


def test_the_reading_pod_is_restricted(env: KwokEnv) -> None:
    env.apply()
    env.kubectl("label", "namespace", env.namespace, "pod-security.kubernetes.io/enforce=restricted")
    cycle = Cycle.model_validate(env.cycle())
    pod = reader_pod(cycle, "loop-read-1", "localhost/stage:test", 600, RenderSettings(image=""))

    def dry_run(manifest: dict[str, Any]) -> str:
        arguments = ("-n", env.namespace, "create", "--dry-run=server", "-f", "-")
        return env.control_plane.kubectl(*arguments, stdin=yaml.safe_dump(manifest), check=False)

    assert dry_run(pod) == "pod/loop-read-1 created (server dry run)\n"
    spoiled = {**pod, "spec": {**pod["spec"], "securityContext": {}}}
    assert "violates PodSecurity" in dry_run(spoiled)


def test_the_reading_pod_goes_however_the_command_ends(env: KwokEnv, medgr2: Medgr2) -> None:
    """It waits for a volume that never comes; the command is asked to stop, or has waited long enough."""
    env.apply(workspace={"persistentVolumeClaim": {"claimName": "nothing"}}, template={"image": "stage:test"})

    def pods() -> list[Any]:
        return list(env.kubectl.get("pods")["items"])

    late = medgr2.run("report", "loop", env.folder, "--pod-timeout", "1")
    assert late.code == 75
    assert 'persistentvolumeclaim "nothing" not found' in late.err
    eventually(lambda: not pods(), "its pod is gone")
    for number, code in ((15, 143), (2, 130)):
        running = medgr2.start("report", "loop", env.folder)
        eventually(pods, "its pod")
        owners = pods()[0]["metadata"]["ownerReferences"]
        assert [owner["uid"] for owner in owners] == [env.cycle()["metadata"]["uid"]]
        running.send_signal(number)
        assert running.wait(30) == code
        eventually(lambda: not pods(), "its pod is gone")
    assert list(env.folder.glob("*report*")) == []
