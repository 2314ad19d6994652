"""The command line where producers and other people have written what nobody expects."""

import json
import re
import tempfile

import pytest
import pytest_asyncio
import typer

from e2e.commands import holdfast
from e2e.stack import POLICY, Stack
from holdfast.cli.terminal import perform

pytestmark = pytest.mark.real_kafka
together = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(kafka, redis_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rough")
    async with Stack(kafka, redis_server.url, dict.fromkeys(("hostile", "odd"), POLICY), folder=folder) as stack:
        await stack.start("guard", "switch")
        yield stack


@pytest.fixture
def config(stack):
    return stack.folder / "base.toml"


def test_a_failure_that_cannot_be_written_down_is_a_sentence_too(monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(typer.Exit):
        perform(lambda: 1 / 0)
    said = capsys.readouterr().err
    assert said.startswith(
        "Unexpected failure: ZeroDivisionError: division by zero. Please report it, and make room first"
    )


@together
async def test_what_others_have_written_is_printed_as_it_is_and_does_nothing(stack, config):
    """Neither markup nor what a terminal obeys."""
    actor, title = "dependabot[bot] [/sre]", "\x1b]0;mine\x07\x1b[31m"
    fenced = await holdfast(config, "route", "fence", "hostile", "v1", "-r", f"[bold]{title}", "--actor", actor)
    assert fenced.code == 0
    shown = [await holdfast(config, "route", "show", "hostile")]
    await stack.send([stack.prediction("hostile", "v3", f"SKU-{n}{title}[/]", 1.0) for n in range(40)])
    (incident,) = await stack.until(lambda: [i for i in stack.incidents("hostile") if i["bad_version"] == "v3"][:1])
    shown.append(await holdfast(config, "incidents", "show", incident["incident_id"]))
    shown.append(await holdfast(config, "blocked", "list", "hostile"))
    assert f"by {actor} because [bold]\ufffd]0;mine" in shown[0].flat()
    assert re.search("SKU-[0-9]+\ufffd]0;mine", shown[1].flat())
    for said in shown:
        assert said.code == 0
        assert not {"\x1b", "\x07"} & set(said.out + said.err)


@together
async def test_a_prediction_that_is_no_json_is_printed_as_json(stack, config):
    raw = json.dumps({**stack.prediction("odd", "v1", "SKU-1", 1.0), "value": float("nan")}).encode()
    await stack.send([raw])
    await stack.until(lambda: [record for record in stack.seen["blocked"] if record.value == raw])
    said = await holdfast(config, "blocked", "list", "odd", "--json")

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(said.out, parse_constant=refuse)["predictions"][0]["prediction"] == raw.decode()


@together
async def test_one_record_that_cannot_be_read_hides_no_others(stack, config):
    incident_id = stack.incidents("hostile")[-1]["incident_id"]
    await stack.send([b"{"], role="incidents", key=b"broken")
    await stack.send([b'{"release": "of a newer Holdfast"}'], role="audit", key=b"hostile")
    said = await holdfast(config, "incidents", "list", "--json")
    assert incident_id in [incident["incident_id"] for incident in said.facts]
    assert "Left out: The record of 'broken' in" in said.err
    assert (await holdfast(config, "incidents", "ack", incident_id, "-r", "looking")).code == 0
