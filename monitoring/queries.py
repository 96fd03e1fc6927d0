"""What the dashboards and the alerts ask Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from .dashboards import FOLDER
from .table import ALERTS

_NAME = re.compile(r"\b(?:medgr2|workqueue|controller_runtime|rest_client|leader_election|process)_\w+")


@dataclass(frozen=True)
class Query:
    """One expression and where it stands."""

    place: str
    """`fleet: title of the panel`, or the alert's name."""
    expression: str
    legend: str = ""
    instant: bool = True

    @property
    def metrics(self) -> set[str]:
        """Names of the metrics in it; those of a histogram's parts are the histogram's."""
        return {re.sub(r"_(bucket|sum|count)$", "", name) for name in _NAME.findall(self.expression)}

    @property
    def selectors(self) -> set[str]:
        """The metrics with the labels that are asked for."""
        return {found[0] for found in re.finditer(_NAME.pattern + r"(?:\{[^}]*\})?", self.expression)}

    def filled(self, **values: str) -> str:
        """With values for Grafana's variables."""
        return re.sub(r"\$(\w+)", lambda found: values[found[1]], self.expression)


def of_dashboards() -> Iterator[Query]:
    """Of every panel."""
    for path in sorted(FOLDER.glob("*.json")):
        yield from of_dashboard(path)


def of_dashboard(path: Path) -> Iterator[Query]:
    """Of the panels of one dashboard."""
    for panel in json.loads(path.read_text())["panels"]:
        for target in panel.get("targets", ()):
            place = f"{path.stem}: {panel['title']}"
            yield Query(place, target["expr"], target["legendFormat"], bool(target.get("instant")))


def of_alerts() -> Iterator[Query]:
    """Of every alert."""
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield Query(rule["alert"], rule["expr"])
