"""The client of the API server: plain dicts in and out, every request with a timeout and under one rate limit.

`kubernetes.aio.dynamic` is not used: it knows neither timeout nor rate limit, and before its first request it discovers
all API groups and caches them in a file of the temporary folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
from aiolimiter import AsyncLimiter
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

from .server_clock import ServerClock

Manifest = dict[str, Any]
"""An object of the API as JSON."""

#: Seconds until a request is given up; far below the Lease's duration.
REQUEST_TIMEOUT = 15.0
#: Objects of one page of a list.
PAGE = 100
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


@dataclass(frozen=True)
class Resource:
    """A kind of object and its address."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """`group/version`, as in a manifest."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        """The URL path of the collection, an object or its subresource."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        where = f"/namespaces/{quote(namespace)}" if namespace else ""
        rest = "".join(f"/{quote(part)}" for part in (name, subresource) if part)
        return f"{root}{where}/{self.plural}{rest}"


CYCLES = Resource("medgr2.io", "v1alpha1", "medgr2cycles", "MedGR2Cycle")
JOBS = Resource("batch", "v1", "jobs", "Job")
PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
EVENTS = Resource("", "v1", "events", "Event")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")


class ApiError(Exception):
    """The API server refused a request, or did not answer."""

    def __init__(
        self, message: str, status: int = 0, reason: str = "", server_message: str = "", fields: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.fields = tuple(fields)
        """Fields of the object that are wrong; an admission policy names none, whatever its HTTP status."""
        self.server_message = server_message or message
        """What the server said, without our request."""
        self.status = status
        """HTTP status; 0: no answer."""
        self.reason = reason
        """The server's reason, such as AlreadyExists."""

    @property
    def passes(self) -> bool:
        """Whether it is not about the object: no answer, or one that differs next time."""
        return self.status in (0, 409, 429) or self.status >= 500


class NotFoundError(ApiError):
    """There is no such object (404)."""


class ConflictError(ApiError):
    """The object exists already, or was changed since it was read (409)."""


_ERRORS: dict[int, type[ApiError]] = {404: NotFoundError, 409: ConflictError}

RequestObserver = Callable[[str, str, int, float], None]
"""Called after every request: HTTP method, server's host, status (0: no answer), seconds."""


class Client:
    """One connection pool, one rate limit, one way to make a request."""

    def __init__(
        self,
        api: kubernetes_client.ApiClient,
        *,
        requests_per_second: float = 200,
        burst: float = 400,
        on_request: RequestObserver = lambda method, host, status, seconds: None,
    ) -> None:
        """
        Args:
            api: configured with server and credentials.
            requests_per_second: sustained rate.
            burst: how many requests may come at once.
            on_request: is called after every request.
        """
        self.api = api
        """Only for what plain requests cannot do (`logs_exec.py`)."""
        self._limit = AsyncLimiter(burst, burst / requests_per_second)
        self._on_request = on_request
        self._host = urlsplit(api.configuration.host).netloc
        self.clock = ServerClock()
        """The API server's."""

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Manifest:
        """One object.

        Raises:
            NotFoundError: there is none.
            ApiError: any other failure.
        """
        return await self._request("GET", resource.path(namespace, name))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
        keep: Callable[[Manifest], Manifest] = lambda item: item,
    ) -> list[Manifest]:
        """All objects that match the selectors, page by page; items carry no kind and apiVersion.

        Args:
            resource: what to list.
            namespace: where; None: everywhere.
            labels: a label selector.
            fields: a field selector.
            metadata_only: nothing else of the objects is sent.
            keep: what to keep of each object: there may be many.
        """
        items: list[Manifest] = []
        query = {"limit": str(PAGE), "labelSelector": labels, "fieldSelector": fields}
        headers = {"Accept": _METADATA_ONLY} if metadata_only else {}
        while True:
            page = await self._request("GET", resource.path(namespace), query=query, headers=headers)
            items += map(keep, page.get("items") or ())  # null, where only metadata is sent
            query["continue"] = page.get("metadata", {}).get("continue", "")
            if not query["continue"]:
                return items

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Creates an object in the namespace that its metadata names.

        Raises:
            ConflictError: the name is taken.
            ApiError: any other failure.
        """
        path = resource.path(manifest["metadata"].get("namespace"))
        return await self._request("POST", path, body=manifest)

    async def replace_status(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Writes an object's status; its resourceVersion has to be the present one.

        Raises:
            ConflictError: the object was changed since.
            ApiError: any other failure.
        """
        metadata = manifest["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"], "status")
        return await self._request("PUT", path, body=manifest)

    async def replace(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Writes an object; its resourceVersion has to be the present one."""
        metadata = manifest["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"])
        return await self._request("PUT", path, body=manifest)

    async def patch(self, resource: Resource, name: str, namespace: str | None, patch: Manifest) -> Manifest:
        """Changes some fields (JSON merge patch)."""
        headers = {"Content-Type": "application/merge-patch+json"}
        return await self._request("PATCH", resource.path(namespace, name), body=patch, headers=headers)

    async def json_patch(
        self, resource: Resource, name: str, namespace: str | None, operations: Sequence[Manifest]
    ) -> Manifest:
        """Changes an object by RFC 6902.

        Raises:
            ConflictError: an operation gave a resourceVersion that is not the present one.
            ApiError: any other failure.
        """
        headers = {"Content-Type": "application/json-patch+json"}
        path = resource.path(namespace, name)
        return await self._request("PATCH", path, body=list(operations), headers=headers)

    async def delete(
        self, resource: Resource, name: str, namespace: str | None, *, uid: str = "", grace_seconds: int | None = None
    ) -> None:
        """Deletes an object, its dependents in the background; one that is gone already is fine.

        Args:
            resource: what it is.
            name: its name.
            namespace: its namespace.
            uid: delete it only if it is this very object.
            grace_seconds: a pod's time to end; None: its own.

        Raises:
            ConflictError: another object has the name now.
            ApiError: any other failure.
        """
        options: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self._request("DELETE", resource.path(namespace, name), body=options)
        except NotFoundError:
            return

    async def proxy(self, pod: str, namespace: str, port: int, path: str, *, timeout: float = 5.0) -> str:
        """What a pod answers on a port, through the API server."""
        where = PODS.path(namespace, f"{pod}:{port}", "proxy") + path
        return await self._text("GET", where, timeout=timeout)

    async def _request(self, method: str, path: str, **options: Any) -> Manifest:
        answer: Manifest = json.loads(await self._text(method, path, **options))
        return answer

    async def _text(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Manifest | Sequence[Manifest] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = REQUEST_TIMEOUT,
    ) -> str:
        async with self._limit:
            began, asked, status = time.monotonic(), self.clock.seconds(), 0
            try:
                _, url, header_params, payload, _ = await self.api.param_serialize(
                    method,
                    path,
                    query_params=[(key, value) for key, value in (query or {}).items() if value],
                    header_params={"Accept": "application/json", **(headers or {})},
                    body=body,
                    auth_settings=["BearerToken"],
                )
                answer = await self.api.call_api(method, url, header_params, payload, _request_timeout=timeout)
                status = answer.status
                self.clock.answered(answer.headers.get("Date"), asked)
                data: bytes = await answer.read()  # type: ignore[no-untyped-call]
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                raise no_answer(method, path, error) from error
            finally:
                self._on_request(method, self._host, status, time.monotonic() - began)
        text = data.decode("utf-8", "replace")
        if status >= 400:
            raise refusal(method, path, status, text)
        return text


def no_answer(method: str, path: str, error: Exception) -> ApiError:
    """The error of a request without an answer."""
    return ApiError(f"{method} {path}: no answer ({type(error).__name__}: {error})")


def refusal(method: str, path: str, status: int, text: str) -> ApiError:
    """The error of a refused request, with the server's message."""
    try:
        status_object = json.loads(text)
    except ValueError:
        status_object = {}
    message = status_object.get("message") or text[:500]
    causes = (status_object.get("details") or {}).get("causes") or ()
    return _ERRORS.get(status, ApiError)(
        f"{method} {path}: {status} {message}",
        status,
        status_object.get("reason", ""),
        message,
        [cause["field"] for cause in causes if cause.get("field")],
    )


@asynccontextmanager
async def connect(
    kubeconfig: Path | None = None,
    context: str | None = None,
    on_request: RequestObserver = lambda method, host, status, seconds: None,
) -> AsyncIterator[Client]:
    """A client for the cluster we run in, or for a kubeconfig; closed at the end."""
    configuration = kubernetes_client.Configuration()
    if kubeconfig is not None:
        await kubernetes_config.load_kube_config(  # type: ignore[no-untyped-call]
            str(kubeconfig), context, client_configuration=configuration
        )
    else:
        kubernetes_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    configuration.retries = None  # the queue tries again, with backoff
    async with kubernetes_client.ApiClient(configuration) as api:
        yield Client(api, on_request=on_request)
