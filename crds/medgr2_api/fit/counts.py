"""How many rows each stage goes through, as far as the spec tells."""

from __future__ import annotations

from dataclasses import dataclass

from medgr2_api.cycle import ResolvedSpec
from medgr2_api.data import SourceRole
from medgr2_api.reward_model import RetrainOn
from medgr2_api.stages import GENERATE, SCORE

from .assumptions import Assumptions


@dataclass(frozen=True)
class DataSize:
    """What the sources and benchmarks hold."""

    seed_questions: int
    """With gold answers, of all splits."""
    images: int
    """Of sources and benchmarks."""
    benchmark_questions: int
    guessed: tuple[str, ...] = ()
    """Which of the three nobody has counted."""


#: Of a phantom (`medgr2_jobs.data.synthetic_images.SIZE`).
DRAWN_PIXELS = 56 * 56
#: What is taken where nobody has counted.
_SEED, _IMAGES, _BENCHMARK = 5_000, 20_000, 5_000


def data_of(
    spec: ResolvedSpec, *, seed: int | None = None, images: int | None = None, benchmark: int | None = None
) -> DataSize:
    """The data's size: what is given, else counted where all is drawn by code, else a guess that is told."""
    drawn = spec.data.drawn
    of_seed = [s.phantom for s in spec.data.sources if s.phantom is not None and s.role is SourceRole.SEED]
    of_sources = [s.phantom for s in spec.data.sources if s.phantom is not None]
    of_tests = [b.phantom for b in spec.data.benchmarks if b.phantom is not None]
    counted = {
        "seed questions": sum(p.images * p.questions_per_image for p in of_seed),
        "images": sum(p.images for p in [*of_sources, *of_tests]),
        "benchmark questions": sum(p.images * p.questions_per_image for p in of_tests),
    }
    if not spec.data.benchmarks:
        benchmark = 0
    given = {"seed questions": seed, "images": images, "benchmark questions": benchmark}
    guesses = {"seed questions": _SEED, "images": _IMAGES, "benchmark questions": _BENCHMARK}
    otherwise = counted if drawn else guesses
    values = {name: otherwise[name] if value is None else value for name, value in given.items()}
    guessed = tuple(f"{values[name]:,} {name}" for name, value in given.items() if value is None and not drawn)
    return DataSize(values["seed questions"], values["images"], values["benchmark questions"], guessed)


@dataclass(frozen=True)
class Counts:
    """Rows of one iteration; where they grow from iteration to iteration, those of the mean one."""

    candidates: int
    train_seed: int
    graded: int
    """Rows of D_grade that train R⁽⁰⁾."""
    kept: float
    """Candidates that are kept, of one iteration."""
    taught: float
    """Rows of D_gen that SFT reads: the seed, and what was kept in all iterations so far."""
    prompts: float
    """Of GRPO."""
    retrained: float
    """Rows that R is retrained on."""
    asked: float
    """Questions that are cross-examined."""
    evaluated: int
    """Questions of validation and benchmarks."""

    @classmethod
    def of(cls, spec: ResolvedSpec, data: DataSize, known: Assumptions) -> Counts:
        """From the spec, the data and what is assumed of curation."""
        split, m = spec.data.split, spec.reward_model.mismatches_per_item
        candidates = spec.generator.candidates if spec.stage(GENERATE.name).enabled else 0
        train = round(data.seed_questions * (1 - split.validation_fraction - split.test_fraction))
        rows_an_item = 4 + 2 * m  # four grades; m wrong answers more, and m wrong images (docs/grades.md)
        kept = candidates * (known.kept.value if spec.stage(SCORE.name).enabled else 1.0)
        seen = (spec.iterations + 1) / 2  # iterations whose candidates a training reads, on average
        asked = float(min(candidates, spec.cross_examination.max_questions))
        preferences = spec.policy.preferences
        settled = spec.reward_model.retrain_on is RetrainOn.CROSS_EXAMINED
        fresh = asked * seen * rows_an_item if settled else preferences.prompts * preferences.samples_per_prompt
        from_candidates = spec.policy.grpo.prompt_source == "Candidates"
        return cls(
            candidates=candidates,
            train_seed=train,
            graded=train * rows_an_item,
            kept=kept,
            taught=train + seen * kept,
            prompts=train + (candidates if from_candidates else seen * kept),
            retrained=fresh / (1 - spec.reward_model.replay_fraction),
            asked=asked,
            evaluated=round(data.seed_questions * split.validation_fraction)
            + round(data.seed_questions * split.test_fraction)
            + data.benchmark_questions,
        )
