"""Formats of other packages: read as the built-in ones are, and what no table could hold is set aside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tests.support.cycle_documents import spec_with
from tests.support.plugin_fixtures import install, plugin

from medgr2_api.data import DataFormat, DataSource
from medgr2_api.presets import resolve
from medgr2_jobs import plugins
from medgr2_jobs.data import format_registry
from medgr2_jobs.data.pseudonyms import Names
from medgr2_jobs.data.record import BadRecord, Place, Record
from medgr2_jobs.errors import ConfigError
from medgr2_jobs.store.images import ImageStore


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    install(monkeypatch)
    Image.effect_noise((32, 32), 60).save(tmp_path / "a.png")
    (tmp_path / "q.tsv").write_text("a.png\tWhich colour?\tred\tblue\nb.png\tWhich?\tred\tblue\na.png\tWhich?\tred\n")
    given = source().model_copy(update={"modality": "X-Ray"})
    return Place(
        given,
        tmp_path,
        tmp_path / "q.tsv",
        "data.sources[toy].uri",
        ImageStore(tmp_path),
        784,
        Names(b"key", clear=True),
    )


def source(version: str = "1.0", **options: str) -> DataSource:
    return DataSource(name="toy", format="Plugin", uri="q.tsv", plugin=plugin("tsv", version, **options))


def test_every_format_has_a_reader() -> None:
    assert set(format_registry.READERS) == set(DataFormat) - {DataFormat.PLUGIN}


def test_a_plugin_reads_records_good_and_bad(place: Place) -> None:
    good, missing, short = format_registry.reader(source(question_type="Colour"), "data.sources[toy]")(place)
    assert isinstance(good, Record)
    assert (good.question, good.options, good.answer_index) == ("Which colour?", ("blue", "red"), 1)
    assert (good.modality, good.question_type, good.question_id) == ("X-Ray", "Colour", "q.tsv:1")
    assert isinstance(missing, BadRecord)
    assert (missing.where, missing.field) == ("q.tsv:2", "image")
    assert short == BadRecord("q.tsv:3", "options", "1 options; at least 2 are needed")


def test_records_that_no_table_could_hold_are_set_aside(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    good, *_ = format_registry.reader(source(), "x")(place)
    assert isinstance(good, Record)

    def careless(place: Place) -> Iterator[Record]:
        yield good
        yield good
        yield replace(good, question_id="other", answer_index=2)

    monkeypatch.setattr(plugins, "load", lambda *_: careless)
    first, twice, beyond = format_registry.reader(source(), "x")(place)
    assert first == good
    assert (
        str(twice) == "record[1] (question_id 'q.tsv:1'): question_id: is the same as in record[0]; "
        "ids must be unique in a source"
    )
    assert str(beyond) == "record[2] (question_id 'other'): answer_index: 2 is no index of 2 options"


def test_another_version_is_refused_before_anything_is_read(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"data\.sources\[toy\]\.plugin\.version: asks for 1\.1"):
        format_registry.reader(source("1.1"), "data.sources[toy]")


def test_images_of_a_plugin_stay_inside_unless_the_spec_says_otherwise() -> None:
    given = source().dump()
    inside, outside = resolve(
        spec_with({"data.sources": [given, {**given, "name": "b", "allowExternal": True}]})
    ).data.sources
    assert (inside.allow_external, outside.allow_external) == (False, True)
