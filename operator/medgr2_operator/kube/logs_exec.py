"""Streams: following a container's log, and running a command in a container."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import aiohttp

from .client import PODS, REQUEST_TIMEOUT, ApiError, Client, no_answer, refusal

#: Channels of the protocol v4.channel.k8s.io: each message begins with the number of its channel.
_PROTOCOL = "v4.channel.k8s.io"
_STDIN, _STDOUT, _STDERR, _STATUS = 0, 1, 2, 3
_CHUNK = 32 * 1024  # bytes of stdin in one message
_HEARTBEAT = 30.0  # seconds; a connection may be lost without a sign
_STDERR_TAIL = 64 * 1024  # bytes
_Query = Sequence[tuple[str, str]]


class BrokenStreamError(ApiError):
    """The connection ended before the command did, or before the log did."""


@dataclass(frozen=True)
class CommandResult:
    """How a command ended."""

    exit_code: int
    stderr: str
    """Its tail."""


async def log(
    client: Client, pod: str, namespace: str, container: str, *, follow: bool = False, since: str = ""
) -> AsyncIterator[bytes]:
    """A container's log, line by line, each with its time before it; with `follow` until the container ends.

    Args:
        client: to the API server.
        pod: its name.
        namespace: its namespace.
        container: which of its containers.
        follow: go on with what comes.
        since: RFC 3339; nothing older.

    Raises:
        NotFoundError: there is no such pod.
        BrokenStreamError: the connection broke.
        ApiError: any other refusal, such as of a container that has not started.
    """
    path = PODS.path(namespace, pod, "log")
    query = [("container", container), ("timestamps", "true"), ("follow", str(follow).lower())]
    answer = await _get(client, path, [*query, ("sinceTime", since)] if since else query)
    rest = b""
    async with answer:
        if answer.status >= 400:
            raise refusal("GET", path, answer.status, await answer.text())
        try:
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise BrokenStreamError(f"the log of {pod} broke off: {type(error).__name__}: {error}") from error
    if rest:
        yield rest


async def execute(
    client: Client,
    pod: str,
    namespace: str,
    container: str,
    command: Sequence[str],
    stdout: Callable[[bytes], object],
    stdin: bytes = b"",
) -> CommandResult:
    """Runs a command in a container, to its end.

    Args:
        client: to the API server.
        pod: its name.
        namespace: its namespace.
        container: which of its containers.
        command: program and arguments; there is no shell.
        stdout: is called with what the command prints, byte for byte.
        stdin: its input. The protocol has no end of input: the command must know how much to read.

    Raises:
        BrokenStreamError: the connection ended first.
        ApiError: the command could not be started.
    """
    path = PODS.path(namespace, pod, "exec")
    streams = ["stdout", "stderr", *(["stdin"] if stdin else [])]
    query = [("container", container), *((name, "true") for name in streams), *(("command", part) for part in command)]
    stderr, status_message, has_output = b"", b"", False
    try:
        async with await _websocket(client, path, query) as socket:
            for start in range(0, len(stdin), _CHUNK):
                await socket.send_bytes(bytes([_STDIN]) + stdin[start : start + _CHUNK])
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                    continue
                channel, data = message.data[0], message.data[1:]
                if channel == _STDOUT:
                    has_output = True
                    stdout(data)
                elif channel == _STDERR:
                    stderr = (stderr + data)[-_STDERR_TAIL:]
                elif channel == _STATUS:
                    status_message += data
            broken = socket.exception()
    except (TimeoutError, aiohttp.ClientError) as error:
        raise no_answer("EXEC", path, error) from error
    text = stderr.decode("utf-8", "replace")
    if not status_message:
        raise BrokenStreamError(f"the connection to pod {pod} ended before {command[0]} did: {broken or 'closed'}")
    try:
        return CommandResult(_exit_code(status_message, f"pod {pod}", text), text)
    except ApiError as error:
        if has_output:  # it ran, and its container was removed
            raise BrokenStreamError(str(error)) from error
        raise


def _exit_code(status_message: bytes, where: str, stderr: str) -> int:
    """The code in the Status that ends the stream.

    Raises:
        ApiError: the command did not run.
    """
    status = json.loads(status_message)
    if status.get("status") == "Success":
        return 0
    for cause in (status.get("details") or {}).get("causes") or ():
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    message = "; ".join([status.get("message", "the command could not be started"), *stderr.strip().splitlines()[-1:]])
    raise ApiError(f"{where}: {message}")


async def _websocket(client: Client, path: str, query: _Query) -> aiohttp.ClientWebSocketResponse:
    """An open connection.

    kubernetes.aio's WsApiClient is not used: it goes past a kubeconfig's proxy and TLS server name.
    """
    url, headers = await _address(client, path, query)
    rest, settings = client.api.rest_client, client.api.configuration
    if rest.pool_manager is None:
        rest.pool_manager = rest._create_pool_manager()
    try:
        return await rest.pool_manager.ws_connect(
            url,
            headers=headers,
            protocols=(_PROTOCOL,),
            heartbeat=_HEARTBEAT,
            proxy=settings.proxy,
            proxy_headers=settings.proxy_headers,
            server_hostname=settings.tls_server_name,
        )
    except aiohttp.WSServerHandshakeError as error:
        async with await _get(client, path, query) as answer:  # a plain request's refusal has a message
            if answer.status in (401, 403, 404):
                raise refusal("EXEC", path, answer.status, await answer.text()) from error
        raise ApiError(f"EXEC {path}: {error.status} {error.message}", error.status) from error


async def _get(client: Client, path: str, query: _Query) -> aiohttp.ClientResponse:
    """An answer whose body is still to come."""
    url, headers = await _address(client, path, query)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT)
    try:
        answer = await client.api.call_api("GET", url, headers, _request_timeout=timeout)
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise no_answer("GET", path, error) from error
    body: aiohttp.ClientResponse = answer.response
    return body


async def _address(client: Client, path: str, query: _Query) -> tuple[str, dict[str, str]]:
    """URL and headers, credentials included."""
    _, url, headers, _, _ = await client.api.param_serialize(
        "GET", path, query_params=list(query), header_params={}, auth_settings=["BearerToken"]
    )
    return url, headers
