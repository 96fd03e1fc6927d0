"""An expert's review: out as a folder, back as JSONL or CSV, and into curate's decisions."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.curate_fixtures import CurateWorkspace, candidate, reasons_of
from tests.support.fake_artifacts import publish
from tests.support.rows import row_of

from medgr2_api import paths
from medgr2_api.data import ResolvedSource
from medgr2_jobs.curate.training_set import Origin
from medgr2_jobs.errors import DataError
from medgr2_jobs.review import __main__ as command
from medgr2_jobs.review import export_review, import_review
from medgr2_jobs.store.rows.candidates import AnswerPosterior

ALL: dict[str, Any] = {"selection": {"strategy": "All"}}


class Reviewed(CurateWorkspace):
    """Four candidates of which one is dropped, curated and linked into cycle `test`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.candidates = [
            candidate("t0", self.free[0]),
            candidate("t1", self.free[1], "=cmd() <b>?</b>"),
            candidate("t2", self.free[2], "Größe?"),
            candidate("bench", self.image("test")),
            candidate("broken", self.free[3], outcome="schema"),
        ]
        self.again()

    def again(self, review: str = "", **options: Any) -> int:
        code, found = self.curate(self.candidates, review=review, **{**ALL, **options})
        if code == 0:
            refs = {"generate": self.asked.inputs["generate-1"], "curate": found.ref}
            for stage, ref in refs.items():
                link = self.root / paths.iteration_link("test", 1, stage)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(self.root / ref.path)
            self.found = found
        return code

    def kept(self) -> dict[str, list[str]]:
        return reasons_of(self.found)

    def put(self, *rows: dict[str, Any], name: str = "back.jsonl") -> dict[str, Any]:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        return command.receive(self.root, "test", 1, data, name)


@pytest.fixture
def made(tmp_path: Path) -> Reviewed:
    return Reviewed(tmp_path)


def exported(made: Reviewed, *, file_format: str = "jsonl", everything: bool = False) -> dict[str, bytes]:
    stream = io.BytesIO()
    rows = export_review.triplets(made.root, "test", 1, everything)
    gate = export_review.gate(made.root, "test", None, on_site=True)
    told = export_review.write(gate, rows, file_format, "test", stream)
    assert told.bytes == len(stream.getvalue())
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        files = {m.name.removeprefix("data/"): archive.extractfile(m) for m in archive if m.isreg()}
        return {name: file.read() for name, file in files.items() if file}


# -- out ---------------------------------------------------------------------------------------------------------------


def test_a_sample_begins_with_what_nobody_is_sure_of(made: Reviewed) -> None:
    """A posterior of .4 to .8, the most doubtful first, rejected or not; then the others."""
    made.again(selection={"strategy": "TopK", "k": 2}, scores={"t0": 3, "t1": 2, "t2": 1, "bench": 0})
    assert made.kept() == {"t0": [], "t1": [], "t2": ["not_in_top_k"], "bench": ["benchmark_image", "not_in_top_k"],
                           "broken": ["outcome:schema"]}  # fmt: skip
    likeliest = {"t0": 0.9, "t1": 0.75, "t2": 0.58}
    rows = [row_of(AnswerPosterior, triplet_id=name, posterior=[p, 1 - p]) for name, p in likeliest.items()]
    rows.append(row_of(AnswerPosterior, triplet_id="bench", posterior=[0.6, 0.4], review=0))  # is looked at already
    publish(made.root, "relabel", 1, tables={AnswerPosterior: rows})

    def sample(count: int) -> list[str]:
        all_rows = export_review.triplets(made.root, "test", 1, False, doubtful=True)
        return [row.triplet_id for row in export_review.sample(made.root, "test", 1, all_rows, count)]

    assert sample(9) == ["t2", "t1", "t0"]
    assert sample(2) == ["t2", "t1"]
    assert [row.triplet_id for row in export_review.triplets(made.root, "test", 1, False)] == ["t0", "t1"]


def test_the_folder_has_the_kept_triplets_with_their_images(made: Reviewed) -> None:
    files = exported(made)
    rows = [json.loads(line) for line in files["triplets.jsonl"].splitlines()]
    assert [row["triplet_id"] for row in rows] == ["t0", "t1", "t2"]
    assert rows[2]["question"] == "Größe?"
    assert (rows[0]["answer"], rows[0]["rationale"], rows[0]["veto"], rows[0]["reasons"]) == (
        "CT", "It looks like it.", None, []
    )  # fmt: skip
    for row, source in zip(rows, made.candidates, strict=False):
        assert files[row["image"]] == (made.root / paths.image(source.image_sha256)).read_bytes()
    everything = exported(made, everything=True)["triplets.jsonl"].splitlines()
    assert {json.loads(line)["triplet_id"]: json.loads(line)["reasons"] for line in everything} == {
        "t0": [], "t1": [], "t2": [], "bench": ["benchmark_image"],
    }  # fmt: skip


def test_the_csv_opens_in_a_spreadsheet_and_holds_no_formula(made: Reviewed) -> None:
    data = exported(made, file_format="csv")["triplets.csv"]
    assert data.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    assert [row["question"] for row in rows] == ["What is it?", "'=cmd() <b>?</b>", "Größe?"]
    assert {row["veto"] + row["right"] for row in rows} == {""}
    assert rows[0]["options"] == "CT | MRI | OCT | Fundus"
    back = data.replace(b",,,,,,,", b",,,yes,,too small,Jane,", 1)
    (found,) = import_review.parse(back, "x.csv")
    assert (found.triplet_id, found.veto, found.reason, found.by) == ("t0", True, "too small", "Jane")


def test_the_page_shows_everything_and_no_text_becomes_markup(made: Reviewed) -> None:
    page = exported(made)["index.html"].decode()
    assert page.count("<article ") == 3
    assert page.count('type="radio"') == 12
    assert " checked" not in page
    assert "=cmd() &lt;b&gt;?&lt;/b&gt;" in page
    assert "<b>" not in page
    assert all(f'src="images/{row.image_sha256}.png"' in page for row in made.candidates[:3])
    assert "http" not in page


def test_a_damaged_image_is_named(made: Reviewed) -> None:
    path = made.root / paths.image(made.free[0])
    path.write_bytes(b"x")
    with pytest.raises(Exception, match="changed since it was stored"):
        exported(made)


# -- back --------------------------------------------------------------------------------------------------------------


def test_a_veto_takes_out_and_nothing_else_changes(made: Reviewed) -> None:
    before = made.kept()
    told = made.put({"triplet_id": "t1", "veto": True, "reason": "wrong side", "by": "Jane"},
                    {"triplet_id": "t0", "veto": False}, {"triplet_id": "t2", "veto": None},
                    {"triplet_id": "bench", "veto": True})  # fmt: skip
    assert (told["decided"], told["vetoed"], told["candidates"]) == (3, 2, 5)
    assert made.again(told["sha256"]) == 0
    assert made.kept() == {**before, "t1": ["vetoed"], "bench": ["benchmark_image", "vetoed"]}
    assert {row.row_id for row in made.training() if row.origin is Origin.GENERATED} == {"t0", "t2"}
    counters = made.found.manifest.counters
    assert (counters["dropped_vetoed"], counters["reviewed"], counters["kept"]) == (2, 3, 2)


def test_the_right_answer_of_an_expert_takes_the_generators_out(made: Reviewed) -> None:
    """Of the iteration's own training; relabel brings the question back with the right one."""
    before = made.kept()
    told = made.put(
        {"triplet_id": "t0", "right": " mri "},
        {"triplet_id": "t1", "veto": False, "right": "C"},
        {"triplet_id": "t2", "veto": "", "right": "A"},
        {"triplet_id": "bench", "right": "Fundus"},
    )
    assert (told["decided"], told["vetoed"], told["corrected"]) == (4, 0, 3), "A is what the generator says of t2"
    kept = [json.loads(line) for line in (made.root / paths.review(told["sha256"])).read_text().splitlines()]
    assert {row["triplet_id"]: row["right"] for row in kept} == {
        "t0": "MRI",
        "t1": "OCT",
        "t2": "CT",
        "bench": "Fundus",
    }
    assert made.again(told["sha256"]) == 0
    assert made.kept() == {
        **before, "t0": ["wrong_answer"], "t1": ["wrong_answer"], "bench": ["benchmark_image", "wrong_answer"],
    }  # fmt: skip
    assert {row.row_id for row in made.training() if row.origin is Origin.GENERATED} == {"t2"}
    rows = {row["triplet_id"]: row for row in map(json.loads, exported(made)["triplets.jsonl"].splitlines())}
    assert {name: (row["veto"], row["right"], row["answer"], row["reasons"]) for name, row in rows.items()} == {
        "t0": (False, "MRI", "CT", []), "t1": (False, "OCT", "CT", []), "t2": (False, "CT", "CT", []),
    }  # fmt: skip
    for file_format in ("csv", "jsonl"):
        data = exported(made, file_format=file_format, everything=True)[f"triplets.{file_format}"]
        assert command.receive(made.root, "test", 1, data, f"b.{file_format}")["sha256"] == told["sha256"]


def test_nobody_takes_the_place_of_what_was_vetoed(made: Reviewed) -> None:
    """Nor of a vetoed duplicate: what nobody has looked at does not come in."""
    made.candidates.append(candidate("twin", made.free[0]))
    asked = {"selection": {"strategy": "RandomK", "k": 2}}
    assert made.again(**asked) == 0
    before = made.kept()
    first = next(name for name, reasons in before.items() if not reasons)
    told = made.put({"triplet_id": first, "veto": True})
    assert made.again(told["sha256"], **asked) == 0
    assert made.kept() == {**before, first: ["vetoed"]}


def test_a_review_is_found_again_when_the_folder_is_made_anew(made: Reviewed) -> None:
    told = made.put({"triplet_id": "t1", "veto": True, "reason": "wrong"}, {"triplet_id": "t0", "veto": False})
    assert made.again(told["sha256"]) == 0
    data = exported(made)["triplets.jsonl"]
    rows = {row["triplet_id"]: row for row in map(json.loads, data.splitlines())}
    assert {name: row["veto"] for name, row in rows.items()} == {"t0": False, "t1": True, "t2": None}
    assert rows["t1"]["reason"] == "wrong"
    assert command.receive(made.root, "test", 1, data, "b.jsonl")["vetoed"] == 1, "sent back as it is it says the same"


def test_the_same_decisions_are_the_same_file(made: Reviewed) -> None:
    rows = [{"triplet_id": "t1", "veto": True}, {"triplet_id": "t0", "veto": False, "by": "J"}]
    one, other = made.put(*rows), made.put(*reversed(rows))
    assert one == other
    table = b"\xef\xbb\xbfveto;triplet_id;by\r\nYES;t1;\r\nno;t0;J\r\n;t2;\r\n"
    assert command.receive(made.root, "test", 1, table, "back.csv") == one
    (path,) = (made.root / "reviews").glob("*.jsonl")
    assert path.name == f"{one['sha256']}.jsonl"


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        (b'\n{"triplet_id": "t9", "veto": true}\n', "b.jsonl", "b.jsonl:2: no candidate 't9'"),
        (b'\n{"triplet_id": "t0", "veto": "maybe"}\n', "b.jsonl", "b.jsonl:2: veto: expected true, false, or nothing"),
        (b'{"triplet_id": "t0", "veto": 1}\n', "b.jsonl", "b.jsonl:1: veto"),
        (b'{"veto": true}\n', "b.jsonl", "b.jsonl:1: triplet_id"),
        (b'{"triplet_id": "t0", "veto"\n', "b.jsonl", "b.jsonl:1: not JSON"),
        (b"[1]\n", "b.jsonl", "b.jsonl:1: expected an object"),
        (b'{"triplet_id": "t0", "veto": true, "reason": 3}\n', "b.jsonl", "b.jsonl:1: reason"),
        (b'{"triplet_id": "t0", "veto": true}\n' * 2, "b.jsonl", "b.jsonl:2: triplet 't0' is decided twice"),
        (b'{"triplet_id": "t0", "veto": null}\n', "b.jsonl", "no triplet is decided"),
        (b'\n{"triplet_id": "t0", "right": "X-ray"}\n', "b.jsonl", "b.jsonl:2: right: 'X-ray' is no option of"),
        (b'{"triplet_id": "t0", "right": "E"}\n', "b.jsonl", "A: 'CT', B: 'MRI', C: 'OCT', D: 'Fundus'"),
        (b'{"triplet_id": "t0", "veto": true, "right": "CT"}\n', "b.jsonl", "b.jsonl:1: right: 'CT' beside a veto"),
        (b'{"triplet_id": "t0", "right": 2}\n', "b.jsonl", "b.jsonl:1: right: expected text"),
        (b'{"triplet_id": "broken", "right": "CT"}\n', "b.jsonl", "b.jsonl:1: right: triplet 'broken' has no options"),
        (b"triplet_id,veto,right\nt0,,MRI\nt1,,X-ray\n", "b.csv", "b.csv:3: right: 'X-ray' is no option"),
        (b"\xff\xfe", "b.jsonl", "not UTF-8"),
        (b"triplet_id,vetto\nt0,yes\n", "b.csv", "b.csv:1: no column veto"),
        (b"triplet_id,veto\nt0,yes\nt1,perhaps\n", "b.csv", "b.csv:3: veto"),
        (b'triplet_id,veto\n"t0"x,yes\n', "b.csv", "b.csv:2: not CSV"),
        (b'{"triplet_id": "t0", "veto": true, "content": "0123456789abcdef"}\n', "b.jsonl", "is not what was reviewed"),
    ],
)  # fmt: skip
def test_what_is_not_right_is_named_by_line_and_nothing_is_written(
    made: Reviewed, data: bytes, name: str, said: str
) -> None:
    with pytest.raises(DataError) as refused:
        command.receive(made.root, "test", 1, data, name)
    assert said in str(refused.value)
    assert not list((made.root).glob("reviews/*"))


# -- in curate ---------------------------------------------------------------------------------------------------------


def test_a_review_that_is_not_there_or_was_changed_is_refused(
    made: Reviewed, capfd: pytest.CaptureFixture[str]
) -> None:
    assert made.again("f" * 64) == 78
    assert "medgr2 review import" in capfd.readouterr().err
    sha256 = made.put({"triplet_id": "t1", "veto": True})["sha256"]
    path = made.root / paths.review(sha256)
    path.write_bytes(path.read_bytes().replace(b"true", b"false"))
    assert made.again(sha256) == 65
    assert "changed since it was written" in capfd.readouterr().err


def test_a_review_of_other_triplets_is_refused(made: Reviewed, capfd: pytest.CaptureFixture[str]) -> None:
    sha256 = made.put({"triplet_id": "t1", "veto": True})["sha256"]
    made.candidates[1] = candidate("t1", made.free[1], "Something new?")
    assert made.again(sha256) == 65
    assert f"{sha256}.jsonl:1: triplet 't1' is not what was reviewed" in capfd.readouterr().err
    del made.candidates[1]
    assert made.again(sha256) == 65
    assert f"{sha256}.jsonl:1: no candidate 't1'" in capfd.readouterr().err


def test_a_link_that_leads_out_of_the_workspace_is_not_followed(made: Reviewed, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (made.root / "reviews").symlink_to(outside)
    with pytest.raises(Exception, match="leads out of the workspace"):
        made.put({"triplet_id": "t1", "veto": True})
    assert list(outside.iterdir()) == []


def test_the_program_says_what_is_missing(made: Reviewed, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, said in (
        (["export", "nothing", "--iteration", "1"], 2, "no cycle 'nothing'"),
        (["export", "test", "--iteration", "2"], 78, "curate@2 has not finished"),
        (["export", "../x", "--iteration", "1"], 78, "not the name of a cycle"),
    ):
        assert command.main([*arguments, "--workspace", str(made.root)]) == code
        assert said in capsys.readouterr().err


def decisions_of(made: Reviewed, sha256: Any) -> dict[tuple[str, str], bool]:
    rows = map(json.loads, (made.root / paths.review(str(sha256))).read_text().splitlines())
    return {(row["triplet_id"], row.get("by", "")): row["veto"] for row in rows}


def test_a_second_sitting_adds_to_the_first(made: Reviewed) -> None:
    first = made.put({"triplet_id": "t0", "veto": True, "by": "Jane"}, {"triplet_id": "t1", "veto": True, "by": "Jane"})
    second = made.put(
        {"triplet_id": "t1", "veto": False, "by": "Jane"}, {"triplet_id": "t2", "veto": True, "by": "Jane"}
    )
    assert decisions_of(made, second["sha256"]) == {("t0", "Jane"): True, ("t1", "Jane"): False, ("t2", "Jane"): True}
    assert (second["decided"], second["vetoed"], second["earlier"]) == (3, 2, 1)
    history = (made.root / paths.review_history("test", 1)).read_text().split()
    assert history == [first["sha256"], second["sha256"]]
    assert decisions_of(made, first["sha256"])["t1", "Jane"] is True, "the first stays as it was"
    assert made.again(str(second["sha256"])) == 0
    assert sorted(name for name, reasons in made.kept().items() if reasons == ["vetoed"]) == ["t0", "t2"]


def test_reviewers_are_told_apart_and_one_veto_is_enough(made: Reviewed) -> None:
    made.put({"triplet_id": "t0", "veto": True, "reason": "blurred", "by": "Jane"})
    both = made.put(
        {"triplet_id": "t0", "veto": False, "by": "Omar"}, {"triplet_id": "t1", "veto": False, "by": "Omar"}
    )
    assert decisions_of(made, both["sha256"]) == {("t0", "Jane"): True, ("t0", "Omar"): False, ("t1", "Omar"): False}
    assert (both["decided"], both["vetoed"]) == (2, 1)
    assert made.again(str(both["sha256"])) == 0
    assert made.kept()["t0"] == ["vetoed"]
    (row,) = [row for row in export_review.triplets(made.root, "test", 1, False) if row.triplet_id == "t0"]
    assert (row.veto, row.reason, row.by) == (True, "blurred", "Jane")


def test_where_reviewers_name_different_answers_nobody_knows(made: Reviewed) -> None:
    """Whoever came first; who agrees, by confirming or by naming the same, changes nothing."""
    made.put({"triplet_id": "t0", "right": "MRI", "by": "Jane"}, {"triplet_id": "t1", "right": "OCT", "by": "Jane"},
             {"triplet_id": "t2", "veto": False, "by": "Jane"})  # fmt: skip
    both = made.put({"triplet_id": "t0", "veto": False, "by": "Omar"}, {"triplet_id": "t1", "right": "C", "by": "Omar"},
                    {"triplet_id": "t2", "right": "CT", "by": "Omar"})  # fmt: skip
    assert (both["decided"], both["vetoed"], both["corrected"]) == (3, 1, 1)
    assert made.again(str(both["sha256"])) == 0
    assert {name: made.kept()[name] for name in ("t0", "t1", "t2")} == {
        "t0": ["vetoed"], "t1": ["wrong_answer"], "t2": [],
    }  # fmt: skip
    (row,) = [row for row in export_review.triplets(made.root, "test", 1, False) if row.triplet_id == "t0"]
    assert (row.veto, row.reason, row.right) == (True, "reviewers name different answers", "")


def test_decisions_on_what_is_not_there_any_more_do_not_come_along(made: Reviewed) -> None:
    made.put({"triplet_id": "t0", "veto": True}, {"triplet_id": "t1", "veto": True})
    made.candidates[0] = candidate("t0", made.free[0], "generated anew")
    made.again()
    later = made.put({"triplet_id": "t2", "veto": False})
    assert decisions_of(made, later["sha256"]) == {("t1", ""): True, ("t2", ""): False}


def test_an_import_may_begin_anew(made: Reviewed) -> None:
    made.put({"triplet_id": "t0", "veto": True})
    data = b'{"triplet_id": "t1", "veto": false}'
    alone = command.receive(made.root, "test", 1, data, "back.jsonl", replace=True)
    assert decisions_of(made, alone["sha256"]) == {("t1", ""): False}


def test_what_a_student_of_private_pictures_wrote_stays(made: Reviewed) -> None:
    """About whatever picture: it may tell of others that it has seen. So does what nobody knows the lessons of."""
    for number, name in enumerate(("distill@1:abc", "distill@2:def", "distill@3:fed")):
        made.candidates[number] = replace(made.candidates[number], generator=name)
    assert made.again() == 0
    publish(made.root, "distill", 1, files={"student.json": {"sources": ["pool", "seed"], "mayLeave": False}})
    publish(made.root, "distill", 2, files={"student.json": {"sources": ["pool"], "mayLeave": True}})

    def stay(*inputs: dict[str, Any]) -> set[str]:
        phantoms = {"format": "Phantom", "phantom": {"images": 1}, "role": "Seed", "allowExternal": True}
        sources = [ResolvedSource.model_validate({**phantoms, **source}) for source in inputs]
        return set(export_review.of_private_students(made.root, "test", 1, sources or None))

    assert stay() == {"t0", "t2"}, "of the third nobody knows any more what it has learnt from"
    assert stay({"name": "pool"}) == {"t0", "t2"}
    assert stay({"name": "pool", "allowExternal": False}) == {"t0", "t1", "t2"}, "what the spec of now says counts, too"
    assert stay({"name": "seed"}) == {"t0", "t1", "t2"}, "and so does a source that it does not name any more"
