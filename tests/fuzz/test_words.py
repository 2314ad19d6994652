"""What people write: policies, configuration and commands, mutated at random from a seed."""

import os
import random
import tomllib
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from backends import ROOT
from core.alike import Real, raw
from holdfast.adapters.policies import load_policy
from holdfast.core.breaker import BreakerPolicy
from holdfast.core.decide import Tick, decide
from holdfast.core.policy import PolicyError
from holdfast.settings import Settings, SettingsError, load_settings
from holdfast_schemas import Action, Command, Outcome, parse_control

SEED = int(os.environ.get("HOLDFAST_TEST_FUZZ_SEED", "20261124"))
ROUNDS = int(os.environ.get("HOLDFAST_TEST_FUZZ_EVENTS", "50000")) // 25
SNIPPETS = [
    *(
        "0",
        "-1",
        "1e999",
        "nan",
        "inf",
        "true",
        '""',
        '"x"',
        "[]",
        "{}",
        "[[]]",
        "1" + "0" * 400,
        "2026-11-24",
        '"9999999d"',
    ),
    *(
        '"value"',
        '"features.x"',
        '"features."',
        '"range"',
        '"expression"',
        '"\\u0000"',
        '"30s"',
        "0.5",
        "1979-05-27T07:32:00Z",
    ),
    *(
        "[" * 5000,
        "]",
        "=",
        "\n",
        "#",
        '"',
        "'''",
        "min = 1\n",
        "[checks]\n",
        "[[checks]]\n",
        "[fields]\n",
        "[breaker]\n",
    ),
    *(
        '"log(value) > 1"',
        '"value > 1 if cost else 2"',
        '"-" * 9',
        '"__import__(1) > value"',
        '"value ** value > cost"',
    ),
    *(
        '"value % 0 == 1"',
        '"value // cost > 1"',
        '"(value > 1) > 0.5"',
        '"value << 1 > 2"',
        '"1e999 > value"',
        '"~value > 1"',
    ),
]


def mutated(rng, text):
    """The bytes of `text` with a line moved, a value replaced, a letter changed or a snippet in the middle."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        lines = text.splitlines(keepends=True) or ["\n"]
        at = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                lines.insert(rng.randrange(len(lines)), lines.pop(at))
            case 1 | 2 if "=" in lines[at]:
                lines[at] = f"{lines[at].partition('=')[0]}= {rng.choice(SNIPPETS)}\n"
            case 3:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 4:
                lines[at] = lines[at].replace(rng.choice(lines[at]), chr(rng.choice((0, 10, 34, 61, 0x80, 0x2603))), 1)
            case _:
                cut = rng.randrange(len(lines[at]))
                lines[at] = lines[at][:cut] + rng.choice(SNIPPETS) + lines[at][cut:]
        text = "".join(lines)
    return text.encode() + (b"# \xff" if rng.random() < 0.01 else b"")


@pytest.mark.timeout(3600)
def test_whatever_stands_in_a_policy_file_is_a_policy_or_a_refusal(tmp_path):
    """Never another exception, never a refusal of many lines, and what is accepted judges without an exception."""
    rng = random.Random(f"{SEED} policies")
    seeds = [path.read_text(encoding="utf-8") for path in (ROOT / "policies").glob("*.toml")]
    seeds.append((ROOT / "tests/fuzz/every_kind.toml").read_text(encoding="utf-8"))
    (tmp_path / "floors.csv").write_text("entity_id,min,max\na,1,2\n")
    path, accepted, said = tmp_path / "policy.toml", 0, set[str]()
    events = [raw(), raw(value=None, outputs={"p": [1e308] * 3}), raw(features={"cost": 0}), b"{"]
    for _ in range(ROUNDS):
        path.write_bytes(mutated(rng, rng.choice(seeds)))
        try:
            policy = load_policy(path)
        except PolicyError as refused:
            said.add(str(refused))
        else:
            accepted += 1
            real = Real(policy)
            model = policy.model.encode()
            real.judge([event.replace(b'"pricing"', b'"' + model + b'"') for event in events])
    assert [one for one in said if not one.startswith(str(path)) or len(one.splitlines()) != 1] == []
    assert ROUNDS / 50 < accepted < ROUNDS * 0.9


@pytest.mark.timeout(3600)
def test_whatever_stands_in_the_configuration_is_settings_or_a_refusal(tmp_path, monkeypatch):
    """From the file and from the environment; one line each."""
    rng = random.Random(f"{SEED} settings")
    seed = (ROOT / "holdfast.toml").read_text(encoding="utf-8")
    seed += "".join(
        line.lstrip("# ") for line in seed.splitlines(keepends=True) if line.startswith("# ") and "=" in line
    )
    path, accepted, said = tmp_path / "holdfast.toml", 0, set[str]()
    sections = [name.upper() for name in Settings.model_fields]
    for _ in range(ROUNDS // 4):
        path.write_bytes(mutated(rng, rng.choice((seed, '[kafka]\nbootstrap_servers = "a:1"\n'))))
        with monkeypatch.context() as patch:
            patch.setenv("HOLDFAST_CONFIG", str(path))
            if rng.random() < 0.3:
                value = rng.choice([one for one in SNIPPETS if "\0" not in one])
                name = rng.choice(("", "__GROUP", "__X", "__BOOTSTRAP_SERVERS", "__TICK_EVERY", "__A__B"))
                patch.setenv(f"HOLDFAST_{rng.choice(sections)}{name}", value)
            try:
                load_settings()
                accepted += 1
            except SettingsError as refused:
                said.add(str(refused))
    assert [one for one in said if len(one.splitlines()) != 1] == []
    assert ROUNDS / 200 < accepted < ROUNDS / 4


NAMES = ["v1", "v2", "v3", "", "v 1", "{v}", None, 7, "é", "v" * 300]
NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)


def record(rng):
    """A record of the control topic; one in three is broken somewhere."""
    import json

    sane = rng.random() < 0.66
    pick = lambda usual, odd: usual if sane or rng.random() < 0.8 else rng.choice(odd)  # noqa: E731
    if rng.random() < 0.6:
        end = rng.choice((None, "2026-11-24T09:00:00Z", "2026-11-24T10:05:00Z", "9999-12-31T23:59:59Z"))
        value = {
            "type": pick("command", ["order", None]),
            "command_id": pick(f"c{rng.randrange(50)}", ["", 5]),
            "model": pick("pricing", ["", "a b", None]),
            "action": pick(rng.choice(list(Action)).value, ["delete", 3]),
            "version": pick(rng.choice(("v1", "v2", "v3", None)), NAMES),
            "actor": pick(rng.choice(("ann", "holdfast")), ["", None]),
            "reason": pick("because", ["", None, "x" * 2000]),
            "incident_id": pick(rng.choice((None, None, "i-1")), [5]),
            "expires_at": pick(end, ["soon", 5, "2026-11-24T10:00:00"]),
        }
    else:
        seen = rng.randrange(200)
        blocked = rng.choice((0, 0, seen, rng.randrange(seen + 1)))
        failed = rng.choice((0, blocked))
        value = {
            "type": "tally",
            "model": "pricing",
            "model_version": pick(rng.choice(("v1", "v2", "v3")), NAMES),
            "policy": "pricing@000000000000",
            "at": pick("2026-11-24T10:00:00Z", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "now"]),
            "worker": "w",
            "partition": pick(rng.randrange(4), [-1, "0"]),
            "first_offset": 0,
            "last_offset": 2**63,
            "seen": pick(seen, [-1, 1.5]),
            "approved": seen - blocked,
            "blocked": blocked,
            "failed": failed,
            "critical": rng.choice((0, 0, 0, failed)),
            "blocked_by_check": {"floor": blocked} if blocked else {},
            "entities": [f"e{i}" for i in range(min(failed, 32))],
        }
    raw_record = json.dumps({k: v for k, v in value.items() if v is not None}).encode()
    if not sane and rng.random() < 0.3:
        at = rng.randrange(len(raw_record))
        raw_record = raw_record[:at] + bytes([rng.randrange(256)]) + raw_record[at + 1 :]
    return raw_record


@pytest.mark.timeout(3600)
def test_whatever_arrives_at_the_switch_is_decided_or_refused():
    """parse_control says what is wrong; decide never raises, the epoch only rises, every command has one outcome."""
    rng, state, now, refused = random.Random(f"{SEED} control"), None, NOW, 0
    policy = BreakerPolicy(min_seen=20, good_after_seen=50, good_after=timedelta(seconds=30))
    for number in range(2 * ROUNDS):
        event = Tick()
        if rng.random() < 0.8:
            try:
                event = parse_control(record(rng))
            except ValidationError:
                refused += 1
                continue
        if not isinstance(event, Tick) and event.model != "pricing":
            continue
        now = max(NOW, now + timedelta(seconds=rng.choice((0, 0, 1, 5, 60, 4000, -5000))))
        epoch = state.route.epoch if state is not None and state.route is not None else 0
        decision = decide(state, event, now, policy, new_id=f"i-{number}", runbook_url="r")
        if decision.route is not None:
            assert decision.route.epoch == epoch + 1
        if isinstance(event, Command):
            assert len(decision.audits) == 1
            assert decision.audits[0].outcome in Outcome
        state = decision.state
    assert refused > ROUNDS / 50
    assert state.route.epoch > 10


def test_the_policy_of_the_fuzz_holds_every_kind():
    """A kind that is added is fuzzed too."""
    from holdfast.core.policy import _CHECK_TYPES

    data = tomllib.loads((ROOT / "tests/fuzz/every_kind.toml").read_text(encoding="utf-8"))
    assert {check["kind"] for check in data["checks"]} == set(_CHECK_TYPES)
