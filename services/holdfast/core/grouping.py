"""Decode a fetched batch and group its predictions by model."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.core.columns import Columns, Decoded
from holdfast.core.decode import Shape
from holdfast.core.malformed import Malformed, MalformedKind, malformed
from holdfast.core.one_event import NonFinite
from holdfast.core.policy import PolicySet
from holdfast_schemas._base import NAME_PATTERN
from holdfast_schemas.control import OTHERS


@dataclass(frozen=True, slots=True)
class Batch:
    """n decoded predictions of one model, in the order of their partition.

    `positions` are their places in the batch that was fetched; `non_finite` is keyed by the row here.
    """

    columns: Columns
    positions: Sequence[int]
    non_finite: Mapping[int, Sequence[NonFinite]]


@dataclass(slots=True)
class Group:
    """Rows of one decoding that belong to one model, with their positions in the fetched batch."""

    model: str
    decoded: Decoded
    rows: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def batch(self) -> Batch:
        non_finite = self.decoded.non_finite
        if non_finite:
            non_finite = {i: non_finite[row] for i, row in enumerate(self.rows) if row in non_finite}
        return Batch(Columns.of(self.decoded, self.rows), self.positions, non_finite)

    def without(self, left_out: Container[int]) -> "Group":
        """Return the group without some of its rows, by their place in it."""
        kept = [i for i in range(len(self.rows)) if i not in left_out]
        rows, positions = [self.rows[i] for i in kept], [self.positions[i] for i in kept]
        return Group(self.model, self.decoded, rows, positions)


def decode_by_model(
    policies: PolicySet, raws: Sequence[bytes | None], *, approved: bool = False
) -> tuple[list[tuple[str, Batch]], dict[int, Malformed]]:
    """Decode a fetched batch: one Batch for each model in it, and by position why a record is malformed.

    An event belongs to the shape that its model's policy reads; the contract's own shape is tried first. `approved`:
    all of it was judged before, and let through.
    """
    first = policies.shapes[0].decode(raws, approved=approved)
    if (only := _of_one_model(policies, first)) is not None:
        return [only], {}
    groups, flaws = _group(policies, raws, first, approved=approved)
    result: list[tuple[str, Batch]] = []
    for group in groups:
        batch = group.batch()
        if group.model in policies.policies and (misnamed := _misnamed(batch.columns)):
            # Routes and tallies could not name them.
            flaws |= {group.positions[i]: found for i, found in misnamed.items()}
            rest = group.without(misnamed)
            if not rest.rows:
                continue
            batch = rest.batch()
        result.append((group.model, batch))
    return result, flaws


def _of_one_model(policies: PolicySet, decoded: Decoded) -> tuple[str, Batch] | None:
    """The whole batch where there is one shape, one model, and nothing malformed; else None."""
    models = decoded.columns["model"]
    if len(policies.shapes) > 1 or decoded.malformed or decoded.ambiguous or not models:
        return None
    if models.count(models[0]) != len(models):
        return None
    columns = Columns(decoded)
    if models[0] in policies.policies and _misnamed(columns):
        return None
    return models[0], Batch(columns, range(len(models)), decoded.non_finite)


def _group(
    policies: PolicySet, raws: Sequence[bytes | None], first: Decoded, *, approved: bool
) -> tuple[Iterable[Group], dict[int, Malformed]]:
    """Give each event to the shape that its model's policy reads; by position, why there is none.

    `first` is the decoding by the first shape. Each further shape decodes what no shape before it was given.
    """
    groups: dict[tuple[int, str], Group] = {}
    flaws: dict[int, Malformed] = {}
    ranks: dict[int, int] = {}
    left: Sequence[int] = range(len(raws))
    for number, shape in enumerate(policies.shapes):
        decoded = first if number == 0 else shape.decode([raws[position] for position in left], approved=approved)
        models, undecided = decoded.columns["model"], list[int]()
        for row, position in enumerate(left):
            model, found = models[row], decoded.malformed.get(row)
            if found is None and policies.shape_of_model.get(model, 0) == number:
                flaws.pop(position, None)
                if row in decoded.ambiguous and policies.refuses_ambiguous(model):
                    flaws[position] = decoded.ambiguous[row]
                    continue
                group = groups.get((number, model)) or groups.setdefault((number, model), Group(model, decoded))
                group.rows.append(row)
                group.positions.append(position)
                continue
            undecided.append(position)
            found = found or _of_another_shape(policies, shape, model, raws[position])
            # Of several reasons the one of the shape that the event is most likely of.
            rank = _rank(policies, number, found)
            if rank > ranks.get(position, -1):
                ranks[position], flaws[position] = rank, found
        left = undecided
        if not left:
            break
    return groups.values(), flaws


def _rank(policies: PolicySet, number: int, found: Malformed) -> int:
    """How well the reason of a shape fits the event: best where the model's policy reads that shape."""
    model = found.identity.model
    known = model is not None and model in policies.policies
    if known and policies.shape_of_model[model or ""] == number:
        return 20
    if found.kind is MalformedKind.OTHER_SHAPE:
        return 15
    # Then the shape of which most can be read; of equal ones, one that a policy maps.
    return 2 * found.identity.readable() + (number in policies.shape_of_model.values())


def _of_another_shape(policies: PolicySet, shape: Shape, model: str, raw: bytes | None) -> Malformed:
    """Why an event that names its model here is not what the model's policy maps."""
    wanted = policies.shapes[policies.shape_of_model[model]] if model in policies.shape_of_model else None
    why = wanted.decode([raw]).malformed.get(0) if wanted is not None else None
    return malformed(
        f"the event is not of the shape that the policy of {model!r} maps" + (f": {why.reason}" if why else ""),
        MalformedKind.OTHER_SHAPE,
        field=why.field if why else "model",
        seen=why.seen if why else None,
        wanted=why.wanted if why else None,
        identity=shape.identity_of(raw),
    )


def _misnamed(columns: Columns) -> dict[int, Malformed]:
    """The rows whose version has no name that a route could carry, and the reason."""
    versions = columns.values("model_version")
    names = set(versions)
    if OTHERS not in names and all(map(_is_name, names)):
        return {}
    return {
        row: malformed(
            f"model_version {version!r} is a name that Holdfast uses itself"
            if version == OTHERS
            else f"model_version {version!r} cannot name a version: letters, digits and . _ : @ + / -, at most 200",
            MalformedKind.BAD_VERSION,
            field="model_version",
        )
        for row, version in enumerate(versions)
        if version == OTHERS or not _is_name(version)
    }


_is_name = re.compile(NAME_PATTERN).fullmatch
