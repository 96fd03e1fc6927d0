"""The model card of an exported checkpoint: what it is made of, how right it is beside its controls, what it is not
for.

What it says of the data are names, counts and digests: no path of the site, and nothing of a record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from medgr2_api.metrics import HEADLINE, MACRO_ACCURACY, is_headline
from medgr2_api.percent import percent, percent_interval
from medgr2_api.training_spec import AnswerFormat

from ..fetch import BUILTIN
from ..models.checkpoint import BASE_PART
from .checkpoint_name import BASE
from .published_policy import PublishedPolicy

Row = Mapping[str, Any]

_HUB = "hf://"

#: What the conditions of `results.json` mean to a reader.
_SHOWN = {
    "real": "picture, question and options",
    "blank": "a grey picture",
    "shuffled": "another picture",
    "options_only": "no picture, no question",
    "option_prior": "no model: how often each answer is right in training",
    "chance": "no model: chance",
}

_LIMITS = """\
## Intended use

Research on visual question answering over medical pictures, with questions that offer their answers, of the kinds and
modalities that the figures above are about.

**This is not a medical device.** It has not been validated for clinical use, and no diagnosis, treatment or triage may
rest on what it says. It is not for patients.

## Limits

- It answers also where the picture shows nothing of what is asked, and it does not know when it is wrong. What it
  writes as its reasoning need not be the reason for its answer.
- The figures are of the benchmarks named above. A model that keeps most of its accuracy without the picture has
  learnt the questions: compare the rows.
- It learnt from questions and answers that another model generated and a reward model filtered. Their errors, and
  what the data leave out (scanners, populations, rare findings), are in it.
- Other wording, other languages, free questions without options, and pictures of other sizes or sources are not
  measured.
- The licences of the base model and of the data go on to hold for it.
"""


@dataclass(frozen=True)
class BaseModel:
    """The model that the loop started from."""

    name: str
    """Its id on the hub, or what it is called where it came from no hub."""
    revision: str
    on_hub: bool


def text(found: PublishedPolicy) -> str:
    """The card, with its metadata in front."""
    base, results = base_model(found), _results(found)
    data = ModelCardData(
        base_model=base.name if base.on_hub else None,
        base_model_relation="finetune" if base.on_hub else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["medical", "visual-question-answering", "medgr2"],
        model_name=f"{found.cycle}-{found.name.replace('@', '-')}",
        eval_results=_eval_results(results) or None,
    )
    parts = [
        f"# {found.cycle}, {found.name}",
        _made_of(found, base),
        _figures(found, results),
        _LIMITS,
        _use(found),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part.strip() for part in parts) + "\n"


def base_model(found: PublishedPolicy) -> BaseModel:
    """The model that the loop started from, by what prepare has pinned; a folder of the site is not named."""
    name, prepare = found.prepared.policy_base_model, found.artifacts.input("prepare")
    pins = json.loads(prepare.file("inputs.json").read_text()) if prepare.has("inputs.json") else []
    for pin in pins:
        if pin["kind"] == "model" and pin["uri"] == f"{_HUB}{name.removeprefix(_HUB)}":
            return BaseModel(name.removeprefix(_HUB).partition("@")[0], pin["revision"], on_hub=True)
    return BaseModel(name if name.startswith(BUILTIN) else "a model of the site", "", on_hub=False)


def _made_of(found: PublishedPolicy, base: BaseModel) -> str:
    manifest, prepare = found.artifact.manifest, found.artifacts.input("prepare")
    rows = [
        ("base model", f"{base.name}{f', revision {base.revision}' if base.revision else ''}"),
        ("files of the base model", prepare.digest_of(BASE_PART)),
        ("checkpoint", f"{found.name} of cycle {found.cycle}, {manifest.output_digest}"),
        ("weights", "adapters (LoRA), merged" if found.checkpoint.adapter is not None else "all fine-tuned"),
        ("data (prepare)", prepare.digest),
        *((f"read {role}", digest) for role, digest in sorted(manifest.inputs.items()) if role != "prepare"),
        ("made with", ", ".join(f"{name} {version}" for name, version in sorted(manifest.packages.items()))),
        ("exported by", f"medgr2 {metadata.version('medgr2')}"),
    ]
    counters, parameters = prepare.manifest.counters, found.prepared
    counted = [
        f"{int(counters[key])} {words}"
        for key, words in (
            ("train_images", "pictures to train on"),
            ("seed_items", "seed questions"),
            ("validation_items", "validation questions"),
            ("benchmark_items", "benchmark questions"),
        )
        if key in counters
    ]
    sources = ", ".join(f"{source.name} ({source.format})" for source in parameters.data.sources)
    lines = [
        f"A vision-language model that answers questions about medical pictures, trained by MedGR² ({found.name}: "
        f"{'the model that the loop started from' if found.name == BASE else 'iteration ' + str(found.iteration)}).",
        "",
        "## What it is made of",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        f"Sources: {sources}. {', '.join(counted)}. A digest names content exactly: sha256 over an artifact's files.",
    ]
    return "\n".join(lines)


def _results(found: PublishedPolicy) -> list[Row]:
    """The headline figures and the macro accuracies of this checkpoint, and of what no checkpoint is needed for."""
    rows: list[Row] = []
    for iteration in sorted({0, found.iteration}):
        role = f"measure-{iteration}"
        if not found.artifacts.has_input(role):
            continue
        for row in json.loads(found.artifacts.input(role).file("results.json").read_text()):
            alone = iteration == 0 and row["condition"] in ("option_prior", "chance")
            if (row["checkpoint"] == found.stage and row["iteration"] == found.iteration) or alone:
                rows.append(row)
    return rows


def _figures(found: PublishedPolicy, results: Sequence[Row]) -> str:
    headlines = [row for row in results if is_headline(row)]
    if not headlines:
        return "## How right it is\n\nThis checkpoint was not measured."
    macro = {
        (row["split"], row["benchmark"], row["condition"]): row["value"]
        for row in results
        if (row["metric"], row["slice"], row["scoring"]) == (MACRO_ACCURACY.name, "all", "option_logprob")
    }
    lines = [
        "## How right it is",
        "",
        "Share of the questions whose likeliest offered option is the right one, in percent, with its 95 % interval "
        "(bootstrap, drawn by picture); macro: mean over modalities. The rows below the first say how much of it needs "
        "no picture.",
        "",
        "| questions | shown | right | macro | number |",
        "|---|---|---|---|---|",
    ]
    order = list(_SHOWN)
    for row in sorted(headlines, key=lambda row: (row["split"], row["benchmark"], order.index(row["condition"]))):
        right = (
            percent_interval(row["value"], row["low"], row["high"]) if row["low"] is not None else percent(row["value"])
        )
        average = macro.get((row["split"], row["benchmark"], row["condition"]))
        lines.append(f"| {_set_name(row)} | {_SHOWN[row['condition']]} | {right} | {percent(average)} | {row['n']} |")
    if found.artifact.manifest.promoted is False:
        lines += ["", f"The loop did not go on with it: {found.artifact.manifest.message}"]
    return "\n".join(lines)


def _set_name(row: Row) -> str:
    return str(row["benchmark"] or row["split"])


def _eval_results(results: Sequence[Row]) -> list[EvalResult]:
    """What a hub shows: the real measurement on each set of questions."""
    return [
        EvalResult(
            task_type="visual-question-answering",
            dataset_type=_set_name(row),
            dataset_name=_set_name(row),
            dataset_split=row["split"],
            metric_type="accuracy",
            metric_name=HEADLINE.name,
            metric_value=row["value"],
        )
        for row in results
        if is_headline(row) and row["condition"] == "real"
    ]


def _use(found: PublishedPolicy) -> str:
    letters = found.prepared.answer_format is AnswerFormat.LETTER
    answers = "the letter of an option" if letters else "the text of an option"
    adapter = (
        "\n\n`adapter/` holds the same checkpoint as adapters (peft) for the base model named above: a server that "
        "has the base model loads them beside it."
        if found.checkpoint.adapter is not None
        else ""
    )
    return (
        "## How to use it\n\nThe weights are bfloat16 safetensors. `AutoModelForImageTextToText` and `AutoProcessor` "
        "of transformers load the folder, and so does a vLLM server. It answers in the form "
        f"`<think>…</think><answer>…</answer>`, with {answers} as the answer; `medgr2 ask` puts a question as it was "
        f"trained.{adapter}"
    )
