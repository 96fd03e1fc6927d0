"""Options of `vllm serve` that a cycle may give: those that say how much of the GPUs it uses, and how fast it is.

A list of what is allowed, by whole names: argparse also takes abbreviations, parts of JSON objects and files of
options, and new options come with each version. What runs code of a model's repository (`--trust-remote-code`,
`--hf-overrides`, parsers and plugins by name), opens files, fetches addresses or listens elsewhere is not on it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .cel_rules import Rule
from .types import cel_text

NAMES = (
    "attention-backend",
    "block-size",
    "cpu-offload-gb",
    "data-parallel-size",
    "disable-custom-all-reduce",
    "dtype",
    "enable-chunked-prefill",
    "enable-expert-parallel",
    "enable-prefix-caching",
    "enforce-eager",
    "gpu-memory-utilization",
    "kv-cache-dtype",
    "limit-mm-per-prompt",
    "max-logprobs",
    "max-model-len",
    "max-num-batched-tokens",
    "max-num-seqs",
    "max-parallel-loading-workers",
    "mm-encoder-tp-mode",
    "mm-processor-cache-gb",
    "no-async-scheduling",
    "no-enable-chunked-prefill",
    "no-enable-prefix-caching",
    "pipeline-parallel-size",
    "quantization",
    "revision",
    "seed",
    "swap-space",
    "tensor-parallel-size",
    "tokenizer-revision",
)
#: Of these, the ones that change what a model answers: its precision, and which version of it is loaded. The rest says
#: how much memory is used and how fast it is; kernels and batches change the last digits, as another GPU would.
ANSWERING = frozenset({"dtype", "kv-cache-dtype", "quantization", "revision", "tokenizer-revision"})
#: Options by which the user says how the GPUs are shared out; the first one divides a model.
PARALLELISM = ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp")
SHORT = ("-tp", "-pp", "-dp", "-q")
_LONG = "|".join(NAMES).replace("-", "[-_]")
#: An option of the list, with or without its value; a number; or what does not begin with a dash: a value. RE2 syntax.
_ALLOWED = rf"^(--({_LONG})(=(?s:.)*)?|{'|'.join(SHORT)}|-[0-9][0-9.]*|([^-](?s:.)*)?)$"

_LONG_FORM = {"-q": "--quantization"}


def answering(arguments: Sequence[str]) -> dict[str, str]:
    """Of arguments of `vllm serve` those that change what the model answers: name → value. The last one counts."""
    found, waiting = {}, ""
    for argument in arguments:
        option, given, value = argument.partition("=")
        if option.startswith("-"):
            name = _LONG_FORM.get(option, option).removeprefix("--").replace("_", "-")
            waiting = "" if given else name
        elif waiting:
            name, value, waiting = waiting, argument, ""
        else:
            continue
        if name in ANSWERING:
            found[name] = value
    return found


ALLOWED_OPTION = Rule(
    f"self.matches({cel_text(_ALLOWED)})",
    "is no option that a cycle may give to vLLM: docs/generation.md lists them, with their whole names",
    lambda argument: re.fullmatch(_ALLOWED, argument) is not None,
)
