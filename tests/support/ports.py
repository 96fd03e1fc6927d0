"""Ports for the servers that tests start."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from functools import cache
from itertools import cycle

#: Below the ports that the kernel gives to outgoing connections, and below NodePorts.
PORTS = range(20_000, 30_000)
#: Processes of a test run that share them.
WORKERS = 16


def free_port() -> int:
    """One that nobody listens on now, on no address, and that this process was not given before.

    Who asks for one may take it much later. So each process of a test run has ports of its own, and is given each of
    them once before it is given one again.
    """
    while True:
        port = next(_ours())
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                continue
        return port


@cache
def _ours() -> Iterator[int]:
    """This process's ports, again and again, in an order of its own: another test run has the same ones.

    The order is drawn without the seed of `random`, which stages set.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ours = PORTS[worker % WORKERS :: WORKERS]
    return cycle(random.SystemRandom().sample(ours, len(ours)))
