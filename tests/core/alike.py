"""Runs the real guard's core as a service does, and answers in the words of the reference."""

import json
import tomllib
from datetime import UTC, datetime
from functools import partial

import msgspec
import numpy as np

from core.written import Rec
from holdfast.core.condemned import condemn
from holdfast.core.grouping import decode_by_model
from holdfast.core.judge import judge, learn, remember
from holdfast.core.malformed import blamed
from holdfast.core.memory import Memory, Table
from holdfast.core.policy import PolicySet, parse_policy
from holdfast.core.record_keys import Keys
from holdfast.core.samples import Source
from holdfast.core.tallies import tally, with_malformed
from holdfast_schemas import Route, RouteState

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
TABLE = Table({"a": 0, "b": 1, "c": 2}, np.array([5.0, np.nan, 1.0]), np.array([50.0, 20.0, np.nan]))
TABLES = {"floors.csv": (TABLE, "digest")}


def policy_of(toml, tables=TABLES):
    return parse_policy(tomllib.loads(toml), "pricing.toml", {k: v for k, v in tables.items() if k in toml})


def route_of(fenced=(), held=False):
    state = RouteState.HELD if held else RouteState.AUTO
    return Route(model="pricing", epoch=1, state=state, reason="r", actor="a", since=NOW, fenced=fenced)


class Real:
    """One policy, its memory, and what it said: as `reference.Reference`, with tallies."""

    def __init__(self, policy, fenced=(), held=False):
        self.policy, self.policies = policy, PolicySet.of([policy])
        self.route = route_of(fenced, held)
        self.memory, self.tallies, self.offset = Memory(), [], 0
        self.approved = []

    def judge(self, raws, now=NOW, arrived_ms=1_795_514_400_000, keys=None, partition=0, partitions=0):
        """`keys` are the keys of the records; without them nothing is said about keys."""
        answers = [None] * len(raws)
        groups, malformed = decode_by_model(self.policies, raws)
        for position in malformed:
            answers[position] = "malformed"
        records = [Rec(offset, arrived_ms, None, raw, ()) for offset, raw in enumerate(raws, self.offset)]
        source = Source("predictions", 0, records, "w")
        self.offset += len(raws)
        told = {}
        approved = []
        for model, batch in groups:
            policy = self.policies.policies.get(model)
            route, arrived = self.route if policy else None, partial(source.arrived, batch.positions)
            given = None
            if keys is not None:
                given = partial(Keys, [keys[position] for position in batch.positions], partition, partitions)
            judgement = judge(batch, policy, self.memory, route, now, model=model, arrived=arrived, keys=given)
            assert all(json.loads(msgspec.json.encode(found)) for found in judgement.findings.values()), "a header each"
            for row, position in enumerate(batch.positions):
                found = [(finding.check, finding.enforced) for finding in judgement.findings.get(row, ())]
                assert answers[position] is None, "one verdict each"
                if judgement.approved[row] and not condemn(judgement.findings.get(row, ())):
                    approved.append((position, raws[position]))
                answers[position] = bool(judgement.approved[row]), found
            if policy is not None:
                written = tally(batch, judgement, policy, source, now, self.route)
                told[model] = written
                learn(self.memory, policy, batch.columns, judgement)
        for model, versions in blamed(malformed, self.policies.policies).items():
            policy = self.policies.policies[model]
            told[model] = with_malformed(told.get(model, []), versions, malformed, policy, self.route, source, now)
        for written in told.values():
            assert all(len(one.to_json()) < 1_000_000 for one in written)
            self.tallies += [type(one).model_validate_json(one.to_json()) for one in written]
        assert None not in answers, "a verdict each"
        self.approved += [raw for _, raw in sorted(approved)]
        return answers

    def restart(self):
        """Begin with a memory that is read back from what was approved and may teach, in batches of another size."""
        self.memory = Memory()
        for start in range(0, len(self.approved), 7):
            for model, batch in decode_by_model(self.policies, self.approved[start : start + 7], approved=True)[0]:
                if model == self.policy.model:
                    remember(self.memory, batch.columns, self.policy)

    @property
    def recent(self):
        """The recent values by field and segment, and the segments that may be forgotten, in that order."""
        return {
            name: ({s: v.values() for s, v in known.items()}, [*known.young])
            for (_, name), known in self.memory.recent.items()
        }

    @property
    def last(self):
        known = self.memory.of(self.policy.model)
        fields = {one.field for one in self.policy.remembered_fields() if not one.window}
        return {(f, e): v for f in fields for e, v in known.items(f).items()}


def same(answer):
    """An answer without the order and the repetition of its findings."""
    return answer if answer == "malformed" else (answer[0], sorted(set(answer[1])))


def raw(**members):
    """An event that is fine, with other members; None takes one away."""
    event = {"prediction_id": "p", "model": "pricing", "model_version": "v1", "entity_id": "a", "value": 10.0} | members
    return json.dumps({name: value for name, value in event.items() if value is not None}).encode()


def failures(answer):
    """The names of the checks that failed, of one answer."""
    return {name for name, _ in answer[1]}
