"""A few words for Grafana's panels, over grafana-foundation-sdk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BarGaugeDisplayMode,
    BigValueColorMode,
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
Queries = dict[str, str]
"""PromQL → legend."""


def graph(title: str, told: str, unit: str, queries: Queries, *, width: int = 8, stacked: bool = False) -> Any:
    """Lines over time."""
    legend = common.VizLegendOptions()
    legend.display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True)
    panel = timeseries.Panel().unit(unit).min(0).fill_opacity(60 if stacked else 10).legend(legend)
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    return _common(panel, title, told, queries, width, 8)


def free_graph(title: str, told: str, unit: str, queries: Queries, *, width: int = 8) -> Any:
    """Lines over time of a figure that may be negative, or is far from 0."""
    panel = timeseries.Panel().unit(unit).fill_opacity(0).show_points(VisibilityMode.AUTO)
    return _common(panel, title, told, queries, width, 8)


def number(title: str, told: str, unit: str, queries: Queries, *, width: int = 4, red: float | None = None) -> Any:
    """The present value, large; red from a certain value on."""
    steps = [Threshold(color="green", value=None), *([Threshold(color="red", value=red)] if red is not None else [])]
    panel = stat.Panel().unit(unit).color_mode(BigValueColorMode.VALUE).graph_mode(BigValueGraphMode.NONE)
    panel.thresholds(builders.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).no_value("–")
    return _common(panel, title, told, queries, width, 4, instant=True)


def bars(title: str, told: str, unit: str, queries: Queries, *, width: int = 8) -> Any:
    """The present values side by side."""
    panel = bargauge.Panel().unit(unit).min(0).display_mode(BarGaugeDisplayMode.BASIC).show_unfilled(True)
    panel.orientation(VizOrientation.HORIZONTAL).reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return _common(panel, title, told, queries, width, 8, instant=True)


def timeline(title: str, told: str, queries: Queries, *, width: int = 8) -> Any:
    """A bar over time for each series that is there."""
    panel = statetimeline.Panel().show_value(VisibilityMode.NEVER).row_height(0.9)
    return _common(panel, title, told, queries, width, 8)


def _common(
    panel: Any, title: str, told: str, queries: Queries, width: int, height: int, *, instant: bool = False
) -> Any:
    panel.title(title).description(told).datasource(SOURCE).span(width).height(height)
    for number, (expr, legend) in enumerate(queries.items()):
        query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + number))
        panel.with_target(query.instant() if instant else query.range())
    return panel


def variable(name: str, label: str, query: str, *, several: bool = False) -> Any:
    """A choice that Prometheus offers; of several, or all."""
    made = builders.QueryVariable(name).label(label).datasource(SOURCE).query(query)
    made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    return made.multi(True).include_all(True).all_value(".*") if several else made


def dashboard(uid: str, title: str, told: str, variables: Iterable[Any], rows: dict[str, Sequence[Any]]) -> str:
    """The dashboard as JSON; panels get their ids here.

    Args:
        uid: stable, for links.
        title: for people.
        told: what it shows.
        variables: choices beside the data source.
        rows: title → panels, laid out from left to right; each row's widths add up to multiples of 24.
    """
    made = builders.Dashboard(title).uid(uid).description(told).tags(["medgr2"]).readonly().refresh("30s")
    made.time("now-6h", "now").tooltip(DashboardCursorSync.CROSSHAIR)
    made.with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for choice in variables:
        made.with_variable(choice)
    made.link(
        builders.DashboardLink("MedGR2").type("dashboards").tags(["medgr2"]).as_dropdown(False).include_vars(True)
    )
    ids = iter(range(1, 1000))
    for name, panels in rows.items():
        made.with_row(builders.Row(name).id(next(ids)))
        for panel in panels:
            made.with_panel(panel.id(next(ids)))
    return json.dumps(made.build(), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
