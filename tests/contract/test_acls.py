"""What is written down about access is what the code says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from backends import ROOT
from holdfast.adapters.acls import PRINCIPALS, REDIS_USERS, grants
from holdfast.settings import Settings
from holdfast_schemas import TOPICS, Party

DOCUMENT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


@pytest.fixture
def defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Away from the configuration of this folder."""
    monkeypatch.chdir(tmp_path)
    return Settings()


def matrix() -> str:
    """Who reads and writes which topic, as a table of the document."""
    rows = [["topic", *Party], ["---"] * (len(Party) + 1)]
    for topic in TOPICS.values():
        marks = ["R" * (party in topic.readers) + "W" * (party in topic.writers) for party in Party]
        rows.append([f"`{topic.default_name}`", *marks])
    return "\n".join(f"| {' | '.join(row)} |".replace("  ", " ") for row in rows)


def test_the_document_has_the_table_and_the_commands_of_the_code(defaults: Settings) -> None:
    """The table of topics, and both lists of commands, word for word."""
    found = re.search(r"<!-- matrix -->\n(.*?)\n<!-- /matrix -->", DOCUMENT, re.DOTALL)
    assert found is not None
    assert found[1] == matrix()
    kafka = "\n".join(grant.command("localhost:9092", "admin.properties") for grant in grants(defaults))
    redis = "\n".join(user.command() for user in REDIS_USERS)
    assert re.findall(r"```sh\n(.*?)\n```", DOCUMENT, re.DOTALL) == [kafka, redis]


def test_whoever_makes_predictions_may_write_nothing_else(defaults: Settings) -> None:
    """No right of theirs, and no transactional id, touches another topic."""
    theirs = [grant for grant in grants(defaults) if grant.party is Party.PRODUCER]
    assert [(grant.kind, grant.names, grant.operations) for grant in theirs] == [
        ("topic", ("predictions",), ("Write",))
    ]


def test_nobody_but_guards_and_switch_writes_what_is_approved_or_decided(defaults: Settings) -> None:
    """People, pipelines and the API ask; no right lets them write the answer."""
    may_write = {
        name: {grant.party for grant in grants(defaults) if name in grant.names and "Write" in grant.operations}
        for name in ("predictions.approved", "predictions.blocked", "holdfast.audit", "holdfast.references")
    }
    assert may_write == {
        "predictions.approved": {Party.GUARD},
        "predictions.blocked": {Party.GUARD},
        "holdfast.audit": {Party.GUARD, Party.SWITCH},
        "holdfast.references": {Party.GUARD, Party.SWITCH},
    }
    ids = {grant.party for grant in grants(defaults) if grant.kind == "transactional-id"}
    assert ids == {Party.GUARD, Party.SWITCH}


def test_people_command_through_the_api_or_by_a_login_for_emergencies(defaults: Settings) -> None:
    """Nobody else but guards, whose tallies stand there, writes control; an operator's login writes nothing at all."""
    may_write = {
        name: {grant.party for grant in grants(defaults) if name in grant.names and "Write" in grant.operations}
        for name in ("holdfast.control", "holdfast.releases")
    }
    assert may_write == {
        "holdfast.control": {Party.GUARD, Party.API, Party.BREAK_GLASS},
        "holdfast.releases": {Party.API, Party.BREAK_GLASS},
    }
    theirs = {operation for grant in grants(defaults) if grant.party == "operator" for operation in grant.operations}
    assert theirs == {"Read", "Describe", "DescribeConfigs"}


def test_grants_follow_the_configuration() -> None:
    """Other topics, groups and logins: no default name is left."""
    settings = Settings(topics={role: f"shop.{role}" for role in TOPICS}, guard={"group": "g"}, switch={"group": "s"})
    principals = {party: f"User:CN={party}" for party in Party}
    lines = [grant.command("kafka:9093", "a") for grant in grants(settings, principals)]
    assert not re.search(r"holdfast|predictions\.", "\n".join(lines))
    assert any("--transactional-id g-shop.predictions- --resource-pattern-type prefixed" in line for line in lines)
    assert any(
        "--transactional-id g-releases-shop.releases- --resource-pattern-type prefixed" in line for line in lines
    )
    assert any("--group CN=consumer --resource-pattern-type prefixed" in line for line in lines)


def test_a_principal_that_is_none_is_refused() -> None:
    """Exit code 1, and the names that exist."""
    for given in ("guards=User:x", "guard=x"):
        done = subprocess.run(
            [sys.executable, "-m", "holdfast.cli", "acls", "kafka", "--principal", given],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert f"The parties are {', '.join(PRINCIPALS)}." in done.stderr
