"""What all commands on a cluster share: the connection, a cycle by its name, and the text and exit code of errors."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import ValidationError

from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import ExitCode

from ..kube.client import CYCLES, ApiError, Client, Manifest, NotFoundError
from ..kube.kubeconfig import connect
from .cluster_options import WhereOptions
from .errors import CommandError, did_you_mean
from .hints import typed

INTERRUPTED = 128 + signal.SIGINT
_FORBIDDEN = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]*)" in API group "(?P<group>[^"]*)"'
    r'( in the namespace "(?P<namespace>[^"]*)")?'
)


@dataclass(frozen=True)
class Cluster:
    """A connection, and the namespace to work in."""

    client: Client
    namespace: str
    words: tuple[str, ...] = ()
    """The options that name it, for commands that are told to the user."""

    def typed(self, *words: object) -> str:
        """A command about the same cluster."""
        return typed(*words, *self.words)

    async def cycle(self, name: str) -> Manifest:
        """The cycle as stored.

        Raises:
            CommandError: there is none of that name.
        """
        try:
            return await self.client.get(CYCLES, name, self.namespace)
        except NotFoundError as error:
            raise CommandError(await self._no_such_cycle(name, error)) from error

    async def _no_such_cycle(self, name: str, error: NotFoundError) -> str:
        text = f"no cycle {name!r} in namespace {self.namespace}"
        if error.reason != "NotFound":  # the address itself is unknown
            return "this cluster knows no MedGR2Cycle; is the operator installed?"
        try:
            names = sorted(cycle["metadata"]["name"] for cycle in await self.client.list(CYCLES, self.namespace))
        except ApiError:  # who may get a cycle may not be allowed to list them
            return text
        return f"{text}{did_you_mean(name, names)}; there: {', '.join(names) or 'none'}"


def parsed(manifest: Manifest) -> Cycle:
    """The cycle as this version understands it.

    Raises:
        CommandError: it has fields that this version does not know.
    """
    try:
        return Cycle.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CommandError(
            f"{manifest['metadata']['name']}: {where}: {first['msg']}; does this medgr2 have the operator's version?"
        ) from error


def run(options: WhereOptions, command: Callable[[Cluster], Awaitable[int]]) -> int:
    """Connects, runs the command, and says in one line what went wrong; returns the exit code."""

    async def connected() -> int:
        task = asyncio.current_task()
        assert task is not None
        # as Ctrl-C does: what the command made on the cluster is removed on the way out
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with connect(options.kubeconfig, options.context) as (client, namespace):
            return await command(Cluster(client, options.namespace or namespace, tuple(options.cluster_words())))

    try:
        return asyncio.run(connected())
    except KeyboardInterrupt:
        return INTERRUPTED
    except asyncio.CancelledError:
        return ExitCode.SIGTERM
    except BrokenPipeError:  # `medgr2 logs … | head`
        return ExitCode.OK
    except ApiError as error:
        text, code = explain(error)
    print(text, file=sys.stderr)
    return code


def explain(error: ApiError) -> tuple[str, int]:
    """What to say of a request that failed, and with which exit code to end."""
    if error.status == 0:
        return str(error), ExitCode.TEMPORARY
    if error.status == 401:
        return "the cluster does not know you (401): sign in again, or check the kubeconfig", ExitCode.USAGE
    if error.status == 403:
        return _forbidden(str(error)), ExitCode.USAGE
    temporary = error.status in (409, 429) or error.status >= 500
    return str(error), ExitCode.TEMPORARY if temporary else ExitCode.USAGE


def _forbidden(text: str) -> str:
    """Which permission is missing; a refusal by a quota or a policy as it is."""
    match = _FORBIDDEN.search(text)
    if not match:
        return text
    group = f".{match['group']}" if match["group"] else ""
    namespace = f" in namespace {match['namespace']}" if match["namespace"] else ""
    return f"not allowed: {match['user']} may not {match['verb']} {match['resource']}{group}{namespace}"
