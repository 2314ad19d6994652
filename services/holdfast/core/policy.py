"""A policy: what a model's outputs must look like, and when its breaker trips."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from holdfast.core.breaker import BreakerPolicy
from holdfast.core.checks import AnyCheck
from holdfast.core.checks.base import Check, Mode, known_field
from holdfast.core.checks.max_change import MaxChangeCheck
from holdfast.core.checks.outlier import OutlierCheck
from holdfast.core.checks.range import RangeCheck
from holdfast.core.decode import Shape
from holdfast.core.end_of_switch import end_of_switch
from holdfast.core.errors import HoldfastError
from holdfast.core.field_names import is_number_field
from holdfast.core.mapping import TIMES, FieldMapping, Mapped, Reading, parse_path
from holdfast.core.memory import Table
from holdfast.core.promoted import CHECK as NOT_PROMOTED
from holdfast.core.promoted import Versions, accepted_versions
from holdfast.core.record_keys import CHECK as OFF_KEY
from holdfast.core.record_keys import KeyForm, OffKey, RecordKey
from holdfast.core.second_places import places_of
from holdfast.core.segments import UNLISTED as UNLISTED_SEGMENT
from holdfast.core.segments import UNREMEMBERED as UNREMEMBERED_SEGMENT
from holdfast.core.segments import UnlistedSegment, with_listed
from holdfast_schemas import Name, Route, UtcTime

BUILT_IN_CHECKS = (
    "non_finite",
    "negative_zero",
    "fenced",
    "held",
    "no_policy",
    "malformed",
    "not_allowed_here",
    NOT_PROMOTED,
    OFF_KEY,
    UNLISTED_SEGMENT,
    UNREMEMBERED_SEGMENT,
)


class PolicyError(HoldfastError):
    """The policy is refused; the message names the file, the key and what is allowed."""

    model: str | None = None
    """The model whose policy it is, where one model's file is refused."""

    def of(self, model: str) -> Self:
        """Note the model."""
        self.model = self.model or model
        return self


class Remembered(NamedTuple):
    """A field of which the memory must hold something; window 0 is the last value of each entity."""

    model: str
    field: str
    window: int
    paths: tuple[tuple[str, Mapped], ...]
    """The mapping by which it is read: by another one it is another value."""


class Policy(BaseModel):
    """One model's policy, as its TOML file says it, with every default filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: Name
    mode: Mode = "enforce"
    """`shadow`: every finding is reported and no check blocks; `off`: no check runs. Non-finite values, negative zero,
    fences and holds block in every mode."""
    mode_until: UtcTime | None = None
    """When `shadow` or `off` ends by itself: from then on the policy enforces."""
    runbook_url: str = ""
    versions: Versions = "promoted"
    """Whose outputs may be approved once a version was promoted: those of `promoted` versions, of the version that is
    `routed`, or of `any`, where traffic is split elsewhere."""
    fields: dict[str, Mapped] = {}
    """Field name to where it stands, for events of another shape than the contract's."""
    non_finite: Literal["read", "all"] = "read"
    """Where NaN or infinity blocks: in the outputs and in what a check reads, or anywhere in the event."""
    ambiguous: Literal["malformed", "pass"] = "malformed"
    """What an event is that a program may read in another way than this policy: with another value at a second place,
    for example."""
    key: RecordKey = RecordKey()
    """What the key of each record is."""
    off_key: OffKey = "unknown"
    """What a record with another key is to the checks with memory."""
    segments: tuple[str, ...] = ()
    """All segments that there are, where checks read the segment; empty: any segment may come."""
    unlisted_segment: UnlistedSegment = "strictest"
    """How a segment that is not one of `segments` is judged: by the strictest bounds of all, or not at all."""
    checks: tuple[AnyCheck, ...] = ()
    breaker: BreakerPolicy = BreakerPolicy()
    max_table_shrink: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The share of its rows that a table may lose in one change; beyond it the new policy is refused."""
    _id: str = PrivateAttr(default="")
    _ended: "Policy | None" = PrivateAttr(default=None)
    """The same policy after `mode_until`."""

    @field_validator("mode_until", mode="before")
    @classmethod
    def _has_a_zone(cls, at: Any) -> Any:
        return end_of_switch(at)

    @model_validator(mode="after")
    def _ends_a_mode(self) -> Self:
        if self.mode_until is not None and self.mode == "enforce":
            raise ValueError(
                'mode_until is the end of mode = "shadow" or "off", and the mode is "enforce"; set one of them, or '
                "leave mode_until out"
            )
        return self

    @field_validator("fields", mode="before")
    @classmethod
    def _fields_exist(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            raise ValueError("write a table: field name = path")
        for name, mapped in fields.items():
            if name != "features":
                known_field(name)
            if isinstance(mapped, FieldMapping):
                continue
            if isinstance(mapped, str):
                parse_path(mapped)
                continue
            if not isinstance(mapped, dict):
                raise ValueError(f'{name!r} needs a path, which is a text, as in {name} = "offer.price"')
            if "path" not in mapped:
                inside = next(iter(mapped), "cost")
                raise ValueError(
                    f'{name!r} has no path. Write {name} = {{ path = "…", as = "…" }}; a field with a dot in its name '
                    f'needs quotes, as in "{name}.{inside}" = "…"'
                )
            for key in mapped:
                if key not in ("path", "as"):
                    raise ValueError(f"{name!r} has no key {key!r}; the keys here are path, as")
            if not isinstance(mapped["path"], str):
                raise ValueError(f'the path of {name!r} must be a text, as in {name} = "offer.price"')
            parse_path(mapped["path"])
            readings = _readings_of(name)
            if "as" in mapped and mapped["as"] not in readings:
                known = ", ".join(readings) or "none"
                raise ValueError(f"{name!r} cannot be read as {mapped['as']!r}; for this field there are: {known}")
        return fields

    @field_validator("fields")
    @classmethod
    def _outputs_stand_together(cls, fields: dict[str, Mapped]) -> dict[str, Mapped]:
        for name in fields:
            if name.startswith("outputs."):
                raise ValueError(
                    f"{name!r} cannot be mapped by itself; map `outputs`, the object that holds all outputs"
                )
        return fields

    @field_validator("key", mode="before")
    @classmethod
    def _key_is_a_field(cls, key: Any) -> Any:
        if isinstance(key, RecordKey):
            return key
        table = {"field": key} if isinstance(key, str) else key
        if not isinstance(table, dict):
            raise ValueError(f'write a field, as in key = "entity_id", not {key!r}')
        for name in table:
            if name not in ("field", "as"):
                raise ValueError(f"there is no key {name!r} here; the keys here are field, as")
        field, form = table.get("field", "entity_id"), table.get("as", "text")
        if field not in ("entity_id", "segment", "currency", "model") and not str(field).startswith("features."):
            raise ValueError(
                f"{field!r} cannot be the key: the key must be the same for all outputs of an entity, as entity_id, "
                "segment, currency, model or features.<name> may be"
            )
        if form not in tuple(KeyForm):
            raise ValueError(f"a key cannot be written as {form!r}; there are: {', '.join(KeyForm)}")
        return table

    @field_validator("segments")
    @classmethod
    def _segments_are_distinct(cls, segments: tuple[str, ...]) -> tuple[str, ...]:
        for name in segments:
            if not name or segments.count(name) > 1:
                raise ValueError(f"the segment {name!r} is empty or stands twice; write each segment once")
        return segments

    @model_validator(mode="after")
    def _bounds_are_of_listed_segments(self) -> Self:
        for check in self.checks if self.segments else ():
            for name in check.segment if isinstance(check, RangeCheck) else ():
                if name not in self.segments:
                    raise ValueError(
                        f"the check {check.name!r} has bounds for the segment {name!r}, which is not one of segments "
                        f"({', '.join(self.segments)})"
                    )
        return self

    @model_validator(mode="after")
    def _check_names_are_distinct(self) -> Self:
        names = [check.name for check in self.checks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two checks are named {name!r}; findings and counts need one name each")
            if name in BUILT_IN_CHECKS:
                raise ValueError(f"{name!r} is the name of a built-in check; choose another")
        return self

    @property
    def id(self) -> str:
        """`pricing@<12 hex digits>`: the same content, tables included, gives the same id."""
        return self._id

    def at(self, now: datetime) -> "Policy":
        """The policy as it is in force at that time."""
        return self.eventually() if self.mode_until is not None and now >= self.mode_until else self

    def eventually(self) -> "Policy":
        """The policy as it is in force once its mode has ended; what has no end stays. The id is the same."""
        if self.mode_until is None:
            return self
        if self._ended is None:
            self._ended = self.model_copy(update={"mode": "enforce", "mode_until": None})
        self._ended._id = self._id
        return self._ended

    def active_checks(self) -> tuple[AnyCheck, ...]:
        """The checks that run."""
        return () if self.mode == "off" else tuple(check for check in self.checks if check.mode != "off")

    def checks_with_memory(self) -> tuple[str, ...]:
        """Those that hold an output against what was approved before it in its partition."""
        return tuple(one.name for one in self.active_checks() if isinstance(one, MaxChangeCheck | OutlierCheck))

    def reads_keys(self) -> bool:
        """Whether the keys of records are looked at: a check with memory depends on them."""
        return self.off_key != "pass" and bool(self.checks_with_memory())

    def ignores_keys(self) -> bool:
        """Whether the keys of records are not looked at, although a check with memory depends on them."""
        return self.off_key == "pass" and bool(self.checks_with_memory())

    def listed_segments(self) -> frozenset[str] | None:
        """The segments that there are; None where any may come."""
        return frozenset(self.segments) if self.segments and self.mode != "off" else None

    def enforces(self, check: Check) -> bool:
        """Whether a failure of `check` blocks."""
        return self.mode == "enforce" and check.blocks

    def checks_in_shadow(self) -> tuple[str, ...]:
        """The checks that would block, and do not because of shadow."""
        return tuple(one.name for one in self.active_checks() if one.would_block and not self.enforces(one))

    def checks_off(self) -> tuple[str, ...]:
        """The checks that do not run although the policy has them, where the others do."""
        return () if self.mode == "off" else tuple(check.name for check in self.checks if check.mode == "off")

    def why_it_cannot_trip(self) -> str | None:
        """Why no check can trip a version, in words; None: one can."""
        if any(map(self.enforces, self.active_checks())):
            return None
        return (
            "no check blocks, so that only malformed records and numbers that are not finite can trip a version: set "
            'mode = "enforce", and severity = "error" on a check'
        )

    def accepts(self, version: str, route: Route | None) -> bool:
        """Whether an output of this version may be approved, as far as promotions decide it."""
        accepted = None if self.versions == "any" or self.mode != "enforce" else accepted_versions(route, self.versions)
        return accepted is None or version in accepted

    def remembered_fields(self) -> frozenset[Remembered]:
        """What the memory must hold."""
        paths = tuple(sorted(self.fields.items()))
        return frozenset(
            Remembered(self.model, check.field, check.window if isinstance(check, OutlierCheck) else 0, paths)
            for check in self.active_checks()
            if isinstance(check, MaxChangeCheck | OutlierCheck)
        )

    def changing_fields(self) -> tuple[str, ...]:
        """The fields that are held against an entity's last approved value."""
        return tuple(dict.fromkeys(c.field for c in self.active_checks() if isinstance(c, MaxChangeCheck)))

    def windows(self) -> dict[str, int]:
        """How many recent values of a segment the memory keeps, by field: of two checks the farther look counts."""
        found: dict[str, int] = {}
        for check in self.active_checks():
            if isinstance(check, OutlierCheck):
                found[check.field] = max(check.window, found.get(check.field, 0))
        return found


def _readings_of(name: str) -> tuple[Reading, ...]:
    """How a field may be written, beside the contract's way."""
    if name == "predicted_at":
        return TIMES
    return (Reading.DECIMAL_TEXT,) if is_number_field(name) or name in ("outputs", "features") else ()


def collapsed_table(before: Policy, after: Policy) -> str | None:
    """What is wrong with a table of `after` that has lost too many rows, in words; None: nothing."""
    rows = {check.name: check.table_rows for check in before.checks if isinstance(check, RangeCheck)}
    for check in after.checks:
        if not isinstance(check, RangeCheck) or check.table_rows is None:
            continue
        if check.table_rows < (1 - after.max_table_shrink) * (rows.get(check.name) or 0):
            return (
                f"checks[{check.name}]: table {check.table} has {check.table_rows:,} rows, and the one in force has "
                f"{rows[check.name]:,}; it may lose {after.max_table_shrink:.0%} of them at once. Write the whole "
                "table, or set max_table_shrink = 1.0 if it is whole"
            )
    return None


def tables_of(data: Mapping[str, Any]) -> list[str]:
    """The table files that a policy's content names."""
    checks = data.get("checks")
    return [
        check["table"]
        for check in (checks if isinstance(checks, list) else ())
        if isinstance(check, dict) and check.get("kind") == "range" and isinstance(check.get("table"), str)
    ]


def parse_policy(data: Mapping[str, Any], source: str, tables: Mapping[str, tuple[Table, str]] | None = None) -> Policy:
    """Make a policy of a TOML file's content.

    `tables` maps each table file named in it to its rows and the digest of its bytes. Raises PolicyError, naming
    `source` and the key.
    """
    tables = tables or {}
    try:
        policy = Policy.model_validate(dict(data))
        checks = tuple(
            check.with_table(tables[check.table][0])
            if isinstance(check, RangeCheck) and check.table is not None
            else check
            for check in policy.checks
        )
        checks = with_listed(checks, policy.segments)
        policy = policy.model_copy(update={"checks": checks})
        # Refuses a mapping that cannot be read, before it is used.
        shape_of([policy])
    except ValidationError as error:
        raise PolicyError(f"{source}: {_first_error(error, data)}") from None
    except ValueError as error:
        raise PolicyError(f"{source}: {error}") from None
    content = [policy.model_dump(mode="json"), {name: digest for name, (_, digest) in sorted(tables.items())}]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    policy._id = f"{policy.model}@{digest[:12]}"
    return policy


def _first_error(error: ValidationError, data: Mapping[str, Any]) -> str:
    """One sentence for the first mistake: the key, by names rather than positions, and what is allowed there."""
    first = error.errors()[0]
    where: list[str] = []
    node: Any = data
    model: Any = Policy
    for part in first["loc"]:
        if isinstance(part, int):
            node = node[part] if isinstance(node, list | tuple) and part < len(node) else None
            name = node.get("name") if isinstance(node, dict) else None
            where[-1:] = [f"{where[-1]}[{name or part}]"] if where else [str(part)]
        elif isinstance(node, dict) and node.get("kind") == part and part not in node:
            model = _CHECK_TYPES[str(part)]
        else:
            where.append(str(part))
            if part == "breaker":
                model = BreakerPolicy
            node = node.get(part) if isinstance(node, dict) else None
    key = ".".join(where) or "policy"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        names = ", ".join(sorted(model.model_fields))
        message = f"there is no such key; the keys here are {names}"
    elif first["type"] == "union_tag_invalid":
        message = f"there is no check kind {first['ctx']['tag']!r}; the kinds are {first['ctx']['expected_tags']}"
    elif first["type"] == "union_tag_not_found":
        message = f"a check needs `kind`; the kinds are {', '.join(_CHECK_TYPES)}"
    elif first["type"] == "missing":
        message = "this key is missing"
    return f"{key}: {message}"


_CHECK_TYPES: dict[str, type[Check]] = {
    get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in get_args(get_args(AnyCheck)[0])
}


def shape_of(policies: list[Policy], texts: Iterable[str] = (), others: Iterable[list[Policy]] = ()) -> Shape:
    """The shape that reads every field that these policies (of one mapping) need, and `texts` too.

    `others` are the policies of every other mapping in force.
    """
    # What is read of an event stays the same when a mode ends.
    policies = [policy.eventually() for policy in policies]
    checks = [check for policy in policies for check in policy.active_checks()]
    keys = [policy.key.field for policy in policies if policy.reads_keys()]
    segment = ["segment"] if any(policy.listed_segments() for policy in policies) else []
    fields = policies[0].fields if policies else {}
    theirs = [(group[0].fields, [policy.model for policy in group]) for group in others if group]
    return Shape(
        fields,
        numbers=[name for check in checks for name in check.numbers()],
        texts=[*texts, *segment, *(name for check in checks for name in check.texts())],
        anything=[*(name for check in checks for name in check.anything()), *keys],
        second=places_of(fields, theirs),
    )


@dataclass(frozen=True)
class PolicySet:
    """All policies in force, and the shapes of event that they read; the contract's own shape comes first."""

    policies: Mapping[str, Policy]
    shapes: tuple[Shape, ...]
    shape_of_model: Mapping[str, int]
    _later: dict[int, "PolicySet"] = field(default_factory=dict, repr=False, compare=False)
    """By the number of modes that have ended."""

    @classmethod
    def of(cls, policies: list[Policy], *, texts: Iterable[str] = ()) -> Self:
        """Put them together; the `texts` are fields that are read although no check needs them.

        Raises PolicyError when two policies are for one model, or read one shape of event in ways that exclude each
        other.
        """
        by_model: dict[str, Policy] = {}
        by_mapping: dict[tuple[tuple[str, Mapped], ...], list[Policy]] = {(): []}
        for policy in policies:
            if policy.model in by_model:
                raise PolicyError(f"two policies are for the model {policy.model!r}; keep one file for it")
            by_model[policy.model] = policy
            by_mapping.setdefault(tuple(sorted(policy.fields.items())), []).append(policy)
        shapes: list[Shape] = []
        groups = [*by_mapping.values()]
        for group in groups:
            try:
                shapes.append(shape_of(group, texts, [other for other in groups if other is not group]))
            except ValueError as error:
                names = ", ".join(policy.model for policy in group)
                raise PolicyError(f"the policies for {names} read events of one shape, but {error}") from None
        return cls(
            by_model,
            tuple(shapes),
            {policy.model: i for i, group in enumerate(by_mapping.values()) for policy in group},
        )

    def at(self, now: datetime) -> "PolicySet":
        """The policies as they are in force at that time."""
        ended = sum(end <= now for end in self._ends)
        if not ended:
            return self
        if ended not in self._later:
            policies = {model: policy.at(now) for model, policy in self.policies.items()}
            self._later[ended] = PolicySet(policies, self.shapes, self.shape_of_model)
        return self._later[ended]

    @cached_property
    def _ends(self) -> tuple[datetime, ...]:
        return tuple(policy.mode_until for policy in self.policies.values() if policy.mode_until is not None)

    def refuses_ambiguous(self, model: str) -> bool:
        """Whether an event of the model that may be read in two ways is malformed."""
        return model not in self.policies or self.policies[model].ambiguous == "malformed"

    def remembered_fields(self) -> frozenset[Remembered]:
        return frozenset().union(*(policy.remembered_fields() for policy in self.policies.values()))


EMPTY = PolicySet.of([])
