"""Which options the trainers' `trainer:` blocks take: names and kinds of values of the pinned TRL and transformers.

They stand in `trainer_options.json`, written by `make trainer-options` from the libraries themselves, because whoever
validates a cycle has neither of them; a test compares the file with what is installed.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

#: Where a block stands in the spec → the class that its options are fields of.
TRAINERS = {
    "generator.distillation.training.trainer": "SFTConfig",
    "rewardModel.training.trainer": "TrainingArguments",
    "rewardModel.training.retrainTrainer": "TrainingArguments",
    "policy.sft.trainer": "SFTConfig",
    "policy.grpo.trainer": "GRPOConfig",
}
_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "dict": "an object",
}


@dataclass(frozen=True)
class TrainerOption:
    """What an option takes."""

    kinds: tuple[str, ...]
    """Kinds of values, as JSON has them: keys of `_WORDS`; null may always be given. Empty: anything."""
    choices: tuple[str, ...] = ()
    """Its texts, where the library has a list of them."""


@cache
def options_of(config: str) -> Mapping[str, TrainerOption]:
    """The options of a class, by name."""
    document = json.loads(resources.files(__package__).joinpath("trainer_options.json").read_text(encoding="utf-8"))
    return {
        name: TrainerOption(tuple(option.get("kinds", ())), tuple(option.get("choices", ())))
        for name, option in document[config].items()
    }


def problems(config: str, given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with a block.

    Args:
        config: the class, such as GRPOConfig.
        given: the block, in normal form.

    Yields:
        An option and what is wrong with it.
    """
    known = options_of(config)
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            yield name, f"{config} has no such option" + (f"; did you mean {near[0]!r}?" if near else "")
        elif wrong := _wrong_value(known[name], value):
            yield name, wrong


def _wrong_value(option: TrainerOption, value: Any) -> str:
    if value is None or not option.kinds:
        return ""
    kind = type(value).__name__
    if kind not in option.kinds and not (kind == "int" and "float" in option.kinds):
        return f"{value!r} is not {' or '.join(_WORDS[one] for one in option.kinds)}"
    if kind == "str" and option.choices and value not in option.choices:
        near = difflib.get_close_matches(value, option.choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{value!r} is not one of {', '.join(option.choices)}{hint}"
    return ""
