"""The Grafana dashboard as data."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboard.json"


@dataclass(frozen=True)
class Query:
    panel: str
    legend: str
    expression: str

    def __str__(self) -> str:
        return f"{self.panel}, {self.legend}"

    def filled(self, rate_interval: str) -> str:
        """The expression with Grafana's variables replaced: every server."""
        return self.expression.replace("$instance", ".*").replace("$__rate_interval", rate_interval)


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(PATH.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def queries() -> list[Query]:
    return [
        Query(panel["title"], target["legendFormat"], target["expr"])
        for panel in panels()
        for target in panel["targets"]
    ]
