"""The dashboard is one that Grafana takes, and every panel shows something on a running installation."""

import json
from typing import Any

import pytest
import yaml

from alerts.installation import ALERTS, Installation
from alerts.queries import exported, selectors
from alerts.test_rules import RECORDED

DASHBOARD: dict[str, Any] = json.loads((ALERTS / "dashboards" / "holdfast.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
QUERIES += [("annotation", one["expr"]) for one in DASHBOARD["annotations"]["list"]]
EMPTY_WHEN_ALL_IS_WELL = {"annotation": "no route has changed within the minute that is looked at"}


def filled_in(expression: str) -> str:
    """With the values that Grafana would put in."""
    expression = expression.replace("$__rate_interval", "1m").replace("$model", ".+")
    assert "$" not in expression, expression
    return expression


def test_the_structure_is_what_grafana_imports() -> None:
    """Unique ids, panels that fill a grid of 24 columns without overlap, rows that hold what is below them."""
    assert DASHBOARD["schemaVersion"] >= 36
    assert "id" not in DASHBOARD, "Grafana gives it"
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert everything[0]["type"] == "row"
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        place = panel["gridPos"]
        rows = range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in rows}
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not cells & taken, f"{panel['title']} covers another panel"
        taken |= cells
    assert len({panel["title"] for panel in everything}) == len(everything)


def test_the_data_source_is_a_variable_and_the_one_provisioned_is_found() -> None:
    """Nothing is bound to one Grafana; every variable that is used is declared."""
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "model"}
    assert variables["datasource"]["type"] == "datasource"
    for panel in PANELS:
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    sources = yaml.safe_load((ALERTS / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert [source["type"] for source in sources] == [variables["datasource"]["query"]]


@pytest.mark.parametrize(("title", "expression"), QUERIES)
def test_panels_ask_only_for_metrics_and_labels_that_exist(title: str, expression: str) -> None:
    known = exported() | {record: {"model"} for record in RECORDED}
    for metric, labels in selectors(filled_in(expression)):
        assert metric in known
        assert labels <= known[metric] | {"job", "instance"}


@pytest.mark.real_kafka
@pytest.mark.asyncio(loop_scope="package")
async def test_every_panel_shows_a_series(installation: Installation) -> None:
    """Of services that are well, on a real Prometheus that scrapes them; the one exception is named with its reason."""
    for title, expression in QUERIES:
        query = filled_in(expression)
        if title in EMPTY_WHEN_ALL_IS_WELL:
            installation.prometheus.query(query)
        else:
            await installation.stack.until(
                lambda query=query: installation.prometheus.query(query), f"{title}: {query}"
            )


@pytest.mark.real_kafka
@pytest.mark.asyncio(loop_scope="package")
async def test_prometheus_evaluates_every_rule(installation: Installation) -> None:
    """None fails on real data, such as a match of many to many; and a model that is held is about to alert."""
    wanted = 'ALERTS{alertname="HoldfastRouteStaysHeld",model="routeheld"}'
    await installation.stack.until(lambda: installation.prometheus.query(wanted), "the held model is about to alert")
    groups = json.loads(installation.prometheus.get("/api/v1/rules"))["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
