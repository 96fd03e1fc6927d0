"""What an expert is given: a folder with the triplets (JSONL or CSV), their images, and a page that shows both."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import jinja2

from ..errors import ConfigError
from ..report.cycle_artifacts import CycleArtifacts
from ..store.images import ImageStore
from ..store.tar import ROOT, Counted, Exported
from . import import_review

Row = dict[str, Any]
FORMATS = ("jsonl", "csv")
VETOED = "vetoed"
#: A spreadsheet would take a text that begins like this for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_COLUMNS = ("triplet_id", "image", "modality", "question_type", "question", "options", "answer", "rationale", "score",
            "reasons", "veto", "reason", "by", "content")  # fmt: skip


def triplets(root: Path, cycle: str, iteration: int, everything: bool) -> list[Row]:
    """A row per triplet to look at, in the order of their ids.

    Those that were kept, and those that only an earlier review took out (with its veto): what is sent back replaces
    that review as a whole.

    Args:
        root: the workspace.
        cycle: name of the cycle.
        iteration: which iteration.
        everything: also what the rules and the strategy dropped, as far as there is a triplet.

    Raises:
        ConfigError: curate of this iteration has not finished.
        NotThere: no such cycle.
    """
    made = CycleArtifacts(root, cycle)
    wanted = (f"curate-{iteration}", f"generate-{iteration}")
    if not all(made.has_input(role) for role in wanted):
        raise ConfigError(f"cycle {cycle!r}: curate@{iteration} has not finished: nothing can be reviewed yet")
    curate, candidates = made.input(wanted[0]), made.input(wanted[1]).rows("candidates")
    decisions = {row["triplet_id"]: row for row in curate.rows("decisions")}
    sha256 = str(curate.manifest.parameters.get("review") or "")
    standing = (
        {verdict.triplet_id: verdict for verdict in import_review.load(root, sha256, candidates)} if sha256 else {}
    )
    found = []
    for row in sorted(candidates, key=lambda row: str(row["triplet_id"])):
        decision = decisions.get(row["triplet_id"])
        if decision is None or not row["options"]:
            continue
        if everything or set(decision["reasons"]) <= {VETOED}:
            found.append(_row(row, decision, standing.get(row["triplet_id"])))
    return found


def _row(candidate: Row, decision: Row, standing: import_review.Verdict | None) -> Row:
    index = candidate["answer_index"]
    return {
        "triplet_id": candidate["triplet_id"],
        "image": _image(candidate["image_sha256"]),
        **{name: candidate[name] for name in ("modality", "question_type", "question", "options")},
        "answer": candidate["options"][index] if index is not None else "",
        "rationale": candidate["rationale"],
        "score": decision["score"],
        "reasons": [reason for reason in decision["reasons"] if reason != VETOED],
        "veto": standing.veto if standing else None,
        "reason": standing.reason if standing else "",
        "by": standing.by if standing else "",
        "content": import_review.content_of(candidate),
    }


def _image(sha256: str) -> str:
    return f"images/{sha256}.png"


def write(root: Path, rows: Sequence[Row], file_format: str, title: str, stream: BinaryIO) -> Exported:
    """Writes the folder as a tar archive, as `medgr2_jobs.store.tar` does.

    Args:
        root: the workspace.
        rows: of `triplets`.
        file_format: one of `FORMATS`.
        title: of the page.
        stream: where to write.

    Raises:
        CorruptArtifact: an image is missing or damaged.
    """
    counted, told, images = Counted(stream), Exported(), ImageStore(root)
    with tarfile.open(fileobj=counted, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[arg-type]

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(f"{ROOT}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
            told.files += 1

        for folder in (ROOT, f"{ROOT}/images"):
            member = tarfile.TarInfo(folder)
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
        add(f"triplets.{file_format}", "".join(_csv(rows) if file_format == "csv" else _jsonl(rows)).encode())
        add("index.html", page(rows, title).encode())
        for name in dict.fromkeys(row["image"] for row in rows):
            add(name, images.read(Path(name).stem))
    stream.flush()
    told.sha256, told.bytes = counted.sha256.hexdigest(), counted.bytes
    return told


def _jsonl(rows: Sequence[Row]) -> Iterator[str]:
    return (json.dumps({name: row[name] for name in _COLUMNS}, ensure_ascii=False) + "\n" for row in rows)


def _csv(rows: Sequence[Row]) -> Iterator[str]:
    """With a byte order mark: without it Excel does not know UTF-8."""
    yield "\ufeff"
    yield _line(_COLUMNS)
    for row in rows:
        yield _line([_cell(row[name]) for name in _COLUMNS])


def _line(cells: Sequence[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, list):
        value = " | ".join(value)
    if value is None or isinstance(value, bool | float | int):
        return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value).lower()
    return f"'{value}" if value.startswith(_FORMULA) else value


def page(rows: Sequence[Row], title: str) -> str:
    """An HTML page that shows every triplet beside its image and saves the decisions as JSONL; needs no server."""
    return _template().render(rows=rows, title=title)


@cache
def _template() -> jinja2.Template:
    # autoescape: the texts are a model's, and must not become markup
    return jinja2.Environment(autoescape=True).from_string((Path(__file__).with_name("page.html.jinja")).read_text())
