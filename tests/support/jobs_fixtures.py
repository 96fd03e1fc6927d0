"""A workspace with hand-made artifacts, and stages run on it: what a stage reads can be exactly what a test needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from medgr2_api import paths, stages
from medgr2_api.hashing import sha256_of
from medgr2_api.stage_contract import ArtifactRef, CycleRef, StageRequest
from medgr2_jobs.data import synthetic_images
from medgr2_jobs.errors import ConfigError
from medgr2_jobs.runner import main
from medgr2_jobs.store import manifest
from medgr2_jobs.store.artifact import ArtifactReader, ArtifactWriter
from medgr2_jobs.store.images import ImageStore
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.prepared import Image, ImageOrigin, Item, PhantomRow

Tables = Mapping[type[Any], Sequence[Any]]
"""Rows by their class."""
CYCLE = CycleRef(name="test", uid="uid-1")


def publish(root: Path, name: str, tables: Tables, *, iteration: int = 0, **fields: Any) -> ArtifactRef:
    """An artifact of these tables; `fields` go into its manifest."""
    input_hash = sha256_of([name, iteration, str(tables), str(fields)])
    asked = StageRequest(cycle=CYCLE, iteration=iteration, stage=name, input_hash=input_hash, parameters={})
    writer = ArtifactWriter(root, asked)
    writer.open()
    for table, content in tables.items():
        writer.table(table, content)
    fields = {"inputs": {}, "parameters": {"answerFormat": "Letter"}, **fields}
    made = manifest.Manifest(
        stage=name,
        input_hash=input_hash,
        code_version=1,
        cycle=CYCLE.name,
        iteration=iteration,
        attempt=1,
        parts=writer.parts(),
        **fields,
    )
    digest = manifest.commit(writer.base, made, writer.work).output_digest
    return ArtifactRef(
        stage=name, iteration=iteration, path=str(paths.artifact(name, input_hash)), output_digest=digest
    )


def request(
    name: str, iteration: int, parameters: dict[str, Any], inputs: dict[str, ArtifactRef], **fields: Any
) -> StageRequest:
    """A request for a stage; its parameters are checked."""
    checked = stages.definition(name).parameters.model_validate(parameters).dump()
    digests = {role: ref.output_digest for role, ref in inputs.items()}
    return StageRequest(
        cycle=fields.pop("cycle", CYCLE),
        iteration=iteration,
        stage=name,
        input_hash=sha256_of([name, iteration, checked, digests]),
        parameters=checked,
        inputs=inputs,
        **fields,
    )


def run(root: Path, asked: StageRequest) -> ArtifactReader:
    """Runs the stage in this process; it must succeed."""
    assert main.execute(asked, root) == 0
    return reader(root, asked)


def reader(root: Path, asked: StageRequest) -> ArtifactReader:
    """What a stage published, all shards of it."""
    path = str(paths.artifact(asked.stage, asked.input_hash))
    return ArtifactReader(root, ArtifactRef(stage=asked.stage, iteration=asked.iteration, path=path, output_digest=""))


def ref(root: Path, asked: StageRequest) -> ArtifactRef:
    """The reference to what a stage published."""
    artifact = reader(root, asked)
    return artifact.ref.model_copy(update={"output_digest": artifact.digest})


class Artifacts:
    """Published artifacts by role, as a stage's context has them."""

    def __init__(self, root: Path, refs: Mapping[str, ArtifactRef]) -> None:
        self._readers = {role: ArtifactReader(root, ref) for role, ref in refs.items()}

    def has_input(self, role: str) -> bool:
        return role in self._readers

    def input(self, role: str) -> ArtifactReader:
        if role not in self._readers:
            raise ConfigError(f"no input {role!r}")
        return self._readers[role]


@dataclass
class Prepared:
    """Tables of stage prepare, to be changed and published."""

    images: list[Image]
    items: list[Item]
    phantoms: list[PhantomRow]

    @property
    def origins(self) -> list[ImageOrigin]:
        return [ImageOrigin(row.image_sha256, row.source) for row in self.images]

    @property
    def tables(self) -> Tables:
        return {
            Image: self.images,
            ImageOrigin: self.origins,
            Item: self.items,
            PhantomRow: self.phantoms,
        }


def phantoms(root: Path, splits: Mapping[str, int], *, real: int = 0) -> Prepared:
    """So many phantoms of each split, one item each; `real` training images that are no phantoms. The pictures are in
    the store."""
    store = ImageStore(root)
    prepared = Prepared([], [], [])
    index = 0
    for split, count in splits.items():
        for _ in range(count):
            shown = synthetic_images.attributes(1, index)
            sha256 = store.add(synthetic_images.draw(shown, 1, index), 10_000).sha256
            (asked,) = synthetic_images.questions(1, index, 1)
            prepared.images.append(_image(sha256, shown.modality, split))
            prepared.phantoms.append(PhantomRow(sha256, shown.modality, shown.finding, shown.location, shown.count))
            prepared.items.append(
                Item(
                    item_id=f"item-{index}",
                    source="seed",
                    split=Split(split),
                    benchmark="bench" if split == "test" else "",
                    image_sha256=sha256,
                    modality=shown.modality,
                    question_type=asked.kind,
                    question=asked.text,
                    options=asked.options,
                    answer_index=asked.answer_index,
                    rationale=asked.rationale,
                )
            )
            index += 1
    for number in range(real):
        sha256 = store.add(PIL.Image.new("RGB", (56, 56), (number, 7, 7)), 10_000).sha256
        prepared.images.append(_image(sha256, "CT", "train"))
    return prepared


def _image(sha256: str, modality: str, split: str) -> Image:
    return Image(
        image_sha256=sha256,
        width=56,
        height=56,
        modality=modality,
        source="seed",
        source_path="",
        split=Split(split),
        allow_external=True,
        dataset="",
        patient="",
        phash="",
    )
