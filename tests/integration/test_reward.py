"""Stages `reward` and `score` on a prepared tiny workspace: what they publish, the gate, kills and stops."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from medgr2_api.stage_contract import REQUEST_ENV, WORKSPACE_ENV, ArtifactRef, ExitCode, Shard, StageRequest
from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.data.graded_dataset import rationale_for
from medgr2_jobs.prompts import answers
from medgr2_jobs.reward.model import RewardModel
from medgr2_jobs.reward.scorer import answer_row
from medgr2_jobs.reward.train import TrainingExample
from medgr2_jobs.runner import main
from medgr2_jobs.runner.main import execute
from medgr2_jobs.stages import reward as reward_stage
from medgr2_jobs.stages import score as score_stage
from medgr2_jobs.store import manifest
from medgr2_jobs.store.artifact import ArtifactReader, ArtifactWriter
from medgr2_jobs.store.rows import TableRow
from medgr2_jobs.store.rows.candidates import AnswerPosterior, Candidate, CandidateOutcome, Score
from medgr2_jobs.store.rows.prepared import GradedRow, Item
from medgr2_jobs.store.rows.training import CalibrationRow, Preference, RewardAnswer
from medgr2_jobs.training import checkpoints
from tests.support.fixtures import artifact_ref, prepare_parameters, prepared_workspace, run_stage, stage_request
from tests.support.rows import row_of

TRAINER = {"max_steps": 12, "per_device_train_batch_size": 4, "lr_scheduler_type": "cosine", "save_steps": 2}
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
SCORING = {"seed": 1, "shards": 1, "answerFormat": "OptionText"}


def reward_parameters(**changes: Any) -> dict[str, Any]:
    learning = {"lora": {"rank": 0}, "learningRate": 1e-3, "numEpochs": 1, "trainer": TRAINER}
    return {
        "seed": 5,
        "retrain": False,
        "head": "LastTokenAndLikelihood",
        "grades": {},
        "training": {**learning, **changes.pop("training", {})},
        "replayFraction": 0.5,
        "promotion": {
            "minSpearman": -1,
            "minPairwiseAccuracy": 0,
            "minImageSensitivity": 0,
            "maxMeanAbsoluteError": 16,
            "minAurocGain": -1,
            "maxRegression": 2,
            "nonInferiorityMargin": 2,
            **changes.pop("promotion", {}),
        },
        "answerFormat": "OptionText",
        **changes,
    }


def published(root: Path, ref: ArtifactRef) -> ArtifactReader:
    return ArtifactReader(root, ref)


def document(reader: ArtifactReader, name: str) -> Any:
    return json.loads(reader.file(name).read_text())


def publish(root: Path, stage: str, table: type[TableRow], rows: list[Any], mark: str = "f") -> ArtifactRef:
    """An artifact with one table, as if its stage had run."""
    request = StageRequest(
        cycle={"name": "test", "uid": "0000-test"}, iteration=1, stage=stage, input_hash=mark * 64, parameters={}
    )
    writer = ArtifactWriter(root, request)
    if manifest.load(writer.base):  # an earlier test made it
        return artifact_ref(root, request)
    writer.open()
    writer.table(table, rows)
    fields = {"stage": stage, "input_hash": mark * 64, "cycle": "test", "iteration": 1, "attempt": 1}
    manifest.commit(
        writer.base,
        manifest.Manifest(code_version=1, parts=writer.parts(), inputs={}, parameters={}, **fields),
        writer.work,
    )
    return artifact_ref(root, request)


def preferences_of(grades: list[GradedRow]) -> list[Preference]:
    """Policy answers made of graded rows."""
    columns = ("sample_id", "split", "image_sha256", "modality", "question_type", "question", "options", "response",
               "grade", "target")  # fmt: skip
    return [
        Preference(prompt_id=row.item_id, gold=True, **{name: getattr(row, name) for name in columns})
        for row in grades
        if row.grade in ("original", "irrelevant")
    ]


def torn_candidate() -> Candidate:
    return row_of(Candidate, triplet_id="torn", iteration=1, outcome=CandidateOutcome.INVALID_JSON)


def candidates_of(grades: list[GradedRow]) -> list[Candidate]:
    columns = ("image_sha256", "modality", "question_type", "question", "options", "response")
    rows = [
        row_of(Candidate, triplet_id=row.sample_id, iteration=1, answer_index=0, rationale="",
               **{name: getattr(row, name) for name in columns})
        for row in grades
    ]  # fmt: skip
    random.Random(0).shuffle(rows)  # rows of one image are not neighbours
    return [*rows, torn_candidate()]


def in_child(request: StageRequest, root: Path, until: Callable[[], bool], signum: int) -> int:
    """Runs a stage in a forked process, sends it a signal when `until` holds; its wait status."""
    child = os.fork()
    if child == 0:
        os.environ |= {REQUEST_ENV: request.model_dump_json(by_alias=True), WORKSPACE_ENV: str(root)}
        os._exit(main.main())  # not execute(): the signal handlers are main's
    deadline = time.monotonic() + 120
    while not until() and time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            raise AssertionError("the stage ended before the signal")
        time.sleep(0.002)
    os.kill(child, signum)
    return os.waitpid(child, 0)[1]


def work_of(root: Path, request: StageRequest) -> Path:
    return ArtifactWriter(root, request).work


@dataclass
class RewardWorkspace:
    """A workspace in which prepare has run, and perhaps the first training."""

    root: Path
    prepare: ArtifactRef

    @property
    def grades(self) -> list[GradedRow]:
        return published(self.root, self.prepare).rows(GradedRow)

    def request(self, **changes: Any) -> StageRequest:
        """A first training."""
        return stage_request("reward", 0, reward_parameters(**changes), {"prepare": self.prepare})


def prepared(root: Path) -> RewardWorkspace:
    return RewardWorkspace(root, prepared_workspace(root)[1])


@pytest.fixture
def workspace(tmp_path: Path) -> RewardWorkspace:
    return prepared(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RewardWorkspace, ArtifactRef]:
    """One first training, which the tests that only build on it share."""
    made = prepared(tmp_path_factory.mktemp("trained"))
    return made, run_stage(made.root, made.request())


def test_first_training(trained):
    workspace, first = trained
    reader = published(workspace.root, first)
    assert reader.manifest.promoted is None
    counters = reader.manifest.counters
    assert {"spearman", "pairwise_accuracy", "auroc", "image_sensitivity", "mae", "gate_passed"} <= counters.keys()
    model = RewardModel.load(reader.folder_of("model"))
    assert model.info.base == published(workspace.root, workspace.prepare).digest
    heldout = [row for row in workspace.grades if row.split == "heldout"]
    calibration = reader.rows(CalibrationRow)
    assert [row.sample_id for row in calibration] == [row.sample_id for row in heldout]
    assert all(-6 <= row.score <= 10 for row in calibration)
    assert document(reader, "gate.json")["passed"] is True
    answered = {row.item_id: row.option_scores for row in reader.rows(RewardAnswer)}
    questions = [row for row in published(workspace.root, workspace.prepare).rows(Item) if row.split == "validation"]
    assert {name: len(scores) for name, scores in answered.items()} == {
        row.item_id: len(row.options) for row in questions
    }
    best = [answered[row.item_id][row.answer_index] == max(answered[row.item_id]) for row in questions]
    assert 0 < counters["answer_accuracy"] <= sum(best) / len(best)
    assert document(reader, "metrics.json")["new"]["grades"]["spearman"] == counters["spearman"]
    assert [entry["step"] for entry in document(reader, "training_log.json")] == list(range(1, 13))
    for path in reader.folder_of("model").iterdir():  # the digest must not depend on where it was made
        assert str(workspace.root) not in path.read_bytes().decode("latin-1"), path


def test_a_weak_first_model_is_published_with_a_warning(workspace):
    request = workspace.request(promotion={"minSpearman": 1.0}, training={"trainer": {**TRAINER, "max_steps": 2}})
    reader = published(workspace.root, run_stage(workspace.root, request))
    assert reader.manifest.promoted is None
    assert reader.manifest.counters["gate_passed"] == 0
    assert "spearman" in document(reader, "gate.json")["reason"]


def test_a_training_that_diverges_publishes_nothing(workspace, capfd):
    request = workspace.request(training={"learningRate": 1e30})
    assert execute(request, workspace.root) == ExitCode.CONFIG
    said = capfd.readouterr().err
    assert "train: the " in said
    assert "Lower rewardModel.training.learningRate" in said
    assert not list((workspace.root / "artifacts" / "reward").rglob("manifest.json"))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{"rank": 0}, LORA], ids=["full", "lora"])
def test_kill_and_resume_gives_the_same_bytes(workspace, tmp_path, trained, lora):
    request = workspace.request(training={"lora": lora})
    folder = work_of(workspace.root, request)
    step = random.choice([2, 4, 6, 8, 10])
    written = folder / f"checkpoint-{step}" / "trainer_state.json"
    status = in_child(request, workspace.root, written.is_file, signal.SIGKILL)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert manifest.load(folder.parents[1]) is None
    resumed = run_stage(workspace.root, request.model_copy(update={"attempt": 2}))

    other = prepared(tmp_path / "straight")
    straight = trained[1] if lora == {"rank": 0} else run_stage(other.root, request)
    assert resumed.output_digest == straight.output_digest, f"killed at step {step}"
    assert not folder.exists()


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_and_exit_85(workspace, tmp_path):
    request = workspace.request(training={"trainer": {**TRAINER, "max_steps": 24, "save_steps": 1000}})
    progress = workspace.root / "cycles/test/progress"
    status = in_child(request, workspace.root, lambda: any(progress.glob("*reward*.json")), signal.SIGTERM)
    assert os.waitstatus_to_exitcode(status) == ExitCode.CHECKPOINTED
    assert checkpoints.latest_checkpoint(work_of(workspace.root, request)) is not None
    resumed = run_stage(workspace.root, request.model_copy(update={"attempt": 2}))
    straight = run_stage(prepared(tmp_path / "straight").root, request)
    assert resumed.output_digest == straight.output_digest


def cross_examined(
    workspace: RewardWorkspace, first: ArtifactRef, *, settle: bool = True, **changes: Any
) -> StageRequest:
    """A retraining on the candidates' questions: those of the seed, of which the generator claims a wrong answer, and
    the cross-examination settles all but every fourth rightly."""
    items = [row for row in published(workspace.root, workspace.prepare).rows(Item) if row.split == "train"]
    columns = ("image_sha256", "modality", "question_type", "question", "options", "rationale")
    candidates, posteriors = [], []
    for number, item in enumerate(items):
        claim = (item.answer_index + 1) % len(item.options)
        said = {name: getattr(item, name) for name in columns}
        candidates.append(
            row_of(Candidate, triplet_id=item.item_id, iteration=1, answer_index=claim, response="r", **said)
        )
        settled = item.answer_index if settle and number % 4 else None
        scores = [10.0 * (option == (claim if number % 4 == 1 else settled)) for option in range(len(item.options))]
        posteriors.append(
            row_of(AnswerPosterior, triplet_id=item.item_id, posterior=[0.25] * 4, answer_index=settled,
                   rationale=item.rationale if settle else "", claim=claim, reward_scores=scores)
        )  # fmt: skip
    inputs = {
        "prepare": workspace.prepare,
        "reward": first,
        "generate-1": publish(workspace.root, "generate", Candidate, candidates, "c"),
        "relabel-1": publish(workspace.root, "relabel", AnswerPosterior, posteriors, "a" if settle else "b"),
    }
    settings = {
        "retrainOn": "CrossExamined",
        "retrainFrom": "Base",
        "mismatchesPerItem": 1,
        "replayFraction": 0.1,
        "training": {"retrainTrainer": {"max_steps": 4}},
    }
    return stage_request("reward", 1, reward_parameters(retrain=True, **{**settings, **changes}), inputs)


def test_a_retraining_on_settled_questions(trained, monkeypatch):
    workspace, first = trained
    learnt: list[TrainingExample] = []
    fit = reward_stage.fit

    def watched(*arguments: Any, **options: Any) -> Any:
        learnt.extend(arguments[3])
        assert {example.row for example in options["replay"]} <= graded_of_seed
        return fit(*arguments, **options)

    graded_of_seed = {answer_row(row, AnswerFormat.OPTION_TEXT) for row in workspace.grades if row.split == "train"}
    monkeypatch.setattr(reward_stage, "fit", watched)
    reader = published(workspace.root, run_stage(workspace.root, cross_examined(workspace, first)))
    counters = reader.manifest.counters
    items = {row.item_id: row for row in published(workspace.root, workspace.prepare).rows(Item)}
    posteriors = published(workspace.root, cross_examined(workspace, first).inputs["relabel-1"]).rows(AnswerPosterior)
    settled = {row.triplet_id for row in posteriors if row.answer_index is not None}
    assert counters["settled"] == len(settled) < len(posteriors)
    assert counters["settled_against_reward"] == sum(number % 4 == 1 for number in range(len(posteriors)))
    assert counters["settled_rows"] == len(learnt)
    right = {example.row.response for example in learnt if example.target == 10}
    assert right == {
        answers.response(
            rationale_for(items[name]), items[name].answer_index, items[name].options, AnswerFormat.OPTION_TEXT
        )
        for name in settled
    }, "the settled answer is right, not what the generator claims"
    assert reader.manifest.promoted is True


def test_where_nothing_is_settled_the_model_in_force_stays(trained):
    workspace, first = trained
    request = cross_examined(workspace, first, settle=False)
    reader = published(workspace.root, run_stage(workspace.root, request))
    assert reader.manifest.promoted is False
    assert document(reader, "gate.json")["reason"] == "there was nothing to retrain on: no question is settled"
    assert reader.manifest.counters["settled"] == reader.manifest.counters["gate_passed"] == 0
    kept, taken = (published(workspace.root, first).folder_of("model"), reader.folder_of("model"))
    assert (kept / "model.safetensors").read_bytes() == (taken / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_retraining_gives_the_same_bytes(trained, tmp_path):
    workspace, first = trained
    shutil.copytree(workspace.root, tmp_path / "killed", symlinks=True)
    killed = RewardWorkspace(tmp_path / "killed", workspace.prepare)
    request = cross_examined(killed, first, training={"retrainTrainer": {"max_steps": 6}})
    written = work_of(killed.root, request) / f"checkpoint-{random.choice([2, 4])}" / "trainer_state.json"
    status = in_child(request, killed.root, written.is_file, signal.SIGKILL)
    assert os.WTERMSIG(status) == signal.SIGKILL
    resumed = run_stage(killed.root, request.model_copy(update={"attempt": 2}))
    straight = run_stage(
        workspace.root, cross_examined(workspace, first, training={"retrainTrainer": {"max_steps": 6}})
    )
    assert resumed.output_digest == straight.output_digest, written


def retraining(workspace: RewardWorkspace, first: ArtifactRef, **changes: Any) -> StageRequest:
    """A retraining on the policy's answers."""
    preferences = publish(workspace.root, "preferences", Preference, preferences_of(workspace.grades))
    settings = {
        "retrainOn": "PolicyAnswers",
        "retrainFrom": "Previous",
        "training": {"retrainTrainer": {"max_steps": 4}},
    }
    inputs = {"prepare": workspace.prepare, "reward": first, "preferences": preferences}
    return stage_request("reward", 1, reward_parameters(retrain=True, **{**settings, **changes}), inputs)


@pytest.mark.parametrize(
    ("promotion", "promoted", "reason"),
    [
        ({}, True, "all checks passed"),
        ({"minSpearman": 1.0}, False, "spearman"),
        # four steps are no gain that so few questions could show
        ({"nonInferiorityMargin": 0}, False, "may have fallen by"),
    ],
)
def test_retraining_and_its_gate(trained, promotion, promoted, reason):
    workspace, first = trained
    reader = published(workspace.root, run_stage(workspace.root, retraining(workspace, first, promotion=promotion)))
    assert reader.manifest.promoted is promoted
    decision = document(reader, "gate.json")
    assert decision["passed"] is promoted
    assert reason in decision["reason"]
    assert decision["gains"].keys() == {"answer_auroc", "answer_accuracy", "image_sensitivity"}
    log = document(reader, "training_log.json")
    assert len(log) == 4
    figures, before = (
        document(reader, "metrics.json"),
        document(published(workspace.root, first), "metrics.json")["new"],
    )
    assert (figures["old"]["grades"], figures["old"]["answers"]) == (before["grades"], before["answers"])
    assert figures["new"]["grades"] != figures["old"]["grades"]
    gain = decision["gains"]["answer_auroc"]["value"]
    assert gain == pytest.approx(figures["new"]["answers"]["answer_auroc"] - before["answers"]["answer_auroc"])
    assert {"preferences_auroc", "old_spearman", "old_answer_accuracy"} <= reader.manifest.counters.keys()
    RewardModel.load(reader.folder_of("model"))  # published even when it is not promoted


def test_a_retraining_from_the_base_knows_nothing_of_the_model_in_force(trained):
    workspace, first = trained
    request = retraining(workspace, first, retrainFrom="Base", training={"retrainTrainer": {"max_steps": 1}})
    reader = published(workspace.root, run_stage(workspace.root, request))
    before = document(published(workspace.root, first), "metrics.json")["new"]
    assert document(reader, "metrics.json")["old"]["answers"] == before["answers"], "the one in force is measured"
    base, in_force, retrained = (
        load_file(folder / "model.safetensors")
        for folder in (
            published(workspace.root, workspace.prepare).folder_of("models/reward"),
            published(workspace.root, first).folder_of("model"),
            reader.folder_of("model"),
        )
    )

    def moved(weights: dict[str, Any]) -> float:
        return max(float((weights[name] - base[name]).abs().max()) for name in base)

    assert moved(retrained) < 1.1e-3 < moved(in_force), "one step of Adam moves a weight by the learning rate at most"


def test_a_checkpoint_of_the_users_own(trained, tmp_path):
    workspace, first = trained
    source = published(workspace.root, first).folder_of("model")
    shutil.copytree(source, tmp_path / "mine")
    made = run_stage(tmp_path, stage_request("prepare", 0, prepare_parameters(rewardCheckpoint="mine")))
    own = RewardWorkspace(tmp_path, made)
    reader = published(tmp_path, run_stage(tmp_path, own.request(checkpoint="mine")))
    taken = reader.folder_of("model")
    assert (taken / "head.safetensors").read_bytes() == (source / "head.safetensors").read_bytes()
    assert reader.rows(CalibrationRow) == published(workspace.root, first).rows(CalibrationRow)
    assert execute(own.request(checkpoint="mine", head="LastToken"), tmp_path) == ExitCode.CONFIG


def test_owned_and_unknown_options_are_refused(workspace):
    for options in ({"output_dir": "x"}, {"train_sampling_strategy": "random"}, {"learning_rte": 1}):
        assert execute(workspace.request(training={"trainer": options}), workspace.root) == ExitCode.CONFIG


@pytest.mark.slow
def test_scoring_in_shards_and_after_a_kill(trained, monkeypatch):
    workspace, reward = trained
    root = workspace.root
    monkeypatch.setattr(score_stage, "PART_ROWS", 20)
    rows = candidates_of(workspace.grades)
    inputs = {"candidates": publish(root, "generate", Candidate, rows), "reward": reward}
    request = stage_request("score", 1, SCORING, inputs)
    folder = work_of(root, request)
    status = in_child(request, root, lambda: len(list(folder.glob("scores-*.parquet"))) >= 2, signal.SIGKILL)
    assert os.WTERMSIG(status) == signal.SIGKILL
    scored = []
    score = score_stage.score

    def counted(model: Any, encoder: Any, some: list[Any]) -> Any:
        scored.append(len(some))
        return score(model, encoder, some)

    monkeypatch.setattr(score_stage, "score", counted)
    whole = published(root, run_stage(root, request.model_copy(update={"attempt": 2})))
    ok = [row.triplet_id for row in rows if row.outcome == "ok"]
    assert 0 < sum(scored) <= len(ok) - 2 * 20
    assert [row.triplet_id for row in whole.rows(Score)] == ok
    assert whole.manifest.counters["scored"] == len(ok)

    split = stage_request("score", 1, {**SCORING, "shards": 3}, inputs)
    for index in range(3):
        assert execute(split.model_copy(update={"shard": Shard(index=index, count=3)}), root) == 0
    path = f"artifacts/score/{split.input_hash}"
    shards = ArtifactReader(root, ArtifactRef(stage="score", iteration=1, path=path, output_digest=""))
    assert len(shards.shards) == 3
    found = {row.triplet_id: row.score for row in shards.rows(Score)}
    assert found.keys() == set(ok)
    assert found == pytest.approx({row.triplet_id: row.score for row in whole.rows(Score)}, abs=1e-5)


def test_no_candidates(trained):
    workspace, reward = trained
    none = publish(workspace.root, "generate", Candidate, [torn_candidate()], "e")
    request = stage_request("score", 2, SCORING, {"candidates": none, "reward": reward})
    assert published(workspace.root, run_stage(workspace.root, request)).rows(Score) == []
