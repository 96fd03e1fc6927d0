"""Why records were set aside: counted by reason, and only what is wrong counts against a source."""

from __future__ import annotations

import pytest

from medgr2_jobs.data import set_aside
from medgr2_jobs.data.record import BadRecord
from medgr2_jobs.data.set_aside import Tally
from medgr2_jobs.errors import DataError
from medgr2_jobs.store.rows.prepared import QuarantinedRecord, SetAside


def mixed() -> Tally:
    """An export as sites make them: 700 pictures, reports and segmentations among them, and some that are damaged."""
    tally = Tally(good=700)
    for number in range(150):
        tally.set_aside("s", BadRecord(f"{number}.dcm", "PixelData", "is missing", SetAside.NO_PICTURE))
    for number in range(40):
        tally.set_aside("s", BadRecord(f"t{number}.dcm", "PixelData", "looks as if it had text", SetAside.WITHHELD))
    for number in range(5):
        tally.set_aside("s", BadRecord(f"b{number}.dcm", "PixelData", "it cannot be decoded: ValueError"))
    for number in range(2):
        tally.set_aside("s", BadRecord(f"c{number}.dcm", "Rows", f"claims {number + 3:,} samples a frame"))
    return tally


def test_only_what_is_wrong_counts_against_a_source() -> None:
    mixed().check("data.sources[s]", 0.01)
    with pytest.raises(DataError) as error:
        mixed().check("data.sources[s]", 0.005)
    assert str(error.value) == (
        "data.sources[s]: 7 of 707 records cannot be used, more than data.maxBadFraction (0.005) allows: "
        "5 x PixelData: it cannot be decoded: ValueError (first b0.dcm: PixelData: it cannot be decoded: ValueError); "
        "2 x Rows: claims N samples a frame (first c0.dcm: Rows: claims 3 samples a frame); 150 hold no picture; "
        "40 are withheld because text in their pixels may name the patient. Correct them, or raise "
        "data.maxBadFraction to set them aside"
    )


def test_a_source_of_which_nothing_is_left_says_why() -> None:
    tally = mixed()
    tally.good = 0
    with pytest.raises(DataError, match=r"none of its 197 records can be used: 5 x PixelData.*150 hold no picture"):
        tally.check("data.sources[s]", 1)
    with pytest.raises(DataError, match="holds no records"):
        Tally().check("data.sources[s]", 1)


def test_rare_reasons_are_counted_together() -> None:
    tally = Tally(good=1)
    for letter in "abcdefghijkl":
        tally.set_aside("s", BadRecord("x", letter, "is missing"))
    with pytest.raises(DataError, match=r"x: h: is missing; 4 more for 4 other reasons\."):
        tally.check("data.sources[s]", 0.5)


def test_figures_are_over_all_sources() -> None:
    assert set_aside.counters([mixed(), mixed()]) == {"quarantined": 14, "no_picture": 300, "withheld": 80}


@pytest.mark.parametrize(
    ("field", "reason", "sort"),
    [
        ("image", "/ws/data/Doe Jane/x.png: image file is missing", "image: …: image file is missing"),
        ("image", "'../a.png' must be relative to 'data'", "image: … must be relative to …"),
        ("answer", "'it\\'s 3' is not among the options 'a', \"it's\"", "answer: … is not among the options …, …"),
        ("options[3]", "has '<|im_end|>' in it", "options[N]: has … in it"),
        ("Rows", "claims 3,600,000.5 samples", "Rows: claims N samples"),
    ],
)
def test_a_sort_of_reason_leaves_out_what_is_one_records_own(field: str, reason: str, sort: str) -> None:
    assert QuarantinedRecord("s", "x", field, reason, SetAside.UNUSABLE).sort == sort
