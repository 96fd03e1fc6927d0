"""How a command ends when it cannot do what it was asked: one line, and an exit code of the contract."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from medgr2_api.stage_contract import ExitCode
from medgr2_api.stages import stage_names


class CommandError(Exception):
    """Ends the command with this message and exit code."""

    def __init__(self, message: str, exit_code: int = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def did_you_mean(word: str, words: Sequence[str]) -> str:
    """` (did you mean …?)` where one is near."""
    near = difflib.get_close_matches(word, words, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def parse_stage(text: str) -> tuple[str, int | None]:
    """`grpo@2` → (grpo, 2); `grpo` → (grpo, None).

    Raises:
        CommandError: no such stage.
    """
    name, at, number = text.partition("@")
    names = list(stage_names())
    if name not in names:
        raise CommandError(f"no stage {name!r}{did_you_mean(name, names)}; stages: {', '.join(names)}")
    if at and not (number.isascii() and number.isdecimal()):
        raise CommandError(f"{text!r}: expected STAGE@ITERATION, such as {name}@2")
    return name, int(number) if at else None
