"""The command line as people and pipelines use it, on a real broker and a real Redis."""

import asyncio
import contextlib
import json
import os
import pty
import subprocess
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import jsonschema
import pytest
import pytest_asyncio

from e2e.commands import HOLDFAST, holdfast, start
from e2e.stack import POLICY, Stack

pytestmark = [pytest.mark.real_kafka, pytest.mark.asyncio(loop_scope="module")]

MODELS = ("asked", "plain", "json", "evidence", "recommendations-eu-west")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(kafka, redis_server, tmp_path_factory):
    """A guard and a switch for all tests of this file; each test has a model of its own."""
    folder = tmp_path_factory.mktemp("commands")
    async with Stack(kafka, redis_server.url, dict.fromkeys(MODELS, POLICY), folder=folder) as stack:
        await stack.start("guard", "switch")
        yield stack


@pytest.fixture
def config(stack):
    return stack.folder / "base.toml"


async def serve(stack, model, version, value=100.0, count=40):
    """Predictions of ten entities, and wait for their verdicts."""
    before = len(stack.seen["approved"]) + len(stack.seen["blocked"])
    await stack.send([stack.prediction(model, version, f"SKU-{n % 10}", value) for n in range(count)])
    await stack.until(lambda: len(stack.seen["approved"]) + len(stack.seen["blocked"]) >= before + count)


async def earn_good(stack, model, version):
    while not any(a["action"] == "earned_good" and a["version"] == version for a in stack.audits(model)):
        await serve(stack, model, version, count=20)


async def bad(stack, model, version):
    """Let a version trip; its incident's id."""
    await serve(stack, model, version, value=1.0)
    opened = await stack.until(lambda: [i for i in stack.incidents(model) if i["bad_version"] == version])
    return opened[0]["incident_id"]


ROUTE_COMMANDS = [
    # arguments after the model, exit code, what is answered
    (["promote", "v1"], 0, "applied: v1 is active; no output of it was seen so far, so check its name"),
    (["promote", "v1"], 0, "applied: v1 is active already; nothing changed"),
    (["good", "v2"], 1, "refused: v2 does not serve, and only the one that serves can be declared good; promote it"),
    (["rollback"], 0, "applied: v1 is fenced; no good version is left, so the route is held"),
    (["rollback"], 1, "refused: no version is active, so there is nothing to leave; promote a version"),
    (["promote", "v1"], 1, "refused: v1 is fenced; unfence it first, or choose another version"),
    (["unfence", "v1"], 0, "applied: v1 is a candidate again"),
    (["unfence", "v1"], 1, "refused: v1 is not fenced; there is nothing to lift"),
    (["promote", "v1"], 0, "applied: v1 is active"),
    (["good", "v1"], 0, "applied: v1 is good: the route may come back to it"),
    (["pin", "--for", "30m"], 0, "applied: v1 is pinned until 20"),
    (["promote", "v2"], 1, "refused: the route is pinned; unpin it first"),
    (["unpin"], 0, "applied: the route is auto; v1 stays active"),
    (["unpin"], 1, "refused: the route is not pinned; there is nothing to end"),
    (["fence", "v2"], 0, "applied: v2 is fenced; it was not active, so the route stays"),
    (["unfence", "v2", "--for", "1h"], 0, "applied: v2 is a candidate again until 20"),
    (["hold", "--for", "5m"], 0, "applied: the route is held: every output is blocked until 20"),
    (["promote", "v2"], 1, "refused: a person holds the route; resume it first"),
    (["resume"], 0, "applied: v1 serves again"),
    (["resume"], 1, "refused: nothing is held; promote a version to change the route"),
    (["pin", "v2"], 0, "applied: v2 is pinned"),
]


@pytest.mark.parametrize("as_json", [False, True], ids=["plain", "json"])
async def test_every_command_answers_what_came_of_it(stack, config, as_json):
    """Applied: exit code 0. Refused: exit code 1, and why, and what to do instead. Each with its actor and reason."""
    model = "json" if as_json else "plain"
    for arguments, code, answer in ROUTE_COMMANDS:
        action, *rest = arguments
        more = ["--json"] if as_json else []
        said = await holdfast(config, "route", action, model, *rest, "-r", "a drill", "--actor", "alice", *more)
        assert said.code == code, (arguments, said)
        if as_json:
            audit = said.facts
            assert f"{audit['outcome']}: {audit['detail']}".startswith(answer)
            assert (audit["actor"], audit["reason"], audit["action"]) == ("alice", "a drill", action)
            assert audit["command_id"]
        else:
            assert said.out.startswith(answer)
        unseen = action in ("promote", "pin") and rest[0].startswith("v") and "already" not in answer
        if (action, code) == ("rollback", 0):
            assert said.err.startswith("Warning: No other version of ")
        elif unseen:
            assert said.err.startswith("Warning: No output of ")
        else:
            assert said.err == ""


@pytest.mark.parametrize(("answer", "sent"), [("y", True), ("n", False), (None, True)], ids=["yes", "no", "--yes"])
async def test_a_person_at_a_terminal_is_asked_before_a_command_that_does_more_than_it_says(
    stack, config, answer, sent
):
    """The question names the effect; without a yes nothing is written, and `--yes` is for scripts."""
    model = "asked"
    await stack.command(model, "promote", "v0")
    await serve(stack, model, "v0")
    epoch = (await stack.until(lambda: stack.route(model)))["epoch"]
    command = [*HOLDFAST, "route", "promote", model, f"v-{answer}", "-r", "x", "--config", str(config)]
    said = await asyncio.to_thread(on_a_terminal, [*command, *([] if answer else ["--yes"])], answer)
    assert f"No output of v-{answer} was ever seen" in said
    assert "(asked has v0)" in said
    assert ("Go on?" in said) is (answer is not None)
    assert (f"applied: v-{answer} is active" in said) is sent
    assert ("Nothing was done." in said) is not sent
    await stack.settled()
    assert (stack.route(model)["epoch"] > epoch) is sent


def on_a_terminal(command, answer):
    """Run it on a terminal of its own, type the answer, and return all that it showed there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "COLUMNS": "500"}
    )
    os.close(theirs)
    shown = b""
    # A terminal whose program has ended gives an error.
    with contextlib.suppress(OSError):
        while more := os.read(ours, 4096):
            shown += more
            if answer is not None and b"Go on?" in shown:
                os.write(ours, f"{answer}\n".encode())
                answer = None
    os.close(ours)
    assert process.wait(60) in (0, 1)
    return shown.decode()


async def test_route_show(stack, config):
    """One model or all of them; a held route, fences and the reason can be read on 80 columns."""
    model = "recommendations-eu-west"
    await holdfast(config, "route", "promote", model, "2026.11.24-rc1", "-r", "the first")
    await earn_good(stack, model, "2026.11.24-rc1")
    await holdfast(config, "route", "promote", model, "2026.11.25-rc2", "-r", "a better fit")
    await bad(stack, model, "2026.11.25-rc2")
    said = await holdfast(config, "route", "show", model)
    assert said.code == 0
    assert "serves 2026.11.24-rc1" in said.flat()
    assert "fenced 2026.11.25-rc2" in said.flat()
    assert "because 2026.11.25-rc2 tripped: " in said.flat()
    everything = await holdfast(config, "route", "show", "--json")
    assert model in [route["model"] for route in everything.facts]
    assert [route["version"] for route in (await holdfast(config, "route", "show", model, "--json")).facts] == [
        "2026.11.24-rc1"
    ]
    await holdfast(config, "route", "hold", model, "-r", "stock-taking", "--actor", "bob")
    held = (await holdfast(config, "route", "show", model)).flat()
    assert "serves nothing state held" in held
    assert "by bob because stock-taking" in held
    assert "until" not in held
    await holdfast(config, "route", "resume", model, "-r", "done")
    await holdfast(config, "route", "pin", model, "--for", "2h", "-r", "the sale")
    (pinned,) = (await holdfast(config, "route", "show", model, "--json")).facts
    ends_at = datetime.fromisoformat(pinned["ends_at"])
    assert timedelta(0) < ends_at - datetime.now(UTC) <= timedelta(hours=2)
    shown = (await holdfast(config, "route", "show", model)).flat()
    assert f"state pinned until {ends_at:%Y-%m-%d %H:%M:%S} UTC" in shown


async def test_incidents_from_the_page_to_the_end(stack, config):
    """List, show with the evidence, acknowledge and resolve, by the beginning of the id."""
    model = "evidence"
    await holdfast(config, "route", "promote", model, "v1", "-r", "the first")
    await earn_good(stack, model, "v1")
    await holdfast(config, "route", "promote", model, "v2", "-r", "a better fit")
    incident_id = await bad(stack, model, "v2")
    short = incident_id[:8]
    listed = await holdfast(config, "incidents", "list", "--model", model)
    assert f"{short} " in listed.out
    assert "switched to v1" in listed.out
    assert [i["incident_id"] for i in (await holdfast(config, "incidents", "list", "--json")).facts].count(
        incident_id
    ) == 1
    shown = (await holdfast(config, "incidents", "show", short)).flat()
    for fact in ("status triggered", "severity critical", "done The route moved from v2 to v1", "serves now v1"):
        assert fact in shown
    assert "value 1, expected 10 to " in shown
    assert "{" not in shown
    assert (await holdfast(config, "incidents", "show", short, "--json")).facts["samples"]
    acknowledged = await holdfast(config, "incidents", "ack", short, "-r", "looking", "--actor", "alice")
    assert (acknowledged.code, acknowledged.out) == (0, "applied: the incident is acknowledged\n")
    again = await holdfast(config, "incidents", "ack", short, "-r", "looking", "--json")
    assert again.facts["detail"] == "alice has acknowledged it already; nothing changed"
    assert "acked" in (await holdfast(config, "incidents", "list", "--model", model)).out
    resolved = await holdfast(config, "incidents", "resolve", short, "-r", "v2 is withdrawn")
    assert (resolved.code, resolved.out) == (0, "applied: the incident is resolved; v2 stays fenced\n")
    refused = await holdfast(config, "incidents", "resolve", short, "-r", "once more")
    assert refused.code == 1
    assert refused.out.startswith("refused: there is no open incident of")
    assert (await holdfast(config, "incidents", "list", "--model", model)).out == "No open incident.\n"
    assert "resolved" in (await holdfast(config, "incidents", "list", "--model", model, "--all")).out


async def test_blocked_list(stack, config):
    """The latest, with what was found; how many there are in all; by version and check."""
    await serve(stack, "plain", "v7", value=2.0, count=30)
    said = await holdfast(config, "blocked", "list", "plain", "--version", "v7", "--limit", "3")
    assert said.code == 0
    assert said.flat().count("value 2, expected 10 to") == 3
    assert said.out.endswith("30 blocked; the latest 3 are shown.\n")
    facts = (await holdfast(config, "blocked", "list", "plain", "--version", "v7", "--json")).facts
    assert facts["count"] == len(facts["predictions"]) == 30
    assert {one["prediction"]["value"] for one in facts["predictions"]} == {2.0}
    none = await holdfast(config, "blocked", "list", "plain", "--check", "nothing")
    assert (none.code, none.out) == (0, "Nothing of plain that fits was blocked in that time.\n")


async def test_it_says_its_version(config):
    """One line, without a configuration or servers."""
    said = await holdfast(config, "--version")
    assert (said.code, said.out) == (0, f"holdfast {version('holdfast-guard')}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["route", "show", "pricng"],
        ["route", "promote", "pricng", "v1", "-r", "x"],
        ["route", "hold", "pricng", "-r", "x"],
        ["blocked", "list", "pricng"],
        ["blocked", "release", "pricng", "-r", "x"],
        ["incidents", "list", "--model", "pricng"],
    ],
    ids=" ".join,
)
async def test_a_mistyped_model_is_refused_with_those_that_exist(stack, config, arguments):
    """Also by commands that would make a route for it."""
    said = await holdfast(config, *arguments)
    assert said.code == 1
    assert (
        "There is no model 'pricng'. Models with a route or a policy here: asked, evidence, json, plain, recomm"
        in said.err
    )
    assert stack.routes("pricng") == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["route", "promote", "plain"], "Missing option '--reason'"),
        (["route", "promote", "plain", "-r", "x"], "Give either a VERSION or --from-mlflow."),
        (["route", "promote", "plain", "v1", "--from-mlflow", "models:/a/1", "-r", "x"], "Give either a VERSION or"),
        (["route", "promote", "plain", "v1", "-r", " "], "it is blank"),
        (["route", "promote", "plain", "v1", "-r", "x", "--actor", ""], "it is blank"),
        (["route", "promote", "a b", "v1", "-r", "x"], "'a b' is no name"),
        (["route", "promote", "plain", "v{1}", "-r", "x"], "'v{1}' is no name"),
        (["route", "promote", "plain", "v1", "-r", "x", "--for", "5m"], "No such option: --for"),
        (["route", "promote", "plain", "v1", "-r", "x", "--wait", "--timeout", "never"], "'never' is not a duration"),
        (["route", "pin", "plain", "-r", "x", "--for", "30"], "'30' is not a duration: write a number and one of ms"),
        (["route", "pin", "plain", "-r", "x", "--for", "0s"], "'0s' is no time"),
        (["route", "unpin", "plain", "v1", "-r", "x"], "unpin takes no version; leave out v1."),
        (["route", "unpin", "plain", "-r", "x", "--for", "5m"], "unpin has no end; leave out --for."),
        (["route", "fence", "plain", "-r", "x"], "fence needs a version: holdfast route fence plain VERSION"),
        (["route", "frobnicate"], "No such command 'frobnicate'"),
        (["blocked", "list", "plain", "--since", "yesterday"], "'yesterday' is not a duration"),
        (["blocked", "list", "plain", "--limit", "0"], "equal to 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_wrong_usage_is_exit_code_2(config, arguments, says):
    """Nothing is sent, and what was wrong is said."""
    said = await holdfast(config, *arguments)
    assert said.code == 2
    assert said.out == ""
    assert says in said.flat()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["incidents", "show", "nowhere"], "The incident nowhere is not known. See their ids: holdfast incidents list"),
        (["incidents", "ack", "nowhere", "-r", "x"], "The incident nowhere is not known."),
        (["incidents", "show", ""], "Name the incident by its id, or the beginning of it."),
        (["incidents", "resolve", "", "-r", "x"], "Name the incident by its id, or the beginning of it."),
        (["blocked", "release", "evidence", "-r", "x", "--check", "none"], "Nothing of evidence that fits was blocked"),
        (["route", "hold", "plain", "-r", "x", "--actor", "holdfast"], "'holdfast' names automatic decisions; say who"),
        (["route", "promote", "plain", "-r", "x", "--from-mlflow", "pricing"], "pricing names no registered version."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_what_cannot_be_done_is_exit_code_1(stack, config, arguments, says):
    """With the reason on standard error, and nothing on standard output."""
    for model in ("evidence", "plain"):
        await bad(stack, model, "v9")
    said = await holdfast(config, *arguments)
    assert (said.code, said.out) == (1, "")
    assert says in said.flat()


NEEDING_KAFKA = [
    ["route", "show"],
    ["route", "promote", "plain", "v1", "-r", "x", "--wait"],
    ["incidents", "list"],
    ["incidents", "resolve", "abc", "-r", "x"],
    ["blocked", "list", "plain"],
    ["blocked", "release", "plain", "-r", "x", "--json"],
    ["topics", "create"],
]


@pytest.mark.parametrize("arguments", NEEDING_KAFKA, ids=" ".join)
async def test_without_a_broker_every_command_says_so(config, arguments):
    """One sentence of what happened and one of what to do."""
    said = await holdfast(config, *arguments, HOLDFAST_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert (said.code, said.out) == (1, "")
    assert "No Kafka broker answers at 127.0.0.1:1. Start it, or set kafka.bootstrap_servers" in said.flat()


@pytest.mark.parametrize("service", ["guard", "switch"])
async def test_a_service_without_a_broker_ends_and_says_so(config, service, monkeypatch):
    """As a process: it handles signals."""
    monkeypatch.setenv("HOLDFAST_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    process = start(config, service)
    out, errors = await asyncio.to_thread(process.communicate, timeout=60)
    assert (process.returncode, out) == (1, "")
    assert errors.strip().splitlines()[-1].startswith("No Kafka broker answers at 127.0.0.1:1. Start it, or set")
    assert "Traceback" not in errors


async def test_topics_are_created_once(kafka, stack, config, unique):
    """What is there already stays, and is named as such."""
    topics = {f"HOLDFAST_TOPICS__{role.upper()}": f"{unique}.{role}" for role in stack.document["topics"]}
    made = await holdfast(config, "topics", "create", **topics)
    assert made.code == 0
    assert made.out.count("created") == len(topics)
    again = await holdfast(config, "topics", "create", "--json", **topics)
    assert again.facts == dict.fromkeys(topics.values(), "exists")


async def test_schemas_are_written(config, tmp_path):
    """A JSON Schema for each message, and the AsyncAPI document."""
    refused = await holdfast(config, "schemas", "/proc/nowhere")
    assert (refused.code, refused.out) == (1, "")
    assert "/proc/nowhere cannot be written: No such file or directory. Name another folder." in refused.flat()
    folder = tmp_path / "schemas"
    assert (await holdfast(config, "schemas", str(folder))).code == 0
    documents = {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    assert documents.pop("asyncapi.json")["asyncapi"] == "3.0.0"
    assert {"prediction.schema.json", "route.schema.json", "incident.schema.json"} <= documents.keys()
    for document in documents.values():
        jsonschema.Draft202012Validator.check_schema(document)


async def test_check_prints_every_default_and_no_secret(config):
    """Whatever comes with a password: the logins of Kafka and Redis, and addresses."""
    secrets = {
        "HOLDFAST_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "HOLDFAST_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
        "HOLDFAST_KAFKA__SASL_USERNAME": "guard",
        "HOLDFAST_KAFKA__SASL_PASSWORD": "hunter2",
        "HOLDFAST_REDIS__URL": "rediss://switch:hunter2@redis:6379/0",
        "HOLDFAST_NOTIFY__ALERTMANAGER_URLS": '["https://am:9093"]',
        "HOLDFAST_NOTIFY__BEARER_TOKEN": "hunter2",
    }
    for more in ([], ["--json"]):
        said = await holdfast(config, "check", *more, **secrets)
        assert said.code == 0, said
        assert "hunter" not in said.out + said.err
        assert "https://am:9093" in said.out
    assert said.facts["settings"]["guard"]["no_policy"] == "block"
    (policy_id,) = [name for name in said.facts["policies"] if name.startswith("plain@")]
    assert said.facts["policies"][policy_id]["breaker"]["max_switches_within"] == "1h"


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"HOLDFAST_POLICIES": "/nowhere"}, "/nowhere: there is no such folder"),
        ({"HOLDFAST_GUARD__DELIVERY": "perhaps"}, "guard.delivery"),
        ({"HOLDFAST_NOTIFY__ALERTMANAGER_URLS": '["https://u:p@am"]'}, "notify.alertmanager_urls: an address holds a"),
        ({"HOLDFAST_GAURD__GROUP": "x"}, "HOLDFAST_GAURD__GROUP names no setting"),
        ({"HOLDFAST_CONFIG": "/nowhere.toml"}, "The configuration file /nowhere.toml is not there."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
async def test_check_names_what_is_wrong(config, variables, says):
    """The file or variable, and the key."""
    said = await holdfast(None if "HOLDFAST_CONFIG" in variables else config, "check", **variables)
    assert (said.code, said.out) == (1, "")
    assert says in said.flat()


async def test_everything_reads_on_80_columns(stack, config):
    """No line is longer, and no name or id is cut."""
    model = "recommendations-eu-west"
    incident_id = await bad(stack, model, "2026.11.30-rc9")
    for arguments in (
        ["--help"],
        ["route", "--help"],
        ["blocked", "release", "--help"],
        ["route", "show"],
        ["incidents", "list", "--all"],
        ["incidents", "show", incident_id[:8]],
        ["blocked", "list", model],
        ["doctor"],
        ["check"],
    ):
        said = await holdfast(config, *arguments)
        assert max(map(len, said.out.splitlines())) <= 80, arguments
        assert "…" not in said.out, arguments


async def test_the_shell_completes_commands(tmp_path):
    """`--install-completion` and `--show-completion`, and what the shell then asks."""
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }

    def run(*arguments, **more):
        return subprocess.run(
            arguments, env={**environment, **more}, capture_output=True, text=True, timeout=60, check=False
        )

    holdfast_itself = str(HOLDFAST[0]).replace("python3", "python").rpartition("/")[0] + "/holdfast"
    shown = run(holdfast_itself, "--show-completion", "bash")
    assert (shown.returncode, "complete -o default -F" in shown.stdout) == (0, True)
    installed = run(holdfast_itself, "--install-completion", "bash")
    assert installed.returncode == 0
    assert "holdfast" in (tmp_path / ".bashrc").read_text()
    asked = run(holdfast_itself, _HOLDFAST_COMPLETE="complete_bash", COMP_WORDS="holdfast route un", COMP_CWORD="2")
    assert asked.stdout.split() == ["unpin", "unfence"]
