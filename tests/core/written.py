"""What a correct guard writes of a batch, made by the same core: for tests of the checker."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

from holdfast.core.grouping import decode_by_model
from holdfast.core.judge import judge, learn
from holdfast.core.malformed import blamed
from holdfast.core.memory import Memory
from holdfast.core.policy import PolicySet
from holdfast.core.record_keys import Keys
from holdfast.core.samples import Source
from holdfast.core.tallies import tally, with_malformed
from holdfast.verify.ledger import VERDICTS, Stream
from holdfast_schemas import Header, Route, Tally


@dataclasses.dataclass(frozen=True)
class Rec:
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


@dataclasses.dataclass(frozen=True)
class Written:
    """Records in the order of their topics, with the offset of their prediction; `learn` once they stand."""

    out: dict[Stream, list[Rec]]
    tallies: list[Tally]
    learn: Callable[[], None]


def write_verdicts(
    records: Sequence[Rec],
    policies: PolicySet,
    memory: Memory,
    now: datetime,
    *,
    partition: int = 0,
    partitions: int = 0,
    route: Route | None = None,
) -> Written:
    """Judge one batch of a partition of the topic `predictions`; `partitions`: how many there are, if keys tell."""
    out: dict[Stream, list[Rec]] = {stream: [] for stream in VERDICTS}
    learned = []
    raws = [record.value for record in records]
    groups, malformed = decode_by_model(policies, raws)
    source = Source("predictions", partition, records, f"w{partition}")
    named = [(Header.SOURCE.value, source.of(i).encode()) for i in range(len(records))]

    def write(stream: Stream, i: int, headers: Sequence[tuple[str, bytes]]) -> None:
        out[stream].append(dataclasses.replace(records[i], headers=tuple(headers)))

    told: dict[str, list[Tally]] = {}
    blame = blamed(malformed, policies.policies)
    whose = {i: (model, version) for model, of in blame.items() for version, rows in of.items() for i in rows}
    for i, flaw in malformed.items():
        theirs = []
        if i in whose:
            model, version = whose[i]
            theirs = [
                (Header.POLICY.value, policies.policies[model].id.encode()),
                (Header.MODEL.value, model.encode()),
                (Header.MODEL_VERSION.value, version.encode()),
            ]
        write(Stream.MALFORMED, i, [(Header.ERROR.value, flaw.reason.encode()), *theirs, named[i]])
    for model, group in groups:
        known = policies.policies.get(model)
        keys = partial(Keys, [records[i].key for i in group.positions], partition, partitions)
        judged = judge(group, known, memory, route, now, model=model, keys=keys)
        versions = group.columns.values("model_version")
        for row, i in enumerate(group.positions):
            ours = [
                (Header.VERDICT.value, b"approved" if judged.approved[row] else b"blocked"),
                (Header.POLICY.value, known.id.encode() if known else b"none"),
                (Header.MODEL.value, model.encode()),
                (Header.MODEL_VERSION.value, versions[row].encode()),
            ]
            if row in judged.findings:
                shown = [found.finding().model_dump(mode="json") for found in judged.findings[row]]
                ours.append((Header.FINDINGS.value, json.dumps(shown).encode()))
            if judged.approved[row]:
                write(Stream.APPROVED, i, ours)
            else:
                write(Stream.BLOCKED, i, [*ours, named[i]])
        if known is not None:
            learned.append((known, group.columns, judged))
            told[model] = tally(group, judged, known, source, now, route)
    for model, versions in blame.items():
        told[model] = with_malformed(
            told.get(model, []), versions, malformed, policies.policies[model], route, source, now
        )
    tallies = [one for of in told.values() for one in of]
    for records_of in out.values():
        records_of.sort(key=lambda record: record.offset)

    def learn_all() -> None:
        for policy, columns, judgement in learned:
            learn(memory, policy, columns, judgement)

    return Written(out, tallies, learn_all)
