"""Stage preferences: the policy's own answers, graded, for the next reward model (DECISIONS 6).

Each answer gets a target by rule, not by R: on seed questions the right answer is known, on kept candidates it is the
filter's opinion (`gold` is false there, and at most 1 - seedFraction of the prompts are such).
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medgr2_api.stages.preferences import PreferencesParameters
from medgr2_api.training_spec import Grades

from ..errors import DataError
from ..models import vlm
from ..models.vlm import Encoder, Row
from ..policy.dataset import Records
from ..prompts import answers
from ..runner.context import Outcome, StageContext
from ..store import atomic

_BATCH = 128  # samples per batch and part
_HELD_OUT = 8  # every n-th prompt comes from the validation split, for R's promotion gates
_LONGEST = 512  # tokens
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL | re.IGNORECASE)


def run(ctx: StageContext[PreferencesParameters]) -> Outcome:
    """Samples the policy and publishes table `preferences`.

    Raises:
        DataError: there is no question to ask.
        Checkpointed: asked to stop; finished parts stay.
    """
    parameters = ctx.parameters
    wanted = parameters.preferences
    training = ctx.input(f"curate-{ctx.request.iteration}").rows("training")
    prompts = choose_prompts(
        training, ctx.input("prepare").rows("items"), wanted.prompts, wanted.seed_fraction, parameters.seed
    )
    folder = ctx.input("policy").folder_of("model")
    encoder = Encoder(vlm.load_processor(folder), ctx.images)
    model = vlm.load_model(folder)
    limit = longest_answer(encoder, training)

    rows: list[dict[str, Any]] = []
    drawn: Counter[str] = Counter()
    parts = list(vlm.chunks(prompts, max(1, _BATCH // wanted.samples_per_prompt)))
    for index, part in enumerate(parts):
        ctx.progress("sample", index, len(parts))
        ctx.check_stop(index)
        path = ctx.work / f"part-{index:05d}.json"
        if not path.is_file():
            # its own seed: a part is the same whether or not the ones before it were drawn in this process
            torch.manual_seed((parameters.seed + index) % 2**31)
            _sample_part(path, part, model, encoder, parameters, limit)
        part_rows, grades = json.loads(path.read_text())
        rows += part_rows
        drawn.update(grades)
    ctx.progress("sample", len(parts), len(parts))

    ctx.writer.table("preferences", rows)
    return Outcome(counters=_counters(prompts, rows, drawn))


def choose_prompts(
    training: Records, items: Records, count: int, seed_fraction: float, seed: int
) -> list[dict[str, Any]]:
    """Draws the questions to ask, gold ones first.

    Args:
        training: D_gen: seed rows are gold, candidate rows are kept candidates.
        items: prepare's; those of split `validation` make the held-out part, which R is not trained on.
        count: how many prompts in all; fewer when there are not so many questions.
        seed_fraction: least share of gold among those not held out.
        seed: of the draw.

    Returns:
        Rows of the question's columns, `answer_index`, `split` (train or heldout) and `gold`.

    Raises:
        DataError: there is no question with an answer.
    """
    draw = random.Random(seed)

    def some(records: Records, number: int, split: str, gold: bool) -> list[dict[str, Any]]:
        answered = {
            (record["image_sha256"], record["question"], tuple(record["options"])): record
            for record in records
            if record["answer_index"] is not None
        }
        found = list(answered.values())
        chosen = draw.sample(found, min(number, len(found)))
        return [{**record, "split": split, "gold": gold} for record in chosen]

    validation = [item for item in items if item["split"] == "validation"]
    seeds = [record for record in training if record["origin"] == "seed"]
    kept = [record for record in training if record["origin"] != "seed"]

    heldout = some(validation, count // _HELD_OUT, "heldout", True)
    rest = count - len(heldout)
    gold = some(seeds, max(math.ceil(seed_fraction * rest), rest - len(kept)), "train", True)
    most = rest - len(gold)
    if seed_fraction > 0:  # few seeds: rather fewer prompts than a larger share of the filter's opinion
        most = min(most, math.floor(len(gold) * (1 - seed_fraction) / seed_fraction))
    prompts = [*gold, *some(kept, most, "train", False), *heldout]
    if not prompts:
        raise DataError("no question to ask the policy: the training set has neither seed questions nor candidates")
    return prompts


def longest_answer(encoder: Encoder, training: Records) -> int:
    """Tokens an answer may have: half as long again as the longest that was taught, and 8; at most 512."""
    texts = [record["response"] or "" for record in training]
    ids = encoder.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return min(_LONGEST, math.ceil(1.5 * max(map(len, ids))) + 8)


def grade(text: str, options: Sequence[str], answer_index: int) -> str:
    """The grade of an answer, as a field of `Grades`.

    original: right and in format. perturbed: right, but not in format, or its rationale speaks for another option.
    incoherent: no answer can be read from it. irrelevant: wrong.
    """
    picked = answers.extract(text, options)
    if picked is None:
        return "incoherent"
    if picked != answer_index:
        return "irrelevant"
    return "original" if answers.well_formed(text) and not contradicts(text, options, picked) else "perturbed"


def contradicts(text: str, options: Sequence[str], picked: int) -> bool:
    """Whether the rationale names another option and not the one that is then answered."""
    rationale = f" {answers.normalise(' '.join(_THINK.findall(text)))} "
    named = [
        index
        for index, option in enumerate(options)
        if answers.normalise(option) and re.search(rf"\W{re.escape(answers.normalise(option))}\W", rationale)
    ]
    return bool(named) and picked not in named


def _sample_part(
    path: Path,
    prompts: Sequence[dict[str, Any]],
    model: Any,
    encoder: Encoder,
    parameters: PreferencesParameters,
    limit: int,
) -> None:
    """Draws and grades the samples of some prompts; writes the distinct ones, and how many were drawn of each grade."""
    wanted = parameters.preferences
    texts = [answers.prompt_text(p["question"], p["options"], parameters.answer_format) for p in prompts]
    asked = [
        Row(prompt["image_sha256"], text)
        for prompt, text in zip(prompts, texts, strict=True)
        for _ in range(wanted.samples_per_prompt)
    ]
    said = vlm.generate(
        model, encoder, asked, max_new_tokens=limit, temperature=wanted.temperature, batch_size=len(asked)
    )
    rows: list[dict[str, Any]] = []
    drawn: Counter[str] = Counter()
    for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        name = answers.Prompt(prompt["image_sha256"], text).prompt_id
        samples = Counter(said[index * wanted.samples_per_prompt : (index + 1) * wanted.samples_per_prompt])
        for sample, times in samples.items():  # in the order of their first appearance
            rows.append(_row(prompt, name, sample, parameters.grades))
            drawn[rows[-1]["grade"]] += times
    atomic.write_text(path, json.dumps([rows, drawn]))


def _row(prompt: dict[str, Any], name: str, text: str, grades: Grades) -> dict[str, Any]:
    found = grade(text, prompt["options"], prompt["answer_index"])
    columns = ("image_sha256", "modality", "question_type", "question", "options", "split", "gold")
    return {
        "sample_id": hashlib.sha256(f"{name}\n{text}".encode()).hexdigest()[:16],
        "prompt_id": name,
        **{column: prompt[column] for column in columns},
        "response": text,
        "grade": found,
        "target": getattr(grades, found),
    }


def _counters(
    prompts: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], drawn: Counter[str]
) -> dict[str, float]:
    """Shares are of all samples drawn, `samples` counts the distinct ones that are published."""
    total = drawn.total()
    return {
        "prompts": len(prompts),
        "prompts_gold": sum(prompt["gold"] for prompt in prompts),
        "prompts_heldout": sum(prompt["split"] == "heldout" for prompt in prompts),
        "samples_drawn": total,
        "samples": len(rows),
        "share_right": round((drawn["original"] + drawn["perturbed"]) / total, 6),
        "share_right_and_in_format": round(drawn["original"] / total, 6),
        "share_unparsable": round(drawn["incoherent"] / total, 6),
        "share_wrong": round(drawn["irrelevant"] / total, 6),
    }
