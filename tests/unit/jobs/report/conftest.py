"""A workspace with the artifacts of a two-iteration cycle, made by hand: every figure in the report is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.cycle_documents import spec_with
from tests.support.fake_artifacts import publish
from tests.support.rows import row_of

from medgr2_api.presets import resolve
from medgr2_api.stage_contract import ArtifactRef, CycleRef, StageRequest
from medgr2_api.stages import stage_parameters
from medgr2_api.stages.report import ReportParameters
from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.evaluate.metrics import ItemSet, QuestionSet, measurements
from medgr2_jobs.evaluate.release import PairedDifference, Release, TrainedOn
from medgr2_jobs.prompts import answers
from medgr2_jobs.runner.context import StageContext
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.candidates import Candidate, CandidateOutcome, Decision, Score, Truth, triplet_of
from medgr2_jobs.store.rows.evaluation import EvalCondition, Prediction, Scoring
from medgr2_jobs.store.rows.prepared import Image, Item, QuarantinedRecord, SetAside
from medgr2_jobs.store.rows.training import Rollout

OPTIONS = ("cyst", "mass", "nodule", "plaque")
#: Parameters of stage curate.
CURATION: dict[str, Any] = {
    "seed": 5, "answerFormat": "Letter", "curation": {"selection": {"strategy": "Threshold", "threshold": 2}},
}  # fmt: skip
#: share of right answers under the real image, by iteration and checkpoint
TRUE_ACCURACY = {(0, "base"): 0.25, (1, "sft"): 0.65, (1, "grpo"): 0.66, (2, "sft"): 0.84, (2, "grpo"): 0.88}
CONTROL_ACCURACY = {EvalCondition.BLANK: 0.25, EvalCondition.SHUFFLED: 0.4, EvalCondition.OPTIONS_ONLY: 0.2}


def question(number: int, split: Split) -> Item:
    return row_of(
        Item,
        item_id=f"{split}-{number}",
        source="seed",
        split=split,
        benchmark="phantoms" if split is Split.TEST else "",
        image_sha256=f"{split}{number // 4:04d}",
        modality=["CT", "MRI", "OCT"][number // 4 % 3],
        question_type=["finding", "count"][number % 2],
        question="What ?",
        options=OPTIONS,
        answer_index=number % 4,
    )


def predict(
    items: Sequence[Item], checkpoint: str, condition: EvalCondition, scoring: Scoring, share: float, seed: int
) -> list[Prediction]:
    """Exactly `share` of the answers are right."""
    order = np.random.default_rng(seed).permutation(len(items))
    right = set(order[: round(share * len(items))].tolist())
    greedy = scoring is Scoring.GREEDY
    rows = []
    for index, item in enumerate(items):
        picked = item.answer_index if index in right else (item.answer_index + 1) % 4
        lost = greedy and index not in right and index % 2 == 0
        rows.append(
            Prediction(
                checkpoint=checkpoint, split=item.split, benchmark=item.benchmark, item_id=item.item_id,
                image_sha256=item.image_sha256, modality=item.modality, question_type=item.question_type,
                condition=condition, scoring=scoring, answer_index=item.answer_index,
                predicted=None if lost else picked, correct=index in right,
                option_logprobs=() if greedy else tuple(-0.1 if o == picked else -4.0 for o in range(4)), text="",
            )
        )  # fmt: skip
    return rows


#: Of iteration 2, where GRPO made the policy worse on validation, and where it was not trained at all.
RELEASES = {
    "worse": Release(60, goes_on="sft", sft=0.84, grpo=0.8, grpo_over_sft=PairedDifference(-0.04, -0.09, 0.01)),
    "skipped": Release(
        60, TrainedOn.NOTHING, goes_on="sft", sft=0.84, reward=0.8, sft_over_reward=PairedDifference(0.04, -0.01, 0.09)
    ),
}


def publish_cycle(
    root: Path, cycle: str = "trial", *, better: float = 0.0, release: str = ""
) -> dict[str, ArtifactRef]:
    """Inputs of report@2, by role.

    Args:
        root: the workspace.
        cycle: its name.
        better: is added to the accuracy of every trained checkpoint.
        release: one of `RELEASES`.
    """
    validation = [question(number, Split.VALIDATION) for number in range(60)]
    test = [question(number, Split.TEST) for number in range(240)]
    train = [question(number, Split.TRAIN) for number in range(8)]
    tables = {Item: [*train, *validation, *test], Image: []}
    tables[QuarantinedRecord] = [
        QuarantinedRecord("seed", "q.json[3]", "image_path", "/ws/x.png: image file is missing", SetAside.UNUSABLE),
        QuarantinedRecord("scans", "a.dcm", "PixelData", "is missing", SetAside.NO_PICTURE),
        QuarantinedRecord("scans", "b|c.dcm", "Rows", "claims 5 samples", SetAside.UNUSABLE),
        QuarantinedRecord("scans", "d.dcm", "Rows", "claims 6 samples", SetAside.UNUSABLE),
    ]
    refs = {"prepare": publish(root, "prepare", 0, tables=tables, cycle=cycle)}
    for t in (0, 1, 2):
        results, predictions = [], []
        for number, items in enumerate((validation, test)):
            mine: list[Prediction] = []
            for (iteration, checkpoint), share in TRUE_ACCURACY.items():
                if iteration != t or (release == "skipped" and (t, checkpoint) == (2, "grpo")):
                    continue
                real = share + (better if t else 0)
                seed = 100 * t + 10 * number + len(checkpoint)
                mine += predict(items, checkpoint, EvalCondition.REAL, Scoring.OPTION_LOGPROB, real, seed)
                mine += predict(items, checkpoint, EvalCondition.REAL, Scoring.GREEDY, real - 0.05, seed)
                for offset, (condition, blind) in enumerate(CONTROL_ACCURACY.items(), 1):
                    mine += predict(items, checkpoint, condition, Scoring.OPTION_LOGPROB, blind, seed + offset)
            if t == 0:
                mine += predict(items, "base", EvalCondition.OPTION_PRIOR, Scoring.OPTION_LOGPROB, 0.3, 7)
            measured = measurements(
                ItemSet(items), mine, iteration=t, questions=QuestionSet(items[0].split, items[0].benchmark), seed=1,
                chance=t == 0,
            )  # fmt: skip
            results += [asdict(row) for row in measured]
            predictions += mine
        refs[f"measure-{t}"] = publish(
            root,
            "measure",
            t,
            tables={Prediction: predictions},
            files={"results.json": results},
            cycle=cycle,
        )
    for t in (1, 2):
        _publish_iteration(root, cycle, t, refs, release if t == 2 else "")
    return refs


def candidate_of(t: int, n: int) -> Candidate:
    return row_of(
        Candidate,
        triplet_id=f"t{t}-{n}",
        iteration=t,
        image_sha256=f"pool{n:04d}",
        modality="CT",
        question_type="finding",
        question=f"t{t}-{n} ?",
        options=OPTIONS,
        answer_index=0,
        rationale="",
        response="",
        paradigm="Direct",
        outcome=CandidateOutcome.OK,
        attempts=1,
    )


def _publish_iteration(root: Path, cycle: str, t: int, refs: dict[str, ArtifactRef], release: str) -> None:
    random = np.random.default_rng(t)
    candidates = [candidate_of(t, n) for n in range(500)]
    truth = [Truth(row.triplet_id, "good", n % 5 < 3) for n, row in enumerate(candidates)]  # 60 % are right
    scores = [
        Score(row.triplet_id, float(np.clip(random.normal(5.5 if row.correct else -1.5, 2.2), -6, 10))) for row in truth
    ]
    decisions = [
        Decision(row.triplet_id, row.score > 2.5, () if row.score > 2.5 else ("below_threshold",), None)
        for row in scores
    ]
    prompt = answers.prompt_of(triplet_of(candidates[0]), AnswerFormat.OPTION_TEXT)
    rollout = Rollout(1, prompt.prompt_id, completion="", reward=0.5, reward_model=0.5, match=None, parsed=True)
    log = [
        {"step": s, "loss": 0.0, "reward": 0.6 + 0.004 * s + 0.03 * random.normal(), "kl": 0.0} for s in range(1, 41)
    ]
    figures = {"prompts": 500.0, "steps": 40.0, "reward_first": 0.62, "reward_last": 0.75, "match": 0.7,
               "parse_failures": 0.02, "zero_variance_groups": 0.1, "variance_share_reward_model": 0.8,
               "variance_share_match": 0.2}  # fmt: skip
    held_out = {"spearman": 0.9 + 0.01 * t, "pairwise_accuracy": 0.95, "image_sensitivity": 0.88, "auroc": 0.98}
    made: dict[str, dict[str, Any]] = {
        "generate": {"tables": {Candidate: candidates, Truth: truth}},
        "score": {"tables": {Score: scores}},
        "curate": {"tables": {Decision: decisions}, "counters": {"threshold": 2.5}},
        "sft": {"files": {"log.json": []}},
        "grpo": {
            "tables": {Rollout: [rollout]}, "files": {"log.json": log}, "counters": figures,
            "parameters": grpo_parameters(AnswerFormat.OPTION_TEXT),
        },
        "reward": {"files": {"metrics.json": {}}, "counters": held_out, "promoted": t == 1},
    }  # fmt: skip
    if release:
        found = RELEASES[release]
        made["grpo"]["files"]["release.json"] = json.loads(found.to_json())
        made["grpo"] |= {"promoted": False, "counters": {**figures, **found.counters()}}
        if found.trained_on is TrainedOn.NOTHING:
            only = {"release.json": made["grpo"]["files"]["release.json"]}
            made["grpo"] |= {"tables": {}, "files": only, "counters": found.counters()}
    for stage, parts in made.items():
        refs[f"{stage}-{t}"] = publish(root, stage, t, **parts, cycle=cycle)


def grpo_parameters(answer_format: AnswerFormat) -> dict[str, Any]:
    """Of a stage grpo, as its manifest has them."""
    spec = resolve(spec_with({"answerFormat": answer_format.value}))
    return stage_parameters(spec, "trial", "grpo", 1).dump()


@pytest.fixture(scope="session")
def trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, ArtifactRef]]:
    root = tmp_path_factory.mktemp("report")
    return root, publish_cycle(root)


@pytest.fixture
def context() -> Callable[..., StageContext[ReportParameters]]:
    def make(root: Path, inputs: dict[str, ArtifactRef], cycle: str = "trial", attempt: int = 1) -> StageContext[Any]:
        parameters = ReportParameters(seed=1, cycle=cycle, iteration=2, settings={"preset": "Tiny", "seed": 17})
        request = StageRequest(
            cycle=CycleRef(name=cycle, uid=f"{cycle}-uid"), iteration=2, stage="report", attempt=attempt,
            input_hash=f"{len(inputs):064d}", parameters=parameters.dump(), inputs=inputs,
        )  # fmt: skip
        made = StageContext(request, parameters, root)
        made.writer.open()
        return made

    return make
