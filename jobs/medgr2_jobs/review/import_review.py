"""An expert's decisions: read from JSONL or CSV, checked line by line, and kept in the workspace by their sha256.

The file in the workspace is JSONL, a line per decided triplet and reviewer, in the order of their ids:
{"triplet_id", "veto": true|false, "right"?: the right option's text, "reason"?: text, "by"?: text, "content"?: digest
of what was looked at}.

Who does not veto confirms the generator's answer, or names another option as right. An import adds to the one before
it: of each reviewer the newest decision on a triplet counts, one veto is enough, and where reviewers name different
answers the triplet counts as vetoed.
The files before stay, and `reviews/<cycle>-i<iteration>.history` names them, a sha256 a line, the newest last.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medgr2_api import paths
from medgr2_api.printable import from_csv_cell

from ..errors import ConfigError, CorruptArtifact, DataError
from ..prompts import answers
from ..store import atomic
from ..store.rows.candidates import Candidate, triplet_of
from ..store.safe_path import inside

_YES = frozenset({"true", "yes", "y", "1", "x", "veto"})
_NO = frozenset({"false", "no", "n", "0", "keep"})
_LONGEST = 2000  # characters of a reason or a name
_SHOWN = 3
#: Reason of a veto that no reviewer gave.
DISAGREE = "reviewers name different answers"

Row = Mapping[str, Any]
"""A line of a review's file."""


@dataclass(frozen=True)
class ReviewDecision:
    """What an expert says of one triplet."""

    triplet_id: str
    veto: bool
    right: str = ""
    """The option that is right: its text or, as it was read, its letter; empty: the generator's."""
    reason: str = ""
    by: str = ""
    content: str = ""
    """`content_of` the triplet that was looked at; empty: not known."""
    line: int = 0
    """Where it stands, for messages."""
    answer_index: int | None = None
    """Of the right option, once `check` has found it; None: vetoed, or there is no triplet."""
    corrects: bool = False
    """That is not the generator's answer."""

    @property
    def key(self) -> tuple[str, str]:
        """What it is a decision of: one reviewer has one on each triplet."""
        return self.triplet_id, self.by


def content_of(row: Candidate) -> str:
    """16 hex digits that name what a triplet shows and says: another triplet of the same id has others."""
    content = [row.image_sha256, row.question, row.options, row.answer_index, row.rationale or ""]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def parse(data: bytes, name: str) -> list[ReviewDecision]:
    """Reads a file of decisions: CSV by its name, else JSONL. What has neither veto nor right answer is not decided and
    left out.

    Args:
        data: the file.
        name: of the file, for the format and for messages.

    Raises:
        DataError: names file, line and field.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    rows = _csv(text, name) if name.lower().endswith(".csv") else _jsonl(text, name)
    decisions = [decision for line, row in rows if (decision := _decision(row, line, f"{name}:{line}")) is not None]
    lines: dict[tuple[str, str], int] = {}
    for decision in decisions:
        if decision.key in lines:
            who = f" by {decision.by!r}" if decision.by else ""
            raise DataError(
                f"{name}:{decision.line}: triplet {decision.triplet_id!r} is decided twice{who}, first in line "
                f"{lines[decision.key]}; leave one of them"
            )
        lines[decision.key] = decision.line
    return decisions


def _jsonl(text: str, name: str) -> Iterator[tuple[int, Row]]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}:{line}: not JSON ({error}); each line is one object") from None
        if not isinstance(row, dict):
            raise DataError(f"{name}:{line}: expected an object with triplet_id and veto, not {content.strip()[:40]!r}")
        yield line, row


def _csv(text: str, name: str) -> Iterator[tuple[int, Row]]:
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)  # a spreadsheet's language decides
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    missing = {"triplet_id", "veto"} - set(reader.fieldnames or ())
    if missing:
        raise DataError(f"{name}:1: no column {', '.join(sorted(missing))}; the first line names the columns")
    try:
        for row in reader:
            if any(value for value in row.values()):
                yield reader.line_num, {k: from_csv_cell(v) if isinstance(v, str) else v for k, v in row.items()}
    except csv.Error as error:
        raise DataError(f"{name}:{reader.line_num + 1}: not CSV ({error})") from None


def _decision(row: Row, line: int, where: str) -> ReviewDecision | None:
    name = row.get("triplet_id")
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: triplet_id: expected the id of a triplet, not {name!r}")
    veto = row.get("veto")
    if isinstance(veto, str):
        word = veto.strip().casefold()
        veto = True if word in _YES else False if word in _NO else veto if word else None
    if veto is not None and not isinstance(veto, bool):
        raise DataError(f"{where}: veto: expected true, false, or nothing for not decided, not {veto!r}")
    texts = {}
    for field in ("right", "reason", "by", "content"):
        value = row.get(field) or ""
        if not isinstance(value, str) or len(value) > _LONGEST:
            raise DataError(f"{where}: {field}: expected text of at most {_LONGEST} characters")
        texts[field] = value.strip()
    if veto is None and not texts["right"]:
        return None
    if veto and texts["right"]:
        raise DataError(
            f"{where}: right: {texts['right']!r} beside a veto; what is vetoed is not used at all. Leave veto empty to "
            "have the question used with that answer, or right empty to have it dropped"
        )
    return ReviewDecision(
        name.strip(), bool(veto), texts["right"], texts["reason"], texts["by"], texts["content"], line
    )


def check(decisions: Iterable[ReviewDecision], candidates: Sequence[Candidate], name: str) -> list[ReviewDecision]:
    """The decisions, each with its content and its right answer, once all of them are known to be about these
    candidates.

    Args:
        decisions: as they were read.
        candidates: those of the iteration.
        name: of the file, for messages.

    Raises:
        DataError: a triplet is not among the candidates, or is no longer what was looked at; the right answer is none
            of its options.
    """
    by_id = {row.triplet_id: row for row in candidates}
    checked = []
    for decision in decisions:
        candidate = by_id.get(decision.triplet_id)
        if candidate is None:
            some = ", ".join(sorted(by_id)[:_SHOWN]) or "none"
            raise DataError(
                f"{name}:{decision.line}: no candidate {decision.triplet_id!r} in this iteration; it has {len(by_id)}: "
                f"{some}{', …' * (len(by_id) > _SHOWN)}. Is it another iteration's?"
            )
        content = content_of(candidate)
        if decision.content not in ("", content):
            raise DataError(
                f"{name}:{decision.line}: triplet {decision.triplet_id!r} is not what was reviewed: it was generated "
                "again since. Export and review it anew, or take the review out of spec.reviews"
            )
        checked.append(_answered(replace(decision, content=content), candidate, f"{name}:{decision.line}"))
    return checked


def _answered(decision: ReviewDecision, candidate: Candidate, where: str) -> ReviewDecision:
    """With the option that is right by it."""
    triplet = triplet_of(candidate)
    if decision.veto or (triplet is None and not decision.right):
        return decision
    if triplet is None:
        raise DataError(f"{where}: right: triplet {decision.triplet_id!r} has no options; leave right empty")
    if not decision.right:
        return replace(decision, answer_index=triplet.answer_index)
    texts = [answers.normalise(option) for option in triplet.options]
    letters = list(answers.LETTERS[: len(texts)])
    if (said := answers.normalise(decision.right)) in texts:
        index = texts.index(said)
    elif (letter := decision.right.upper()) in letters:
        index = letters.index(letter)
    else:
        listed = ", ".join(f"{letter}: {option!r}" for letter, option in zip(letters, triplet.options, strict=False))
        raise DataError(
            f"{where}: right: {decision.right!r} is no option of triplet {decision.triplet_id!r}; give the text or the "
            f"letter of one of {listed}"
        )
    return replace(decision, right=triplet.options[index], answer_index=index, corrects=index != triplet.answer_index)


def by_triplet(decisions: Iterable[ReviewDecision]) -> dict[str, ReviewDecision]:
    """What counts of each triplet: of several reviewers a veto, where there is one; so it does where they disagree
    about the right answer, for then nobody knows it.

    Args:
        decisions: as `check` returns them.
    """
    counts: dict[str, ReviewDecision] = {}
    for decision in decisions:
        before = counts.get(decision.triplet_id)
        if before is None or (decision.veto and not before.veto):
            counts[decision.triplet_id] = decision
        elif not before.veto and decision.answer_index != before.answer_index:
            counts[decision.triplet_id] = replace(
                before, veto=True, right="", reason=DISAGREE, answer_index=None, corrects=False
            )
    return counts


def earlier(root: Path, cycle: str, iteration: int, candidates: Sequence[Candidate]) -> list[ReviewDecision]:
    """What was imported last, less what is about triplets that were generated anew since.

    Raises:
        CorruptArtifact: it was changed since it was written.
    """
    path = _history(root, cycle, iteration)
    lines = path.read_text().split() if path.is_file() else []
    if not lines:
        return []
    now = {row.triplet_id: content_of(row) for row in candidates}
    known = [row for row in _read(root, lines[-1]) if row.triplet_id in now]
    still = [row for row in known if row.content in ("", now[row.triplet_id])]
    return check(still, candidates, str(paths.review(lines[-1])))


def remember(root: Path, cycle: str, iteration: int, sha256: str) -> None:
    """The next import adds to this one."""
    path = _history(root, cycle, iteration)
    before = path.read_text() if path.is_file() else ""
    if before.split()[-1:] != [sha256]:
        with atomic.atomic_file(path) as stream:
            stream.write(f"{before}{sha256}\n".encode())


def merged(before: Iterable[ReviewDecision], now: Iterable[ReviewDecision]) -> list[ReviewDecision]:
    """Both; where a reviewer decided again, the later decision."""
    return list({decision.key: decision for decision in (*before, *now)}.values())


def _history(root: Path, cycle: str, iteration: int) -> Path:
    return inside(root, str(paths.review_history(cycle, iteration)), "review")


def dump(decisions: Iterable[ReviewDecision]) -> bytes:
    """The file for the workspace: the same bytes for the same decisions."""
    lines = []
    for decision in sorted(decisions, key=lambda decision: decision.key):
        texts = {
            "right": decision.right, "reason": decision.reason, "by": decision.by, "content": decision.content,
        }  # fmt: skip
        document = {"triplet_id": decision.triplet_id, "veto": decision.veto, **{k: v for k, v in texts.items() if v}}
        lines.append(json.dumps(document, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def save(root: Path, decisions: Iterable[ReviewDecision]) -> str:
    """Puts decisions into the workspace, atomically; returns their sha256."""
    data = dump(decisions)
    sha256 = hashlib.sha256(data).hexdigest()
    path = inside(root, str(paths.review(sha256)), "review")
    with atomic.atomic_file(path) as stream:
        stream.write(data)
    return sha256


def load(root: Path, sha256: str, candidates: Sequence[Candidate]) -> list[ReviewDecision]:
    """The decisions that the spec names.

    Raises:
        ConfigError: they are not in the workspace.
        CorruptArtifact: they were changed since.
        DataError: they are not about these candidates.
    """
    return check(_read(root, sha256), candidates, str(paths.review(sha256)))


def _read(root: Path, sha256: str) -> list[ReviewDecision]:
    name = str(paths.review(sha256))
    path = inside(root, name, "review")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: not there; put it there with `medgr2 review import`") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptArtifact(f"{path}: changed since it was written; import the decisions again")
    return parse(data, name)
