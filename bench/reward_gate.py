"""Which reward models the promotion gate lets through, and what they are worth on questions that no split holds.

    make bench NAME=reward_gate                    # some fifteen minutes on two cores
    python -m bench.reward_gate --seed 100

Every arm is held against the R⁽⁰⁾ of its setting, by the gate (docs/decisions.md, 7) and by the rule of earlier
versions (rank correlation, pairs in order, image sensitivity on held-out grades no more than 0.02 below, mean absolute
error no more than 0.32 above):

| arm | reward model | held against |
|---|---|---|
| longer | trained as a whole for 720 steps instead of 360: it learns 60 images by heart | R⁽⁰⁾ trained as a whole |
| longer, again | the same with the rows in another order | the same |
| retrained | what the quickstart makes of the questions that round 1 settles | the quickstart's R⁽⁰⁾ |

Their worth is the share of 1,000 fresh questions about 250 fresh phantoms whose right option scores highest, and the
AUROC of right against wrong options; both paired with the model that they are held against, images drawn together.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from bench._cycles import Cycle
from bench.reward import ARMS, fresh
from medgr2_api import paths
from medgr2_api.presets import resolve
from medgr2_api.reward_model import ResolvedPromotion
from medgr2_api.stage_contract import ArtifactRef, CycleRef, StageRequest
from medgr2_api.stages import input_hash, stage_seed
from medgr2_api.stages.reward import RewardParameters
from medgr2_api.training_spec import AnswerFormat
from medgr2_api.yaml_loader import load_cycle
from medgr2_jobs.evaluate.metrics import Interval
from medgr2_jobs.models import vlm
from medgr2_jobs.reward.model import RewardModel
from medgr2_jobs.reward.option_scores import option_scores
from medgr2_jobs.reward.promotion import gate
from medgr2_jobs.reward.validation_answers import ValidationAnswers
from medgr2_jobs.runner.main import execute
from medgr2_jobs.store import manifest
from medgr2_jobs.store.artifact import ArtifactReader
from medgr2_jobs.store.images import ImageStore
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.prepared import GradedRow
from medgr2_jobs.store.rows.training import CalibrationRow, RewardAnswer

_ONLY_R = [{"name": name, "enabled": False} for name in ("curate", "sft", "grpo", "evaluate", "report")]
_STEPS = 720
_BEFORE = ("spearman", "pairwise_accuracy", "image_sensitivity")


@dataclass(frozen=True)
class Judged:
    """A reward model with all that is known of it."""

    counters: dict[str, float]
    """On held-out grades, among others."""
    validation: ValidationAnswers
    fresh: ValidationAnswers

    def passed_before(self, old: Judged) -> bool:
        """The gate of earlier versions, with its default of maxRegression."""
        kept = all(self.counters[name] >= old.counters[name] - 0.02 for name in _BEFORE)
        return kept and self.counters["mae"] <= old.counters["mae"] + 0.02 * 16


class Judge:
    """Reads reward models out of a workspace and asks them fresh questions."""

    def __init__(self, root: Path, prepare: ArtifactReader, seed: int) -> None:
        self._heldout = [row for row in prepare.rows(GradedRow) if row.split is Split.HELDOUT]
        self._fresh = fresh(root, seed)
        self._images = ImageStore(root)

    def judged(self, reward: ArtifactReader) -> Judged:
        """What the artifact says of its model, and what the model says to the fresh questions."""
        folder = reward.folder_of("model")
        encoder = vlm.Encoder(vlm.load_processor(folder), self._images)
        rationales = [asked.rationale for asked in self._fresh]
        scores = option_scores(RewardModel.load(folder), encoder, self._fresh, rationales, AnswerFormat.OPTION_TEXT)
        images, gold = zip(*((asked.image_sha256, asked.answer_index) for asked in self._fresh), strict=True)
        grades = np.array([row.score for row in reward.rows(CalibrationRow)])
        return Judged(
            reward.manifest.counters,
            ValidationAnswers.of(reward.rows(RewardAnswer), self._heldout, grades),
            ValidationAnswers(images, tuple(scores), gold),
        )


def reader_at(root: Path, stage: str, iteration: int, folder: Path) -> ArtifactReader:
    """A published artifact."""
    published = manifest.load(folder)
    assert published is not None, f"{folder} has no manifest"
    path = str(folder.resolve().relative_to(root.resolve()))
    return ArtifactReader(
        root, ArtifactRef(stage=stage, iteration=iteration, path=path, output_digest=published.output_digest)
    )


def artifact(cycle: Cycle, stage: str, iteration: int) -> ArtifactReader:
    """What a stage of a cycle published."""
    return reader_at(cycle.workspace, stage, iteration, Path(cycle.manifest(stage, iteration)["folder"]))


def longer(prepare: ArtifactReader, first: ArtifactReader, root: Path, seed: int) -> ArtifactReader:
    """R trained on D_grade as `first` was, but for more steps, the rows in the order of this seed."""
    parameters = RewardParameters.model_validate({**first.manifest.parameters, "seed": seed})
    parameters.training.trainer["max_steps"] = _STEPS
    name = f"longer-{seed}"
    request = StageRequest(
        cycle=CycleRef(name=name, uid=name),
        iteration=0,
        stage="reward",
        input_hash=input_hash("reward", parameters, {"prepare": prepare.digest}),
        parameters=parameters.dump(),
        inputs={"prepare": prepare.ref},
    )
    if code := execute(request, root):
        raise RuntimeError(f"{name} ended with {code}")
    return reader_at(root, "reward", 0, root / paths.artifact("reward", request.input_hash))


def line(name: str, one: Judged, old: Judged, promotion: ResolvedPromotion) -> str:
    """A row of the table."""
    gains, new = one.validation.gain_over(old.validation), one.fresh.gain_over(old.fresh)
    decision = gate(one.counters, promotion, one.validation.measures(), gains)
    before, now = ("passes" if passed else "refused" for passed in (one.passed_before(old), decision.passed))
    figures = [f"{one.counters[measure]:.3f}" for measure in (*_BEFORE, "mae")]
    shown = [points(of[measure]) for of in (gains, new) for measure in ("answer_auroc", "answer_accuracy")]
    return f"| {' | '.join([name, *figures, before, *shown[:2], now, *shown[2:]])} |"


def points(gain: Interval) -> str:
    """In points, with its interval."""
    return f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def main() -> int:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--workspace", type=Path, default=None, help="kept; default: a temporary folder")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = given.workspace or Path(temporary)
        once = {"iterations": 1, "stages": _ONLY_R}
        whole = Cycle(root, given.seed, "whole", **once, rewardModel={"training": ARMS["whole"]}).run()
        loop = Cycle(root, given.seed, "loop").run()
        prepare, first = artifact(whole, "prepare", 0), artifact(whole, "reward", 0)
        judge = Judge(root, prepare, given.seed)
        seeds = [stage_seed(given.seed, "reward", iteration) for iteration in (0, 1)]
        arms = {
            "longer": (longer(prepare, first, root, seeds[0]), first),
            "longer, again": (longer(prepare, first, root, seeds[1]), first),
            "retrained": (artifact(loop, "reward", 1), artifact(loop, "reward", 0)),
        }
        promotion = resolve(load_cycle(loop.file).spec).reward_model.promotion
        head = ["R", *_BEFORE, "mae", "before", "validation AUROC", "top-1", "now", "fresh AUROC", "top-1"]
        print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
        for name, (reward, in_force) in arms.items():
            print(line(name, judge.judged(reward), judge.judged(in_force), promotion), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
