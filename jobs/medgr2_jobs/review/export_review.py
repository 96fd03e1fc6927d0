"""What an expert is given: a folder with the triplets (JSONL or CSV), their images, and a page that shows both."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import BinaryIO

import jinja2

from medgr2_api.data import Benchmark, ResolvedSource
from medgr2_api.printable import csv_cell
from medgr2_api.stages import PREPARE
from medgr2_api.stages.curate import CurateParameters

from ..curate.selection import VETOED, WRONG_ANSWER
from ..errors import ConfigError
from ..generate.egress_policy import EgressPolicy
from ..generate.prepared_images import PreparedImages
from ..report.cycle_artifacts import CycleArtifacts
from ..report.cycle_frame import CycleFrame
from ..report.students import learnt_from
from ..store.rows.candidates import AnswerPosterior, Candidate, Decision, Triplet, is_student, triplet_of
from ..store.tar import ROOT, CountingWriter, ExportSummary
from . import import_review
from .import_review import ReviewDecision

FORMATS = ("jsonl", "csv")
#: Posteriors of the likeliest answer between which an expert's word says most.
DOUBT = (0.4, 0.8)
#: What an earlier review said: it is no reason not to look again.
_REVIEWED = frozenset({VETOED, WRONG_ANSWER})


@dataclass(frozen=True)
class ReviewRow:
    """A triplet as the expert sees it, and what an earlier review says of it. A field is a column, in this order."""

    triplet_id: str
    image: str
    """Its file in the folder."""
    modality: str
    question_type: str
    question: str
    options: tuple[str, ...]
    answer: str
    rationale: str
    score: float | None
    reasons: tuple[str, ...]
    """Why it was dropped, an earlier review apart."""
    veto: bool | None
    """None: not decided."""
    right: str
    """The right option, where an expert has named one; empty: not decided, vetoed, or `answer` was confirmed."""
    reason: str
    by: str
    content: str
    """`content_of` the triplet."""


def triplets(root: Path, cycle: str, iteration: int, everything: bool, *, doubtful: bool = False) -> list[ReviewRow]:
    """A row per triplet to look at, in the order of their ids.

    Those that were kept, and those that only an earlier review took out (with what it says).

    Args:
        root: the workspace.
        cycle: name of the cycle.
        iteration: which iteration.
        everything: also what the rules and the strategy dropped, as far as there is a triplet.
        doubtful: also what relabel has asked about and nobody is sure of, kept or not.

    Raises:
        ConfigError: curate of this iteration has not finished.
        NotThere: no such cycle.
    """
    artifacts = CycleArtifacts(root, cycle)
    roles = (f"curate-{iteration}", f"generate-{iteration}")
    if not all(artifacts.has_input(role) for role in roles):
        raise ConfigError(f"cycle {cycle!r}: curate@{iteration} has not finished: nothing can be reviewed yet")
    curate, candidates = artifacts.input(roles[0]), artifacts.input(roles[1]).rows(Candidate)
    frame = CycleFrame(artifacts, iteration)
    decisions, scores = {row.triplet_id: row for row in frame.decisions(iteration)}, frame.scores(iteration)
    sha256 = curate.parameters(CurateParameters).review
    reviews = import_review.by_triplet(import_review.load(root, sha256, candidates)) if sha256 else {}
    doubts = _doubts(frame.posteriors(iteration).values()) if doubtful else {}
    rows = []
    for candidate in sorted(candidates, key=lambda row: row.triplet_id):
        triplet, decision = triplet_of(candidate), decisions.get(candidate.triplet_id)
        if triplet is None or decision is None:
            continue
        if everything or candidate.triplet_id in doubts or _REVIEWED.issuperset(decision.reasons):
            name = triplet.triplet_id
            rows.append(
                _row(triplet, decision, scores.get(name), reviews.get(name), import_review.content_of(candidate))
            )
    return rows


def sample(root: Path, cycle: str, iteration: int, rows: Sequence[ReviewRow], count: int) -> list[ReviewRow]:
    """At most `count` of the rows, in the order in which they are worth an expert's time.

    First what is not decided yet and nobody is sure of, the nearest to the middle of the doubt before the others; then
    the rest by lot, so that it says something about all of them.

    Raises:
        NotThere: no such cycle.
    """
    artifacts = CycleArtifacts(root, cycle)
    doubts = _doubts(CycleFrame(artifacts, iteration).posteriors(iteration).values())

    def order(row: ReviewRow) -> tuple[bool, float, str]:
        lot = hashlib.sha256(f"review/{cycle}/{row.triplet_id}".encode()).hexdigest()
        return row.veto is not None, doubts.get(row.triplet_id, 1.0), lot

    return sorted(rows, key=order)[:count]


def _doubts(found: Iterable[AnswerPosterior]) -> dict[str, float]:
    """Distance to the middle of the doubt, by triplet id, of the questions whose likeliest answer is in doubt."""
    low, high = DOUBT
    most = {row.triplet_id: max(row.posterior) for row in found if row.review is None}
    return {name: abs(value - (low + high) / 2) for name, value in most.items() if low <= value <= high}


def _row(
    triplet: Triplet, decision: Decision, score: float | None, review: ReviewDecision | None, content: str
) -> ReviewRow:
    return ReviewRow(
        triplet_id=triplet.triplet_id,
        image=_image(triplet.image_sha256),
        modality=triplet.modality,
        question_type=triplet.question_type,
        question=triplet.question,
        options=triplet.options,
        answer=triplet.options[triplet.answer_index],
        rationale=triplet.rationale,
        score=score,
        reasons=tuple(reason for reason in decision.reasons if reason not in _REVIEWED),
        veto=review.veto if review else None,
        right=review.right if review else "",
        reason=review.reason if review else "",
        by=review.by if review else "",
        content=content,
    )


def _image(sha256: str) -> str:
    return f"images/{sha256}.png"


def gate(root: Path, cycle: str, inputs: Sequence[ResolvedSource | Benchmark] | None, *, on_site: bool) -> EgressPolicy:
    """What the expert may see: the same that an external provider may, unless the review is on site.

    Args:
        root: the workspace.
        cycle: name of the cycle.
        inputs: sources and benchmarks of the spec of now; None: as prepare read them.
        on_site: the folder does not leave the site.

    Raises:
        NotThere: no such cycle.
    """
    artifacts = CycleArtifacts(root, cycle)
    known = artifacts.has_input(PREPARE.name) and not on_site
    images = PreparedImages.published(artifacts.input(PREPARE.name)) if known else PreparedImages()
    return EgressPolicy(images.inputs() if inputs is None else inputs, images, root, external=not on_site)


def of_private_students(
    root: Path, cycle: str, iteration: int, inputs: Sequence[ResolvedSource | Benchmark] | None
) -> frozenset[str]:
    """Ids of the triplets by a student that has learnt from a picture that may not leave, or of which nobody knows any
    more what it has learnt from: what such a one writes may tell of that picture, whatever picture it writes about.

    Args:
        root: the workspace.
        cycle: name of the cycle.
        iteration: which iteration.
        inputs: as in `gate`.

    Raises:
        NotThere: no such cycle.
    """
    frame = CycleFrame(CycleArtifacts(root, cycle), iteration)
    open_now = {source.name for source in inputs or () if isinstance(source, ResolvedSource) and source.allow_external}

    @cache
    def is_private(generator: str) -> bool:
        learnt = learnt_from(frame, generator)
        if not learnt.may_leave:
            return True
        return inputs is not None and not open_now.issuperset(learnt.sources or ())

    candidates = frame.candidates(iteration)
    return frozenset(row.triplet_id for row in candidates if is_student(row.generator) and is_private(row.generator))


def write(
    gate: EgressPolicy, rows: Sequence[ReviewRow], file_format: str, title: str, stream: BinaryIO
) -> ExportSummary:
    """Writes the folder as a tar archive, as `medgr2_jobs.store.tar` does.

    Args:
        gate: what may be in it.
        rows: of `triplets`, about images that it allows.
        file_format: one of `FORMATS`.
        title: of the page.
        stream: where to write.

    Raises:
        ConfigError: an image may not leave.
        CorruptArtifact: an image is missing or damaged.
    """
    counted, exported = CountingWriter(stream), ExportSummary()
    with tarfile.open(fileobj=counted, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(f"{ROOT}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
            exported.files += 1

        for folder in (ROOT, f"{ROOT}/images"):
            member = tarfile.TarInfo(folder)
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
        add(f"triplets.{file_format}", "".join(_csv(rows) if file_format == "csv" else _jsonl(rows)).encode())
        add("index.html", page(rows, title).encode())
        for name in dict.fromkeys(row.image for row in rows):
            add(name, gate.read(Path(name).stem).png)
    stream.flush()
    exported.sha256, exported.bytes = counted.sha256.hexdigest(), counted.bytes
    return exported


def _jsonl(rows: Sequence[ReviewRow]) -> Iterator[str]:
    return (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)


def _csv(rows: Sequence[ReviewRow]) -> Iterator[str]:
    """With a byte order mark: without it Excel does not know UTF-8."""
    yield "\ufeff"
    yield _line([field.name for field in fields(ReviewRow)])
    for row in rows:
        yield _line([_cell(getattr(row, field.name)) for field in fields(ReviewRow)])


def _line(cells: Sequence[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()


def _cell(value: tuple[str, ...] | str | float | bool | None) -> str:
    if isinstance(value, tuple):
        value = " | ".join(value)
    if value is None or isinstance(value, bool | float | int):
        return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value).lower()
    return csv_cell(value)


def page(rows: Sequence[ReviewRow], title: str) -> str:
    """An HTML page that shows every triplet beside its image and saves the decisions as JSONL; needs no server."""
    script = Path(__file__).with_name("verdicts.js").read_text(encoding="utf-8")
    return _template().render(rows=rows, title=title, script=script)


@cache
def _template() -> jinja2.Template:
    # autoescape: the texts are a model's, and must not become markup
    return jinja2.Environment(autoescape=True).from_string((Path(__file__).with_name("page.html.jinja")).read_text())
