"""For all tests."""

from __future__ import annotations

import signal

pytest_plugins = ["tests.left_out"]

# A process that a script starts in its background ignores SIGINT, and so would all that it starts: also the commands
# that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
