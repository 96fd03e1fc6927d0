"""An expert's review on a cluster: out through the reading pod, back through one that may write to `reviews` only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

from medgr2_api.cycle import Cycle
from medgr2_jobs.store.images import ImageStore
from medgr2_jobs.store.rows.candidates import Candidate, Decision, Score
from medgr2_operator.render.render_context import RenderSettings
from medgr2_operator.render.volume_reader_pod import reader_pod
from tests.cluster.commands import Medgr2
from tests.cluster.fixtures import eventually
from tests.cluster.test_cli_streams import StreamingNode
from tests.support.curate_fixtures import candidate
from tests.support.fake_artifacts import publish
from tests.support.kwok_env import KwokEnv


@pytest.fixture
def node(env: KwokEnv, tmp_path: Path) -> Iterator[StreamingNode]:
    streaming_node = StreamingNode(env.control_plane, tmp_path)
    try:
        streaming_node.create()
        yield streaming_node
    finally:
        streaming_node.remove()


@pytest.fixture
def medgr2(env: KwokEnv) -> Medgr2:
    return Medgr2(env)


def curated(workspace: Path, count: int = 3) -> None:
    """Candidates of iteration 1 of cycle `loop`, all kept but the last."""
    candidates: list[Candidate] = []
    for number in range(count):
        image = ImageStore(workspace).add(Image.new("RGB", (32, 32), (number % 256, number // 256, 0)), 10_000).sha256
        candidates.append(candidate(f"t001-{number:06d}", image, "Was ist größer?", options=("a", "b"), answer_index=1))
    decisions = [Decision(row.triplet_id, True, (), None) for row in candidates[:-1]]
    decisions.append(Decision(candidates[-1].triplet_id, False, ("below_threshold",), None))
    publish(workspace, "generate", 1, tables={Candidate: candidates}, cycle="loop")
    publish(workspace, "score", 1, tables={Score: [Score(row.triplet_id, 7.5) for row in candidates]}, cycle="loop")
    parameters = {"seed": 1, "curation": {"selection": {"strategy": "All"}}, "answerFormat": "Letter"}
    publish(workspace, "curate", 1, tables={Decision: decisions}, parameters=parameters, cycle="loop")


def test_a_review_goes_out_and_comes_back(env: KwokEnv, node: StreamingNode, medgr2: Medgr2, tmp_path: Path) -> None:
    env.apply(template=node.template)
    curated(node.workspace)
    here = tmp_path / "here"
    here.mkdir()
    exported = medgr2("review", "export", "loop", here, "--iteration", 1, "--on-site")
    folder = here / "loop-i001-triplets"
    assert exported.startswith(f"{folder}/triplets.jsonl: 2 triplets of curate@1")
    rows = [json.loads(line) for line in (folder / "triplets.jsonl").read_text().splitlines()]
    assert [row["question"] for row in rows] == ["Was ist größer?"] * 2
    with Image.open(folder / rows[0]["image"]) as image:
        assert image.size == (32, 32)
    again = medgr2.run("review", "export", "loop", here, "--iteration", 1, "--on-site")
    assert (again.code, again.err) == (2, f"{folder} is there already; --force replaces it\n")
    assert ": 3 triplets" in medgr2("review", "export", "loop", here, "--iteration", 1, "--force", "--all", "--on-site")

    rows[0]["veto"], rows[1]["veto"] = True, False
    back = tmp_path / "back.jsonl"
    back.write_text("".join(json.dumps(row) + "\n" for row in rows))
    imported = medgr2("review", "import", "loop", back, "--iteration", 1)
    (written,) = (node.workspace / "reviews").glob("*.jsonl")
    assert imported.splitlines() == [
        f"reviews/{written.name}: 1 vetoed, 1 confirmed, of 3 candidates",
        "loop: curate@1 and what depends on it run again, 7 stages in all (token r1)",
    ]
    spec = env.cycle()["spec"]
    assert spec["reviews"] == [{"iteration": 1, "sha256": written.stem}]
    assert spec["restartFrom"] == {"iteration": 1, "stage": "curate", "token": "r1"}

    back.write_text(json.dumps({"triplet_id": rows[1]["triplet_id"], "veto": True}) + "\n")
    imported = medgr2("review", "import", "loop", back, "--iteration", 1, "--no-restart")
    told = imported.splitlines()[1]
    assert told.startswith("loop: spec.reviews names it; `medgr2 restart loop curate@1 --namespace ")
    assert told.endswith("` lets it count")
    after = env.cycle()["spec"]
    assert after["restartFrom"] == spec["restartFrom"]
    assert after["reviews"] != spec["reviews"]
    assert len(after["reviews"]) == 1, "another review of the same iteration takes its place"
    eventually(lambda: not env.kubectl.get("pods")["items"], "no pod is left")


def test_what_is_not_right_changes_nothing(env: KwokEnv, node: StreamingNode, medgr2: Medgr2, tmp_path: Path) -> None:
    env.apply(template=node.template)
    curated(node.workspace)
    back = tmp_path / "back.csv"
    back.write_text("triplet_id,veto\nt001-000000,yes\nt001-000077,yes\n")
    refused = medgr2.run("review", "import", "loop", back, "--iteration", 1)
    assert refused.code != 0
    # exit codes of a container: `test_cli_node.py`
    assert "back.csv:3: no candidate 't001-000077' in this iteration; it has 3" in refused.err
    missing = medgr2.run("review", "import", "loop", tmp_path / "nothing.csv", "--iteration", 1)
    assert (missing.code, missing.err) == (2, f"{tmp_path}/nothing.csv: No such file or directory\n")
    early = medgr2.run("review", "export", "loop", tmp_path, "--iteration", 2)
    assert early.code != 0
    assert "curate@2 has not finished" in early.err
    assert "reviews" not in env.cycle()["spec"]
    assert not (node.workspace / "reviews").exists()
    assert not list(tmp_path.glob("*triplets*"))


def test_thousands_of_decisions_arrive_whole(env: KwokEnv, node: StreamingNode, medgr2: Medgr2, tmp_path: Path) -> None:
    """More than one message of the protocol holds."""
    env.apply(template=node.template)
    curated(node.workspace, 2000)
    back = tmp_path / "back.jsonl"
    rows = [{"triplet_id": f"t001-{n:06d}", "veto": n % 2 == 0, "reason": "ungenau " * 12} for n in range(2000)]
    back.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert back.stat().st_size > 200_000
    assert "1000 vetoed, 1000 confirmed" in medgr2("review", "import", "loop", back, "--iteration", 1)


def test_the_operator_lets_curate_take_notice(
    env: KwokEnv, node: StreamingNode, medgr2: Medgr2, tmp_path: Path
) -> None:
    env.operator.start()
    env.apply(template=node.template)
    env.wait("Complete")
    before = set(env.created_jobs())
    curated(node.workspace)
    back = tmp_path / "back.jsonl"
    back.write_text('{"triplet_id": "t001-000001", "veto": true}\n')
    medgr2("review", "import", "loop", back, "--iteration", 1, "--wait")
    env.wait("Complete")
    again = {name.split("-i001-")[1].split("-a")[0] for name in set(env.created_jobs()) - before}
    assert again == {"curate", "sft", "grpo", "evaluate", "evaluategrpo", "measure", "report"}
    (written,) = (node.workspace / "reviews").glob("*.jsonl")
    jobs = env.kubectl.get("jobs")["items"]
    newest = max((job for job in jobs if "-curate-" in job["metadata"]["name"]),
                 key=lambda job: job["metadata"]["creationTimestamp"])  # fmt: skip
    environment = newest["spec"]["template"]["spec"]["containers"][0]["env"]
    asked = next(json.loads(entry["value"]) for entry in environment if entry["name"] == "MEDGR2_STAGE_REQUEST")
    assert asked["parameters"]["review"] == written.stem


def test_the_writing_pod_is_restricted_and_writes_to_reviews_only(env: KwokEnv) -> None:
    env.apply(workspace={"persistentVolumeClaim": {"claimName": "medgr2-data"}, "subPath": "teams/ml"})
    env.kubectl("label", "namespace", env.namespace, "pod-security.kubernetes.io/enforce=restricted")
    cycle = Cycle.model_validate(env.cycle())
    pod = reader_pod(cycle, "loop-read-1", "localhost/stage:test", 600, RenderSettings(image=""), "reviews")
    arguments = ("-n", env.namespace, "create", "--dry-run=server", "-o", "yaml", "-f", "-")
    stored = yaml.safe_load(env.control_plane.kubectl(*arguments, stdin=yaml.safe_dump(pod)))
    mounts = [mount for mount in stored["spec"]["containers"][0]["volumeMounts"] if mount["name"] == "workspace"]
    assert [(mount["mountPath"], mount.get("readOnly", False), mount["subPath"]) for mount in mounts] == [
        ("/workspace", True, "teams/ml"), ("/workspace/reviews", False, "teams/ml/reviews"),
    ]  # fmt: skip
