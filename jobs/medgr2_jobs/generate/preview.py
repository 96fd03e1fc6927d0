"""`python -m medgr2_jobs.generate.preview`: what a generator is sent about one image (`medgr2 prompt`)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medgr2_api import command_line
from medgr2_api.generator import GENERATORS, OpenAI, Paradigm
from medgr2_api.stage_contract import ExitCode

from ..data.decoder import client as decoder
from ..data.decoder import limits
from ..data.decoder.protocol import BadField
from . import prompt_templates

_PROVIDERS = [name for name, kind in GENERATORS.items() if kind.asked]


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="medgr2 prompt", description="Shows what a generator is sent.")
    parser.add_argument("--paradigm", choices=[str(paradigm) for paradigm in Paradigm], default="MetaCognitive")
    parser.add_argument("--modality", default="")
    parser.add_argument("--question-type", default="Diagnosis")
    parser.add_argument("--provider", choices=_PROVIDERS, default=OpenAI.kind)
    parser.add_argument("--image", type=Path)
    options = parser.parse_args(arguments)
    print(
        prompt_templates.preview(
            Paradigm(options.paradigm), options.modality, options.question_type, GENERATORS[options.provider]
        ),
        end="",
    )
    if options.image is None:
        return ExitCode.OK
    try:
        image = decoder.picture(options.image, limits.MAX_PIXELS)
    except BadField as bad:
        print(f"{options.image}: {bad.reason}", file=sys.stderr)
        return ExitCode.DATA_ERROR
    print(f"# the image: {options.image}, {image.width} x {image.height} pixels, sent as PNG without any metadata")
    return ExitCode.OK


if __name__ == "__main__":
    command_line.end(main)
