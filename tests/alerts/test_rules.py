"""Every alert fires when it should and is quiet when it should be, has a runbook, and asks for what exists."""

import ast
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import backends
from alerts.queries import CATALOGUE, exported, selectors
from holdfast.settings import Settings
from holdfast_schemas import ALERT_NAMES, IncidentAction, IncidentSeverity

ALERTS = backends.ROOT / "alerts"
RULES = [rule for group in yaml.safe_load((ALERTS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
BY_NAME = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
TESTS = sorted((ALERTS / "tests").glob("*.yml"))
RUNBOOKS = {path.stem: path for path in (ALERTS / "runbooks").glob("*.md") if path.stem != "README"}


def promtool(*arguments: str | Path, folder: Path = ALERTS) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not here; on Debian and Ubuntu: apt-get install prometheus")
    done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_its_configuration_and_the_rules() -> None:
    """As promtool sees it; the configuration names rules.yml beside it."""
    promtool("check", "config", "prometheus.yml")


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_and_are_quiet(path: Path) -> None:
    """The cases in alerts/tests, run by promtool."""
    promtool("test", "rules", path.name, folder=path.parent)


def test_every_alert_has_a_case_where_it_fires_and_one_where_it_is_quiet() -> None:
    """In the promtool tests."""
    fires: dict[str, set[bool]] = {name: set() for name in BY_NAME}
    for path in TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for one in case["alert_rule_test"]:
                fires[one["alertname"]].add(bool(one["exp_alerts"]))
    assert {name for name, seen in fires.items() if seen != {True, False}} == set()


@pytest.mark.parametrize("name", BY_NAME)
def test_an_alert_says_how_bad_it_is_whose_it_is_and_what_to_do(name: str) -> None:
    """Severity as incidents have it, a service, a summary, a description and the address of its runbook."""
    rule = BY_NAME[name]
    assert rule["labels"]["severity"] in set(IncidentSeverity)
    metric_labels: set[str] = set().union(*(exported().get(metric, set()) for metric, _ in selectors(rule["expr"])))
    assert "service" in {*rule["labels"], *metric_labels}
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert annotations["runbook_url"] == f"{Settings().runbook_url}{name}.md"
    assert len(annotations["summary"]) < 120


def test_there_is_a_runbook_for_each_alert_and_each_kind_of_incident_and_no_other() -> None:
    assert set(ALERT_NAMES) == set(IncidentAction)
    assert set(RUNBOOKS) == {*BY_NAME, *ALERT_NAMES.values()}


@pytest.mark.parametrize("name", RUNBOOKS)
def test_a_runbook_has_its_four_parts(name: str) -> None:
    """Named as the alert; what it links to is there."""
    text = RUNBOOKS[name].read_text()
    assert re.findall(r"^# (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE) == [name]
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Meaning", "Impact", "Diagnosis", "Mitigation"]
    assert {link for link in re.findall(r"\]\((\w+)\.md\)", text) if link not in RUNBOOKS} == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_ask_only_for_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    known = exported() | {record: {"model"} for record in RECORDED} | {"up": set()}
    for metric, labels in selectors(rule["expr"]):
        assert metric in known
        assert labels <= known[metric] | {"job", "instance"}


def test_every_metric_of_the_catalogue_is_set_somewhere() -> None:
    """A metric that nobody sets is worse than none: it looks like health."""
    used: set[str] = set()
    for path in (backends.ROOT / "services" / "holdfast").rglob("*.py"):
        if path.name != "metrics.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "metrics":
                    used.add(node.attr)
                if isinstance(node, ast.ImportFrom) and node.module == "holdfast.metrics":
                    used |= {alias.name for alias in node.names}
    assert set(CATALOGUE) - used == set()


def test_labels_are_few_and_gauges_are_never_exported_by_who_does_not_set_them() -> None:
    """No label can have as many values as there are entities, versions or predictions."""
    bounded = {"model", "verdict", "check", "enforced", "partition", "service", "status", "action", "outcome", "kind"}
    bounded |= {"alertmanager", "field", "topic", "change"}  # those of the configuration, the policies and tokens
    bounded |= {"reason"}  # of a malformed record: one of a few kinds
    bounded |= {"topic"}  # ours: approved, blocked and malformed
    for metric in CATALOGUE.values():
        assert set(metric._labelnames) <= bounded, metric
        assert metric._type != "gauge" or metric._labelnames, metric


def test_prometheus_scrapes_every_service_of_the_compose_file() -> None:
    """At the port that the service's health answers on."""
    config = yaml.safe_load((ALERTS / "prometheus.yml").read_text())
    scraped: set[str] = set()
    for job in config["scrape_configs"]:
        for static in job.get("static_configs", []):
            scraped |= set(static["targets"])
        for names in job.get("dns_sd_configs", []):
            scraped |= {f"{name}:{names['port']}" for name in names["names"]}
    compose = yaml.safe_load((backends.ROOT / "docker-compose.yml").read_text())["services"]
    ports = {"guard": 8000, "switch": 8001, "notify": 8002, "api": 8080, "audit": 8003}
    assert {f"{name}:{port}" for name, port in ports.items() if name in compose} <= scraped
