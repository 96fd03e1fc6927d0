"""What a pod is given."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.support import kubernetes_rules as rules
from tests.support.render_cases import CASES, GPU, SETTINGS, Case

from medgr2_api.stage_contract import StageRequest
from medgr2_api.stages import stage_names
from medgr2_operator.render import labels
from medgr2_operator.render.job import job
from medgr2_operator.render.render_context import RenderError

SHAPES = (GPU, {}, {"limits": {"cpu": 1}}, {"requests": {"cpu": "4"}})
_TEXT = st.text(st.sampled_from("$(){}ab\\\"' é") | st.characters(exclude_categories=["Cs"]))


def render(case: Case, **settings: Any) -> dict[str, Any]:
    """The Job of a case."""
    return job(case.cycle(), case.create(), replace(SETTINGS, **settings), case.single_node)[-1]


def pod(case: Case, **settings: Any) -> dict[str, Any]:
    """The pods' spec."""
    spec: dict[str, Any] = render(case, **settings)["spec"]["template"]["spec"]
    return spec


def variables(container: dict[str, Any]) -> dict[str, str]:
    """What the process would see in its environment, as far as it is written here."""
    seen: dict[str, str] = {}
    for variable in container["env"]:
        seen[variable["name"]] = rules.expand(variable.get("value", ""), seen)
    return seen


def environment(case: Case) -> dict[str, str]:
    """The variables of container main."""
    return variables(pod(case)["containers"][0])


@pytest.mark.parametrize(
    ("text", "seen"),
    [("$(A)", "1"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$A$", "$A$"), ("$(A", "$(A"), ("$$$(A)", "$1")],
)
def test_the_rule_of_kubelet(text: str, seen: str) -> None:
    assert rules.expand(text, {"A": "1"}) == seen


@settings(deadline=None)
@example("$$", "$(HOME) $$(HOME) $$$(HOME) $")
@given(_TEXT, _TEXT)
def test_every_dollar_reaches_the_stage(key: str, text: str) -> None:
    parameters = {"seed": 1, key: text, "nested": [{"text": text + "$(HOME)"}]}
    case = Case("curate", {}, {"parameters": parameters})
    seen = StageRequest.model_validate_json(environment(case)["MEDGR2_STAGE_REQUEST"])
    assert seen.parameters == json.loads(json.dumps(parameters))


@settings(deadline=None)
@example("$(HOME)$$")
@given(st.text(st.sampled_from("$(){}aHOME"), min_size=1))
def test_every_dollar_reaches_the_model_server(text: str) -> None:
    generator = {"vllm": {"model": text, "args": ["--revision", text]}}
    server = pod(Case("generate", {"generator": generator}))["initContainers"][0]
    seen = [rules.expand(argument, variables(server)) for argument in server["args"]]
    assert (seen[0], seen[-1]) == (text, text)


def test_the_request_says_what_the_pod_has() -> None:
    request = StageRequest.model_validate_json(environment(CASES["shards"])["MEDGR2_STAGE_REQUEST"])
    assert (request.shard.index, request.shard.count) == (0, 8)
    assert request.threads == 2
    request = StageRequest.model_validate_json(environment(CASES["gpu-kueue"])["MEDGR2_STAGE_REQUEST"])
    assert request.grace_seconds == pod(CASES["gpu-kueue"])["terminationGracePeriodSeconds"] == 600
    assert (request.token, request.attempt) == ("again", 3)


@pytest.mark.parametrize(
    ("resources", "processes", "threads"),
    [
        ({"limits": {"cpu": 32}}, 8, 4),
        ({"limits": {"cpu": "2500m"}, "requests": {"cpu": 1}}, 1, 2),
        ({"requests": {"cpu": "3.9"}}, 1, 3),
        ({"limits": {"cpu": "100m"}}, 1, 1),
        ({"limits": {"cpu": 2}}, 8, 1),
        ({"limits": {"nvidia.com/gpu": 1}}, 1, 1),
        ({}, 1, 3),
    ],
)
def test_threads_follow_the_cpus(resources: dict[str, Any], processes: int, threads: int) -> None:
    stage = {"name": "sft", "resources": resources, "numProcPerNode": processes}
    container = pod(Case("sft", {"stages": [stage]}), cpu_request="3")["containers"][0]
    seen = variables(container)
    assert json.loads(seen["MEDGR2_STAGE_REQUEST"])["threads"] == threads
    assert seen["OMP_NUM_THREADS"] == str(threads)


@pytest.mark.parametrize("cpu", ["two", "2x", "m", "", "-1", "NaN"])
def test_a_bad_quantity_is_named(cpu: str) -> None:
    with pytest.raises(ValidationError, match=r"limits\.cpu: .* (is not a quantity|must not be negative)"):
        Case("sft", {"stages": [{"name": "sft", "resources": {"limits": {"cpu": cpu}}}]}).cycle()


@pytest.mark.parametrize(
    ("resources", "requests"),
    [
        ({}, {"cpu": "1", "memory": "2Gi"}),
        ({"requests": {"cpu": 8}}, {"cpu": 8, "memory": "2Gi"}),
        ({"limits": {"memory": "1Gi"}}, {"cpu": "1"}),
        ({"limits": {"cpu": 1, "memory": "1Gi"}}, None),
        (GPU, None),
        ({"claims": [{"name": "gpu"}]}, None),
    ],
)
def test_requests_are_filled_in_without_gpus_only(resources: dict[str, Any], requests: dict[str, Any] | None) -> None:
    case = Case("score", {"stages": [{"name": "score", "resources": resources}]})
    assert pod(case)["containers"][0]["resources"].get("requests") == requests


@pytest.mark.parametrize(
    ("resources", "limits"),
    [
        ({}, {"cpu": "4", "memory": "8Gi"}),
        ({"limits": {"memory": "1Gi"}}, {"memory": "1Gi", "cpu": "4"}),
        ({"limits": {"cpu": 16, "memory": "64Gi"}}, {"cpu": 16, "memory": "64Gi"}),
        ({"requests": {"cpu": 8, "memory": "500Mi"}}, {"cpu": 8, "memory": "8Gi"}),
        ({"requests": {"memory": "16Gi"}}, {"cpu": "4", "memory": "16Gi"}),
        (GPU, GPU["limits"]),
        ({"claims": [{"name": "gpu"}]}, None),
    ],
)
def test_what_has_no_limit_gets_one_without_gpus_only(resources: dict[str, Any], limits: dict[str, Any] | None) -> None:
    case = Case("score", {"stages": [{"name": "score", "resources": resources}]})
    assert pod(case)["containers"][0]["resources"].get("limits") == limits


def test_every_container_without_gpus_fits_a_quota_on_limits() -> None:
    for case in CASES.values():
        *_, main = rules.containers(render(case))
        if "nvidia.com/gpu" not in (main["resources"].get("limits") or {}):
            assert {"cpu", "memory"} <= main["resources"]["limits"].keys()
    plain = pod(CASES["plain"], cpu_limit="", memory_limit="")["containers"][0]
    assert "limits" not in plain["resources"], "the platform may leave them out"


def test_a_default_limit_is_no_reason_for_more_threads() -> None:
    assert environment(CASES["plain"])["OMP_NUM_THREADS"] == "1"


def test_only_a_container_with_gpus_sees_gpus() -> None:
    hidden = {"NVIDIA_VISIBLE_DEVICES": "void"}
    assert hidden.items() <= environment(CASES["plain"]).items()
    assert not hidden.keys() & environment(CASES["gpu-kueue"]).keys()
    assert hidden.items() <= environment(CASES["vllm"]).items()
    assert not hidden.keys() & variables(pod(CASES["vllm"])["initContainers"][0]).keys()


def test_what_is_written_to_is_mounted() -> None:
    for case in CASES.values():
        for container in rules.containers(render(case)):
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            seen = variables(container)
            assert {"/tmp", "/dev/shm", "/workspace"} <= mounts.keys()
            assert seen["HOME"] in mounts
            assert seen["HF_HOME"].startswith("/workspace/")
            assert not mounts["/workspace"].get("readOnly")


def test_a_secret_is_mounted_where_it_is_needed_and_nowhere_else() -> None:
    spec = pod(CASES["shards"])
    (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "secret"]
    (volume,) = [v for v in spec["volumes"] if v["name"] == "secret"]
    folder = environment(CASES["shards"])["MEDGR2_SECRETS_DIR"]
    assert mount == {"name": "secret", "mountPath": f"{folder}/provider", "readOnly": True}
    assert volume["secret"]["items"] == [{"key": "api-key", "path": "api-key"}]
    for stage in set(stage_names()) - {"generate"}:
        assert "provider" not in json.dumps(pod(replace(CASES["shards"], stage=stage, request={}))["volumes"])
    collecting = replace(CASES["shards"], request={**CASES["shards"].request, "collect": True})
    assert "secret" not in json.dumps(pod(collecting)["volumes"])


def test_prepare_gets_the_keys_it_fetches_with_and_no_other_stage_does() -> None:
    spec = pod(CASES["fetch"])
    folder = environment(CASES["fetch"])["MEDGR2_SECRETS_DIR"]
    sources = {v["name"]: v["secret"] for v in spec["volumes"] if "secret" in v}
    mounts = {m["mountPath"]: m for m in spec["containers"][0]["volumeMounts"] if m["name"] in sources}
    seen = {path: [item["key"] for item in sources[m["name"]]["items"]] for path, m in mounts.items()}
    assert seen == {f"{folder}/hub": ["token"], f"{folder}/store": ["id", "secret"]}
    assert all(m["readOnly"] for m in mounts.values())
    assert {source["defaultMode"] for source in sources.values()} == {0o440}
    assert {sources[m["name"]]["secretName"] for m in mounts.values()} == {"hub", "store"}
    for stage in set(stage_names()) - {"prepare"}:
        assert "secretName" not in json.dumps(pod(replace(CASES["fetch"], stage=stage)))
    collecting = replace(CASES["fetch"], request={**CASES["fetch"].request, "collect": True})
    assert "secretName" not in json.dumps(pod(collecting))


def test_only_prepare_may_reach_the_hub() -> None:
    for stage in stage_names():
        seen = environment(Case(stage))
        assert seen["HF_HUB_OFFLINE"] == ("0" if stage == "prepare" else "1")
        assert seen["HF_HOME"].startswith(seen["MEDGR2_WORKSPACE"] + "/")


def test_the_users_variables_are_last_and_replace_defaults() -> None:
    env = [{"name": "HOME", "value": "/workspace"}, {"name": "CACHE", "value": "$(HF_HOME)/x"}]
    seen = environment(Case("sft", {"template": {"env": env}}))
    assert seen["HOME"] == "/workspace"
    assert seen["CACHE"] == "/workspace/cache/huggingface/x"


@pytest.mark.parametrize("name", ["MEDGR2_WORKSPACE", "MEDGR2_NUM_NODES", "JOB_COMPLETION_INDEX"])
def test_the_contracts_variables_are_not_the_users(name: str) -> None:
    env = [{"name": "A", "value": "1"}, {"name": name, "value": "1"}]
    with pytest.raises(RenderError, match=rf"spec\.template\.env\[1\]: {name}"):
        pod(Case("sft", {"template": {"env": env}}))


def test_only_prepare_may_fetch_models() -> None:
    assert environment(replace(CASES["plain"], stage="prepare"))["HF_HUB_OFFLINE"] == "0"
    assert environment(CASES["plain"])["HF_HUB_OFFLINE"] == "1"


def test_the_model_server_gets_what_the_stage_was_given() -> None:
    spec = pod(CASES["vllm"])
    (server,) = spec["initContainers"]
    assert server["restartPolicy"] == "Always"
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert spec["containers"][0]["resources"]["limits"] == {"cpu": "4", "memory": "8Gi"}
    assert server["args"][-4:] == ["--tensor-parallel-size", "2", "--max-model-len", "8192"]
    assert environment(CASES["vllm"])["MEDGR2_VLLM_BASE_URL"] == "http://127.0.0.1:8000/v1"
    probe = server["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] == SETTINGS.vllm_startup_seconds


@pytest.mark.parametrize("arguments", [["-tp", "1"], ["--tensor-parallel-size=1"], ["--data_parallel_size", "2"]])
def test_the_user_may_share_the_gpus_out(arguments: list[str]) -> None:
    generator = {"vllm": {"model": "m", "image": "mine:1", "args": arguments}}
    server = pod(replace(CASES["vllm"], spec={**CASES["vllm"].spec, "generator": generator}))["initContainers"][0]
    assert "--tensor-parallel-size" not in server["args"]
    assert server["args"][-len(arguments) :] == arguments
    assert server["image"] == "mine:1"


def test_the_model_server_answers_its_own_pod_only() -> None:
    spec = pod(CASES["vllm"])
    (server,) = spec["initContainers"]
    options = dict(itertools.pairwise(server["args"]))
    assert (options["--host"], options["--port"]) == ("127.0.0.1", "8000")
    assert options["--allowed-media-domains"].endswith(".invalid"), "no address that a question names is fetched"
    assert "ports" not in server
    assert "httpGet" not in server["startupProbe"], "the kubelet cannot reach a container's loopback"


def test_each_pods_model_server_makes_a_key_of_its_own(tmp_path: Path) -> None:
    spec = pod(CASES["vllm"])
    (server,) = spec["initContainers"]
    (main,) = spec["containers"]
    mounts = {mount["name"]: mount for mount in main["volumeMounts"]}
    assert mounts["model-server"]["readOnly"] is True
    file = variables(main)["MEDGR2_VLLM_API_KEY_FILE"]
    assert file.startswith(mounts["model-server"]["mountPath"])
    (tmp_path / "vllm").write_text('#!/bin/sh\necho "$VLLM_API_KEY"; for one in "$@"; do echo "$one"; done\n')
    (tmp_path / "vllm").chmod(0o755)
    folder = tmp_path / "shared"
    folder.mkdir()

    def start() -> list[str]:
        """What the container runs, as the kubelet expands it; the folder is elsewhere."""
        command = [rules.expand(word, {}) for word in [*server["command"], *server["args"]]]
        command[2] = command[2].replace(str(Path(file).parent), str(folder))
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.run(command, env=path, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\n")

    key, *arguments = start()
    assert len(key) >= 32
    assert arguments[:-1] == ["serve", *server["args"]]
    assert start()[0] == key, "the stage has read it before the server was started again"
    stored = folder / Path(file).name
    assert stored.read_text().strip() == key
    assert stored.stat().st_mode & 0o777 == 0o640
    stored.unlink()
    assert start()[0] != key


@pytest.mark.parametrize("name", ["two-nodes", "vllm", "shards", "gpu-kueue"])
def test_collecting_is_small(name: str) -> None:
    case = replace(CASES[name], request={**CASES[name].request, "collect": True})
    objects = job(case.cycle(), case.create(), SETTINGS)
    assert [manifest["kind"] for manifest in objects] == ["Job"]
    spec = objects[-1]["spec"]["template"]["spec"]
    assert [container["name"] for container in rules.containers(objects[-1])] == ["main"]
    assert spec["containers"][0]["resources"] == {
        "requests": {"cpu": "100m", "memory": "256Mi"},
        "limits": {"cpu": "1", "memory": "2Gi"},
    }
    assert spec.get("nodeSelector", {}) == case.cycle().spec.template.node_selector
    assert "tolerations" not in spec
    assert (
        not {"MEDGR2_NUM_NODES", "MEDGR2_DEEPSPEED", "MEDGR2_VLLM_BASE_URL"} & variables(spec["containers"][0]).keys()
    )
    assert objects[-1]["spec"]["completions"] == case.create().shards


@pytest.mark.parametrize(
    "affinity", [{}, {"podAffinity": {}}, CASES["volume-claim-template"].spec["template"]["affinity"]]
)
def test_pods_of_a_single_node_volume_stay_together(affinity: dict[str, Any]) -> None:
    case = Case("sft", {"template": {"affinity": affinity}}, single_node=True)
    terms = pod(case)["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert terms[:-1] == affinity.get("podAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", [])
    assert terms[-1]["topologyKey"] == "kubernetes.io/hostname"
    selector = terms[-1]["labelSelector"]["matchLabels"]
    # also with another cycle's pods, and with itself: else the first pod would wait for ever
    for other in (case, replace(case, name="another", stage="curate")):
        assert selector.items() <= render(other)["spec"]["template"]["metadata"]["labels"].items()
    elsewhere = {"workspace": {"persistentVolumeClaim": {"claimName": "c" * 253}}}
    pod_labels = render(replace(case, spec=elsewhere))["spec"]["template"]["metadata"]["labels"]
    assert not selector.items() <= pod_labels.items()
    assert all(len(value) <= 63 for value in pod_labels.values())
    free = replace(case, single_node=False)
    assert pod(free).get("affinity", {}) == affinity
    assert labels.VOLUME not in render(free)["spec"]["template"]["metadata"]["labels"]


def test_a_stages_words_replace_the_templates() -> None:
    case = Case(
        "sft",
        {
            "template": {"image": "a:1", "nodeSelector": {"pool": "a"}, "tolerations": [{"operator": "Exists"}]},
            "stages": [{"name": "sft", "image": "b:1", "nodeSelector": {}, "tolerations": []}],
        },
    )
    assert pod(case)["containers"][0]["image"] == "b:1"
    assert not {"nodeSelector", "tolerations"} & pod(case).keys()
    other = pod(replace(case, stage="curate"))
    assert other["containers"][0]["image"] == "a:1"
    assert (other["nodeSelector"], other["tolerations"]) == ({"pool": "a"}, [{"operator": "Exists"}])
    assert pod(CASES["plain"])["containers"][0]["image"] == SETTINGS.image
