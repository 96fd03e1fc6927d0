"""What is generated is committed, and Grafana can take the dashboards."""

from __future__ import annotations

import json
import re
from itertools import combinations, pairwise
from typing import Any

import pytest
from monitoring import dashboards, queries, table

GENERATED = {"fleet": dashboards.fleet, "cycle": dashboards.cycle}
BUILT_IN = {"__range", "__rate_interval"}


@pytest.fixture(params=sorted(GENERATED))
def board(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A dashboard as it is committed."""
    return dict(json.loads((dashboards.FOLDER / f"{request.param}.json").read_text()))


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_generating_a_dashboard_anew_changes_nothing(name: str) -> None:
    assert (dashboards.FOLDER / f"{name}.json").read_text() == GENERATED[name](), "run `make monitoring`"


def test_generating_the_table_of_metrics_anew_changes_nothing() -> None:
    assert table.PATH.read_text() == table.render(), "run `make monitoring`"


def test_there_are_the_dashboards_that_are_generated_and_no_others() -> None:
    assert {path.stem for path in dashboards.FOLDER.iterdir()} == set(GENERATED)


def test_grafana_knows_the_schema(board: dict[str, Any]) -> None:
    assert board["schemaVersion"] >= 36, "what Grafana migrates by itself"
    assert re.fullmatch(r"[a-z0-9-]{1,40}", board["uid"])
    assert board.get("id") is None, "the server gives it"
    assert board["title"].startswith("MedGR2 / ")
    assert {"type", "title", "id", "gridPos"} <= set.intersection(*(set(panel) for panel in board["panels"]))


def test_the_data_source_is_a_choice(board: dict[str, Any]) -> None:
    source, *others = board["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    asking = [*others, *(panel for panel in board["panels"] if panel["type"] != "row")]
    assert all(each["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for each in asking)


def test_variables_are_defined_before_they_are_used(board: dict[str, Any]) -> None:
    known: set[str] = set()
    for variable in board["templating"]["list"]:
        assert set(re.findall(r"\$(\w+)", str(variable["query"]))) <= known
        known.add(variable["name"])
    assert {"namespace"} <= known
    used = {
        name
        for panel in board["panels"]
        for t in panel.get("targets", ())
        for name in re.findall(r"\$(\w+)", t["expr"])
    }
    assert used <= known | BUILT_IN
    assert known - {"datasource"} <= used


def test_panels_have_ids_and_places_of_their_own(board: dict[str, Any]) -> None:
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["title"], panel["gridPos"]) for panel in panels]
    for (_, a), (_, b) in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, f"{a} and {b} overlap"
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] > 0 for _, place in places)
    assert all((b["y"], b["x"]) > (a["y"], a["x"]) for (_, a), (_, b) in pairwise(places)), "in reading order"


def test_every_panel_says_what_it_shows_and_asks_for_it(board: dict[str, Any]) -> None:
    shown = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["title"] for panel in shown}) == len(shown)
    for panel in shown:
        assert panel["description"]
        assert panel["type"] == "state-timeline" or panel["fieldConfig"]["defaults"]["unit"]
        letters = [target["refId"] for target in panel["targets"]]
        assert letters
        assert len(set(letters)) == len(letters)


def test_every_metric_that_is_asked_for_is_in_the_table() -> None:
    known = {row.name for row in (*table.operator_rows(), *table.stage_rows())}
    for query in (*queries.of_dashboards(), *queries.of_alerts()):
        assert query.metrics
        assert query.metrics <= known, query.place


def test_every_metric_of_ours_is_on_a_dashboard_or_in_an_alert() -> None:
    asked = {name for query in (*queries.of_dashboards(), *queries.of_alerts()) for name in query.metrics}
    ours = {row.name for row in (*table.operator_rows(), *table.stage_rows()) if row.name.startswith("medgr2_")}
    assert ours - asked == {
        "medgr2_cycles",  # the dashboards count by namespace
        "medgr2_cycle_reused_stages_total",
        "medgr2_stage_tokens_total",
        "medgr2_stage_progress_timestamp_seconds",
    }
