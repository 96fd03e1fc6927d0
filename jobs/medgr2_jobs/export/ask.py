"""`python -m medgr2_jobs.export.ask CYCLE CHECKPOINT IMAGE QUESTION`: what a checkpoint answers (`medgr2 ask`).

The picture goes through the decoder process, as every picture of other people does, and into no workspace.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from medgr2_api import command_line
from medgr2_api.stage_contract import WORKSPACE_ENV, ExitCode

from ..data.decoder import client as decoder
from ..data.decoder.protocol import BadField
from ..engine.in_process import InProcessSampler
from ..errors import DataError, StageError
from ..evaluate.scoring import greedy
from ..models.vlm import Encoder, PromptResponse
from ..prompts import answers
from ..store.images import ImageStore
from .published_policy import PublishedPolicy, find

_MARKS = re.compile(answers.CHAT_MARKS)


class BadQuestion(StageError):
    """The question or its options cannot be put to a model (exit 2)."""

    exit_code = ExitCode.USAGE


def check(question: str, options: Sequence[str]) -> None:
    """Raises BadQuestion for what a model could not be asked."""
    for text in (question, *options):
        if not text.strip():
            raise BadQuestion("the question and its options need words")
        if _MARKS.search(text) or answers.TAG.search(text):
            raise BadQuestion(f"{text!r}: has a mark of chat templates or answers in it, which is no text to a model")
    if len(options) == 1 or len(options) > len(answers.LETTERS):
        raise BadQuestion(f"{len(options)} options: give at least two and at most {len(answers.LETTERS)}, or none")
    if len({answers.normalise(option) for option in options}) < len(options):
        raise BadQuestion("two options are the same")


def ask(found: PublishedPolicy, image: Path, question: str, options: Sequence[str]) -> str:
    """What the checkpoint writes, greedily.

    Args:
        found: the checkpoint.
        image: a picture file; DICOM, too.
        question: as it is put.
        options: that are offered; none: the question is put alone.

    Raises:
        BadQuestion: it cannot be put.
        DataError: the picture cannot be used.
        StageError: the checkpoint cannot be loaded.
    """
    check(question, options)
    answer_format = found.prepared.answer_format
    try:
        picture = decoder.picture(image, found.prepared.data.max_pixels)
    except BadField as bad:
        raise DataError(f"{image}: {bad.reason}") from None
    prompt = answers.prompt_text(question, options, answer_format) if options else question
    with tempfile.TemporaryDirectory() as folder:
        store = ImageStore(Path(folder))
        name = store.put(picture).sha256
        encoder = Encoder(found.checkpoint.processor(), store)
        [text] = greedy(InProcessSampler(found.checkpoint), encoder, [PromptResponse(name, prompt)], answer_format)
    return text


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="medgr2 ask", description="What a checkpoint answers about a picture.")
    parser.add_argument("cycle")
    parser.add_argument("checkpoint", help="sft@N, grpo@N or base")
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--why", default="", help="why this checkpoint, for the line that says which one answers")
    parser.add_argument("--workspace", type=Path, default=Path(os.environ.get(WORKSPACE_ENV, "/workspace")))
    options = parser.parse_args(arguments)
    try:
        found = find(options.workspace, options.cycle, options.checkpoint)
        text = ask(found, options.image, options.question, options.option)
    except StageError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    print(text)
    if options.option:
        picked = answers.extract(text, options.option, found.prepared.answer_format)
        print(f"answer: {'none can be read from it' if picked is None else options.option[picked]}")
    why = f" ({options.why})" if options.why else ""
    print(f"answered by {found.name} of {found.cycle}{why}; not a medical device", file=sys.stderr)
    return int(ExitCode.OK)


if __name__ == "__main__":
    command_line.end(main)
