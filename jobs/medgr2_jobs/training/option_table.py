"""`python -m medgr2_jobs.training.option_table FILE`: the options of the installed trainers, for the contract.

The contract checks a cycle where neither TRL nor transformers is (`medgr2_api.trainer_options`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transformers import TrainingArguments
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.sft_config import SFTConfig

CONFIGS: tuple[type[TrainingArguments], ...] = (TrainingArguments, SFTConfig, GRPOConfig)
_KINDS = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict"}
#: Texts that the libraries look at when it is too late, and that no type of theirs names.
_CHOICES: dict[tuple[type[TrainingArguments], str], tuple[str, ...]] = {
    (SFTConfig, "loss_type"): ("nll", "dft"),
    (GRPOConfig, "loss_type"): ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    (GRPOConfig, "importance_sampling_level"): ("token", "sequence"),
    (GRPOConfig, "scale_rewards"): ("group", "batch", "none"),
}
#: Kinds that are taken though the type does not say so.
_ALSO: dict[tuple[type[TrainingArguments], str], set[str]] = {(GRPOConfig, "scale_rewards"): {"bool"}}


def table() -> dict[str, dict[str, dict[str, list[str]]]]:
    """Class → option → kinds of values and choices."""
    return {config.__name__: _options(config) for config in CONFIGS}


def text() -> str:
    """The table as a JSON file, a line an option."""
    parts = []
    for name, options in table().items():
        lines = ",\n".join(f"  {json.dumps(option)}: {json.dumps(about)}" for option, about in options.items())
        parts.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _options(config: type[TrainingArguments]) -> dict[str, dict[str, list[str]]]:
    hints = get_type_hints(config)
    options = {}
    for item in sorted(dataclasses.fields(config), key=lambda item: item.name):
        if not item.init:
            continue
        kinds, choices = _of_type(hints[item.name])
        kinds |= _ALSO.get((config, item.name), set())
        about = {"kinds": sorted(kinds), "choices": list(_CHOICES.get((config, item.name), sorted(choices)))}
        options[item.name] = {key: values for key, values in about.items() if values and kinds != {"any"}}
    return options


def _of_type(hint: Any) -> tuple[set[str], set[str]]:
    """Kinds of values and choices of a type; kind `any` where it cannot be told."""
    if hint is type(None):
        return set(), set()
    if get_origin(hint) in (Union, types.UnionType):
        parts = [_of_type(part) for part in get_args(hint)]
        kinds = set().union(*(part[0] for part in parts))
        return ({"any"} if "any" in kinds else kinds), set().union(*(part[1] for part in parts))
    if get_origin(hint) is Literal:
        return {_KINDS[type(value)] for value in get_args(hint)}, set()
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"str"}, {str(one.value) for one in hint}
    known = _KINDS.get(get_origin(hint) or hint)
    return {known or "any"}, set()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Writes the options of the installed trainers.")
    parser.add_argument("file", type=Path)
    parser.parse_args().file.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
