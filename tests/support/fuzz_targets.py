"""What is fuzzed: all that reads what others wrote."""

from __future__ import annotations

from tests.support import fuzz_cycles, fuzz_files, fuzz_providers, fuzz_records
from tests.support.fuzz_target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (fuzz_cycles, fuzz_records, fuzz_providers, fuzz_files)
    for target in module.TARGETS
}
