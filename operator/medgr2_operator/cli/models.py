"""`medgr2 model`: where the trained models are, which one to take and why, and how to load and ask it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medgr2_api import paths
from medgr2_api.cycle import Cycle
from medgr2_api.metrics import MACRO_ACCURACY
from medgr2_api.percent import percent
from medgr2_api.presets import resolve
from medgr2_api.stages import definition
from medgr2_api.status import AttemptState, StageStatus

from ..plan.spec_edits import edits_of
from ..plan.types import StageKey
from . import jobs_process
from .errors import CommandError
from .hints import print_edits

_SNIPPET = """\
from medgr2_jobs.prompts.answers import prompt_text
from medgr2_api.training_spec import AnswerFormat
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = {folder!r}
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder)
question = prompt_text("What does the image show?", ["a mass", "a cyst", "nothing"], AnswerFormat({answers!r}))
chat = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": question}}]}}]
text = processor.apply_chat_template(chat, add_generation_prompt=True)
inputs = processor(text=[text], images=[Image.open("picture.png").convert("RGB")], return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=256)
print(processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
"""


#: Where `medgr2 export` is told to write, and what `medgr2 ask` is told to ask, in what is printed.
_FOLDER = "exported"
_PICTURE = ("picture.png", "What does the image show?", "--option", "a mass", "--option", "a cyst")


@dataclass(frozen=True)
class Choice:
    """The checkpoint to take."""

    record: StageStatus | None
    """None: the model that the loop started from."""
    why: str


def choose(cycle: Cycle) -> Choice:
    """The best checkpoint by validation; where nothing was measured, the newest.

    Raises:
        CommandError: the cycle has trained nothing so far.
    """
    status = cycle.status
    if (best := status.best) is not None:
        value = best.value(MACRO_ACCURACY.name)
        why = f"the best on validation, macro accuracy {percent(value)} %"
        if best.checkpoint == "base":
            return Choice(None, f"no checkpoint is better than the model that the loop started from: it is {why}")
        if (record := _record(cycle, best.iteration, best.checkpoint)) is not None:
            return Choice(record, why)
    if (newest := status.models.policy) is not None and (record := _record(cycle, newest.iteration, newest.stage)):
        return Choice(record, "the newest; nothing was measured on validation")
    raise CommandError(f"{cycle.metadata.name}: no model has been trained so far")


def print_models(
    cycle: Cycle,
    place: Callable[[StageStatus], str],
    load: Callable[[StageStatus], str],
    restart: Callable[[StageKey], str],
    command: Callable[..., str],
) -> None:
    """All checkpoints with their scores, which one to take, and how to use it.

    Args:
        cycle: with its status.
        place: where a stage's model is, or the command that brings it here.
        load: the folder of a whole model that is here; empty: adapters, or it is elsewhere.
        restart: the command that runs a stage again.
        command: a command line of ours by its words, with where the cycle is.
    """
    chosen = choose(cycle)
    for record in cycle.status.stages:
        if definition(record.name).makes == "policy" and record.state is AttemptState.SUCCEEDED:
            mark = "*" if record is chosen.record else " "
            score = _score(cycle, record)
            behind = " (did not go on)" if record.promoted is False else ""
            # one that does not go on is there if it was measured: GRPO may have been skipped
            told = place(record) if score or not behind else record.message or "not measured"
            print(f"{mark} {record.name}@{record.iteration}{behind}{score}: {told}")
    print()
    if edits := edits_of(cycle):
        print_edits(cycle.metadata.name, edits, restart)
        print()
    if chosen.record is None:
        print(f"take the base model, {cycle.spec.policy.base_model}: {chosen.why}")
        return
    print(f"take {chosen.record.name}@{chosen.record.iteration} (*): {chosen.why}")
    name = cycle.metadata.name
    print(f"  {command('export', name, _FOLDER)}  # a folder that any loader reads, with a model card")
    print(f"  {command('ask', name, *_PICTURE)}  # its answer")
    folder = load(chosen.record) or _FOLDER
    print(f"To ask it about a picture from Python{f', once it is in {_FOLDER}' if folder == _FOLDER else ''}:\n")
    answers = str(resolve(cycle.spec).answer_format)
    print(_SNIPPET.format(folder=folder, answers=answers), end="")


@dataclass(frozen=True)
class PictureQuestion:
    """What to ask a trained model."""

    image: Path
    text: str
    options: tuple[str, ...]
    """Answers to offer."""
    checkpoint: str
    """Empty: the best."""


def named(cycle: Cycle, checkpoint: str) -> tuple[str, str]:
    """The checkpoint's name, as `medgr2_jobs.export` knows it, and why this one.

    Args:
        cycle: with its status.
        checkpoint: as the user names it; empty: the best.

    Raises:
        CommandError: the cycle has trained nothing so far.
    """
    if checkpoint:
        return checkpoint, "as asked for"
    chosen = choose(cycle)
    record = chosen.record
    return ("base" if record is None else f"{record.name}@{record.iteration}"), chosen.why


def check_target(target: Path) -> None:
    """Before anything is read or copied.

    Raises:
        CommandError: DIR is not empty, or cannot be made; the jobs' packages are missing.
    """
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        raise CommandError(f"{target} is there already and not empty; name a folder that is not")
    if not target.absolute().parent.is_dir():
        raise CommandError(f"{target.absolute().parent}: no such folder")
    jobs_process.require("export")


def check_question(question: PictureQuestion) -> None:
    """Before anything is read or copied.

    Raises:
        CommandError: there is no such picture; the jobs' packages are missing.
    """
    if not question.image.is_file():
        raise CommandError(f"{question.image}: no such file")
    jobs_process.require("ask")


def export_model(workspace: Path, cycle: Cycle, target: Path, checkpoint: str) -> int:
    """`medgr2 export`, from a workspace on this computer.

    Raises:
        CommandError: as `check_target`; nothing has been trained.
    """
    check_target(target)
    name, why = named(cycle, checkpoint)
    print(f"{name}: {why}")
    where = ["--workspace", str(workspace)]
    return jobs_process.run("export", cycle.metadata.name, name, str(target.absolute()), *where)


def ask_model(workspace: Path, cycle: Cycle, question: PictureQuestion) -> int:
    """`medgr2 ask`, from a workspace on this computer.

    Raises:
        CommandError: as `check_question`; nothing has been trained.
    """
    check_question(question)
    name, why = named(cycle, question.checkpoint)
    options = [f"--option={option}" for option in question.options]
    where = ["--why", why, "--workspace", str(workspace), "--"]
    words = [cycle.metadata.name, name, str(question.image), question.text]
    return jobs_process.run("export.ask", *options, *where, *words)


def folder_of(root: Path, record: StageStatus) -> Path:
    """The folder with a stage's model.

    Raises:
        CommandError: it is not there any more.
    """
    artifact = root / paths.artifact(record.name, record.input_hash)
    try:
        parts = json.loads((artifact / paths.MANIFEST).read_bytes())["parts"]
        config = next(part["path"] for part in parts if part["name"] in ("model/config.json", paths.ADAPTER_BASE))
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        raise CommandError(f"{artifact}: the model of {record.name}@{record.iteration} is not there any more") from None
    return Path(artifact, str(config)).parent


def whole_folder(root: Path, record: StageStatus) -> str:
    """The folder of a stage's model, where it is a whole model; empty: it is adapters."""
    folder = folder_of(root, record)
    return "" if (folder / Path(paths.ADAPTER_BASE).name).is_file() else str(folder.resolve())


def _record(cycle: Cycle, iteration: int, stage: str) -> StageStatus | None:
    return next((r for r in cycle.status.stages if (r.iteration, r.name) == (iteration, stage) and r.input_hash), None)


def _score(cycle: Cycle, record: StageStatus) -> str:
    for score in cycle.status.scores:
        if (score.iteration, score.checkpoint) == (record.iteration, record.name):
            value = score.value(MACRO_ACCURACY.name)
            return f", validation macro accuracy {percent(value)} %" if value is not None else ""
    return ""
