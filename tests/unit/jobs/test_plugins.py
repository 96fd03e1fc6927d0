"""Plugins are found by group, name and version; what does not fit is refused in words that say what is installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.curate_fixtures import triplet
from tests.support.cycle_documents import changed
from tests.support.plugin_fixtures import PACKAGE, install, plugin

from medgr2_api.cycle import CycleSpec
from medgr2_api.plugin import PluginGroup, PluginRef
from medgr2_jobs import plugins
from medgr2_jobs.errors import ConfigError

RULES = PluginGroup.CURATION_RULES


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


def ref(name: str, version: str = "1.0", **options: Any) -> PluginRef:
    return PluginRef.model_validate(plugin(name, version, **options))


def refusal(group: PluginGroup, named: PluginRef) -> str:
    with pytest.raises(ConfigError) as caught:
        plugins.load(group, named, "the.field")
    return str(caught.value)


def another(folder: Path, name: str, version: str, group: PluginGroup, *points: str) -> None:
    """A package that is not there but by its entry points."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *points, ""]))


def test_options_become_keyword_arguments() -> None:
    class OneQuestion:
        usable = [triplet("t", "i", "Is it large?")]

    assert list(plugins.load(RULES, ref("short-questions"), "x")(OneQuestion, {})) == [("t", "fewer_than_4_words")]
    assert list(plugins.load(RULES, ref("short-questions", words=3), "x")(OneQuestion, {})) == []


def test_another_version_is_refused() -> None:
    told = refusal(RULES, ref("short-questions", "2.0"))
    assert told.startswith("the.field.version: asks for 2.0, but installed is medgr2-example-plugin 1.0")
    assert "install 2.0" in told


def test_what_is_not_installed_is_refused_with_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told = refusal(RULES, ref("short-question"))
    assert "no installed package has an entry point 'short-question' in medgr2.curation_rules" in told
    assert "did you mean 'short-questions'?" in told
    assert "short-questions (medgr2-example-plugin 1.0)" in told
    monkeypatch.undo()
    assert "Installed are: none" in refusal(RULES, ref("short-questions"))


def test_a_name_belongs_to_one_group() -> None:
    assert "entry point 'brevity' in medgr2.curation_rules" in refusal(RULES, ref("brevity"))


def test_options_that_it_does_not_take_are_refused() -> None:
    told = refusal(RULES, ref("short-questions", characters=3))
    assert told.startswith("the.field.options: 'short-questions' does not take them")
    assert "'characters'" in told
    assert "words: 'int' = 4" in told


def test_two_packages_with_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another(tmp_path, "other", "3.1", RULES, "short-questions = math:hypot")
    monkeypatch.syspath_prepend(tmp_path)
    told = refusal(RULES, ref("short-questions"))
    assert "medgr2-example-plugin 1.0" in told
    assert "other 3.1" in told


def test_what_cannot_be_imported_or_called_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another(tmp_path, "broken", "1.0", RULES, "gone = no_such_module:rule", "number = math:pi")
    monkeypatch.syspath_prepend(tmp_path)
    assert "no_such_module:rule of broken 1.0 cannot be imported: ModuleNotFoundError" in refusal(RULES, ref("gone"))
    assert "math:pi of broken 1.0 is no function" in refusal(RULES, ref("number"))


def test_the_documentation_shows_the_package_and_what_a_cycle_may_say() -> None:
    text = (Path(__file__).parents[3] / "docs" / "plugins.md").read_text()
    blocks = dict(re.findall(r"## ([^\n]+)\n\n```yaml\n(.*?)```", text, re.DOTALL))
    assert set(blocks) == {"A provider", "A data format", "A reward term", "A curation rule"}
    for shown in blocks.values():
        spec = changed({})["spec"]
        for part, values in yaml.safe_load(shown).items():
            spec[part] = values if part == "generator" else spec.get(part, {}) | values
        CycleSpec.model_validate(spec)
    (points,) = re.findall(r"```ini\n(.*?)```", text, re.DOTALL)
    assert points == (PACKAGE / "medgr2_example_plugin-1.0.dist-info" / "entry_points.txt").read_text()
