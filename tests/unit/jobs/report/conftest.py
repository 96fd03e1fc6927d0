"""A workspace with the artifacts of a two-iteration cycle, made by hand: every figure in the report is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.fake_artifacts import publish
from tests.support.rows import row_of

from medgr2_api.stage_contract import ArtifactRef, CycleRef, StageRequest
from medgr2_api.stages.report import ReportParameters
from medgr2_jobs.evaluate.metrics import ItemSet, QuestionSet, measurements
from medgr2_jobs.prompts import answers
from medgr2_jobs.runner.context import StageContext
from medgr2_jobs.store.rows import Item, Prediction

OPTIONS = ["cyst", "mass", "nodule", "plaque"]
#: share of right answers under the real image, by iteration and checkpoint
TRUE_ACCURACY = {(0, "base"): 0.25, (1, "sft"): 0.65, (1, "grpo"): 0.66, (2, "sft"): 0.84, (2, "grpo"): 0.88}


def question(number: int, split: str) -> dict[str, Any]:
    image = f"{split}{number // 4:04d}"
    return {"item_id": f"{split}-{number}", "source": "seed", "split": split,
            "benchmark": "phantoms" if split == "test" else "", "image_sha256": image,
            "modality": ["CT", "MRI", "OCT"][number // 4 % 3], "question_type": ["finding", "count"][number % 2],
            "question": "What ?", "options": OPTIONS, "answer_index": number % 4, "rationale": ""}  # fmt: skip


def predict(
    items: list[dict[str, Any]], checkpoint: str, condition: str, scoring: str, share: float, seed: int
) -> list[dict[str, Any]]:
    """Exactly `share` of the answers are right."""
    order = np.random.default_rng(seed).permutation(len(items))
    right = set(order[: round(share * len(items))].tolist())
    rows = []
    for index, item in enumerate(items):
        picked = item["answer_index"] if index in right else (item["answer_index"] + 1) % 4
        lost = scoring == "greedy" and index not in right and index % 2 == 0
        rows.append(
            {
                **{k: item[k] for k in ("item_id", "image_sha256", "modality", "question_type", "answer_index")},
                "checkpoint": checkpoint, "split": item["split"], "benchmark": item["benchmark"],
                "condition": condition, "scoring": scoring, "predicted": None if lost else picked,
                "correct": index in right, "text": "",
                "option_logprobs": [] if scoring == "greedy" else [-0.1 if o == picked else -4.0 for o in range(4)],
            }
        )  # fmt: skip
    return rows


def publish_cycle(root: Path, cycle: str = "trial", *, better: float = 0.0) -> dict[str, ArtifactRef]:
    """Inputs of report@2, by role; `better` is added to the accuracy of every trained checkpoint."""
    sets = {split: [question(n, split) for n in range(count)] for split, count in (("validation", 60), ("test", 240))}
    train = [question(n, "train") for n in range(8)]
    refs = {
        "prepare": publish(
            root, "prepare", 0, tables={"items": [*train, *sets["validation"], *sets["test"]]}, cycle=cycle
        )
    }
    for t in (0, 1, 2):
        results, predictions = [], []
        for number, (split, items) in enumerate(sets.items()):
            mine = []
            for (iteration, checkpoint), share in TRUE_ACCURACY.items():
                if iteration != t:
                    continue
                real = share + (better if t else 0)
                seed = 100 * t + 10 * number + len(checkpoint)
                mine += predict(items, checkpoint, "real", "option_logprob", real, seed)
                mine += predict(items, checkpoint, "real", "greedy", real - 0.05, seed)
                for offset, (condition, blind) in enumerate(
                    (("blank", 0.25), ("shuffled", 0.4), ("options_only", 0.2))
                ):
                    mine += predict(items, checkpoint, condition, "option_logprob", blind, seed + offset + 1)
            if t == 0:
                mine += predict(items, "base", "option_prior", "option_logprob", 0.3, 7)
            found = measurements(
                ItemSet([row_of(Item, **item) for item in items]),
                [row_of(Prediction, **row) for row in mine],
                iteration=t,
                questions=QuestionSet(split, items[0]["benchmark"]),
                seed=1,
                chance=t == 0,
            )
            results += [asdict(row) for row in found]
            predictions += mine
        refs[f"evaluate-{t}"] = publish(
            root,
            "evaluate",
            t,
            tables={"predictions": predictions},
            files={"results.json": results},
            cycle=cycle,
        )
    lineage: list[dict[str, Any]] = []
    training = [training_row(f"seed{n}", "seed", 0, f"train{n:04d}") for n in range(4)]
    for t in (1, 2):
        lineage, training = _publish_iteration(root, cycle, t, refs, lineage, training)
    return refs


def training_row(name: str, origin: str, iteration: int, image: str) -> dict[str, Any]:
    return {"row_id": name, "origin": origin, "iteration": iteration, "image_sha256": image, "modality": "CT",
            "question_type": "finding", "question": f"{name} ?", "options": OPTIONS, "answer_index": 0,
            "response": "", "score": None}  # fmt: skip


def _publish_iteration(
    root: Path, cycle: str, t: int, refs: dict[str, ArtifactRef], lineage: list[Any], training: list[Any]
) -> tuple[list[Any], list[Any]]:
    random = np.random.default_rng(t)
    candidates, truth, decisions, fresh = [], [], [], []
    for n in range(500):
        correct = bool(n % 5 < 3)  # 60 % are right
        score = float(np.clip(random.normal(5.5 if correct else -1.5, 2.2), -6, 10))
        name, keep = f"t{t}-{n}", score > 2.5
        row = training_row(name, "generated", t, f"pool{n:04d}")
        shown = {key: row[key] for key in ("image_sha256", "modality", "question_type", "question", "options")}
        candidates.append({"triplet_id": name, "iteration": t, **shown, "answer_index": 0, "rationale": "",
                           "response": "", "paradigm": "Direct", "template_sha256": "x", "generator": "scripted",
                           "outcome": "ok", "attempts": 1, "input_tokens": 0, "output_tokens": 0,
                           "usd": 0.0})  # fmt: skip
        truth.append({"triplet_id": name, "kind": "good", "correct": correct})
        decisions.append(
            {"triplet_id": name, "keep": keep, "score": score, "reasons": [] if keep else ["below_threshold"]}
        )
        copied = ("triplet_id", "iteration", "image_sha256", "question", "paradigm", "template_sha256", "generator")
        fresh.append({**{k: candidates[-1][k] for k in copied}, "score": score, "reward_digest": "r", "keep": keep,
                      "reasons": decisions[-1]["reasons"]})  # fmt: skip
    lineage = [*lineage, *fresh]
    training = [
        *training,
        *(training_row(r["triplet_id"], "generated", t, r["image_sha256"]) for r in fresh if r["keep"]),
    ]
    text = answers.prompt_text(candidates[0]["question"], OPTIONS, answers.AnswerFormat.OPTION_TEXT)
    rollout = {"step": 1, "prompt_id": answers.Prompt(candidates[0]["image_sha256"], text).prompt_id, "completion": "",
               "reward": 0.5, "reward_model": 0.5, "match": None, "parsed": True}  # fmt: skip
    log = [
        {"step": s, "loss": 0.0, "reward": 0.6 + 0.004 * s + 0.03 * random.normal(), "kl": 0.0} for s in range(1, 41)
    ]
    figures = {"prompts": 500.0, "steps": 40.0, "reward_first": 0.62, "reward_last": 0.75, "match": 0.7,
               "parse_failures": 0.02, "zero_variance_groups": 0.1, "variance_share_reward_model": 0.8,
               "variance_share_match": 0.2}  # fmt: skip
    held_out = {"spearman": 0.9 + 0.01 * t, "pairwise_accuracy": 0.95, "image_sensitivity": 0.88, "auroc": 0.98}
    made: dict[str, dict[str, Any]] = {
        "generate": {"tables": {"candidates": candidates, "truth": truth}},
        "curate": {
            "tables": {"decisions": decisions, "training": training, "lineage": lineage}, "counters": {"threshold": 2.5}
        },
        "sft": {"files": {"log.json": []}},
        "grpo": {
            "tables": {"rollouts": [rollout]}, "files": {"log.json": log}, "counters": figures,
            "parameters": {"answerFormat": "OptionText"},
        },
        "reward": {"files": {"metrics.json": {}}, "counters": held_out, "promoted": t == 1},
    }  # fmt: skip
    for stage, parts in made.items():
        refs[f"{stage}-{t}"] = publish(root, stage, t, **parts, cycle=cycle)
    return lineage, training


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
