"""An API server's objects in memory, behind the client's methods: for what no real one can be brought to answer."""

from __future__ import annotations

import copy
import itertools
from typing import Any

from medgr2_operator.kube.client import CYCLES, JOBS, PODS, ApiError, ConflictError, NotFoundError, Resource

Manifest = dict[str, Any]


class MemoryApi:
    """Objects by kind, namespace and name."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Manifest] = {}
        self.deleted: list[tuple[str, str, int | None]] = []
        """Kind, name and grace of what was deleted."""
        self.refused: dict[str, ApiError] = {}
        """By kind, how a create is answered."""
        self._versions = itertools.count(1)

    def put(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Adds or replaces an object."""
        stored = copy.deepcopy(manifest)
        metadata = stored["metadata"]
        metadata.setdefault("namespace", "ml")
        metadata.setdefault("uid", f"{resource.plural}-{metadata['name']}")
        metadata["resourceVersion"] = str(next(self._versions))
        stored["kind"], stored["apiVersion"] = resource.kind, resource.api_version
        self.objects[resource.plural, metadata["namespace"], metadata["name"]] = stored
        return copy.deepcopy(stored)

    def of(self, resource: Resource) -> list[Manifest]:
        """All objects of a kind."""
        return [item for (plural, _, _), item in self.objects.items() if plural == resource.plural]

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Manifest:
        try:
            return copy.deepcopy(self.objects[resource.plural, namespace or "", name])
        except KeyError:
            raise NotFoundError(f"no {resource.kind} {name}", 404) from None

    async def list(self, resource: Resource, namespace: str | None = None, **options: Any) -> list[Manifest]:
        keep = options.get("keep", lambda item: item)
        return [keep(copy.deepcopy(item)) for item in self.of(resource) if item["metadata"]["namespace"] == namespace]

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        if resource.kind in self.refused:
            raise self.refused[resource.kind]
        metadata = manifest["metadata"]
        if (resource.plural, metadata.get("namespace", "ml"), metadata.get("name", "")) in self.objects:
            raise ConflictError("it is there", 409)
        if "name" not in metadata:
            metadata = {**metadata, "name": f"event-{next(self._versions)}"}
        return self.put(resource, {**manifest, "metadata": metadata})

    async def replace_status(self, resource: Resource, manifest: Manifest) -> Manifest:
        stored = await self.get(resource, manifest["metadata"]["name"], manifest["metadata"]["namespace"])
        if stored["metadata"]["resourceVersion"] != manifest["metadata"]["resourceVersion"]:
            raise ConflictError("it was changed", 409)
        return self.put(resource, {**stored, "status": manifest["status"]})

    async def patch(self, resource: Resource, name: str, namespace: str | None, patch: Manifest) -> Manifest:
        return self.put(resource, {**await self.get(resource, name, namespace), **patch})

    async def delete(self, resource: Resource, name: str, namespace: str | None, **options: Any) -> None:
        self.deleted.append((resource.kind, name, options.get("grace_seconds")))
        self.objects.pop((resource.plural, namespace or "", name), None)

    # -- what tests say of it ------------------------------------------------------------------------------------------

    def condition(self, name: str, kind: str = "Progressing") -> Manifest:
        """A condition of a cycle; empty: it has none."""
        conditions = self.objects[CYCLES.plural, "ml", name].get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == kind), {})

    @property
    def jobs(self) -> list[Manifest]:
        """The Jobs that were created."""
        return self.of(JOBS)

    @property
    def pods(self) -> list[Manifest]:
        """The pods."""
        return self.of(PODS)
