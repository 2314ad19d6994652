"""Decode a fetched batch and group its predictions by model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


def decode_by_model(
    policies: PolicySet, raws: Sequence[bytes | None], *, approved: bool = False
) -> tuple[list[tuple[str, Batch]], dict[int, Malformed]]:
    """Decode a fetched batch: one Batch for each model in it, and by position why a record is malformed.

    An event belongs to the shape that its model's policy reads; the contract's own shape is tried first. `approved`:
    all of it was judged before, and let through.
    """
    groups: dict[tuple[int, str], list[int]] = {}
    flaws: dict[int, Malformed] = {}
    told: dict[int, int] = {}
    decodings: list[Decoded] = []
    left: Sequence[int] = range(len(raws))
    places: list[dict[int, int]] = []
    for number, shape in enumerate(policies.shapes):
        decoded = shape.decode(raws if number == 0 else [raws[position] for position in left], approved=approved)
        decodings.append(decoded)
        places.append({} if number == 0 else {position: row for row, position in enumerate(left)})
        models = decoded.columns["model"]
        plain = not decoded.malformed and not decoded.ambiguous
        if len(policies.shapes) == 1 and plain and models and models.count(models[0]) == len(models):
            columns = Columns(decoded)
            if models[0] not in policies.policies or not _misnamed(columns):
                return [(models[0], Batch(columns, range(len(raws)), decoded.non_finite))], {}
        undecided: list[int] = []
        for row, position in enumerate(left):
            if row in decoded.malformed:
                found = decoded.malformed[row]
            else:
                model = models[row]
                if policies.shape_of_model.get(model, 0) == number:
                    flaws.pop(position, None)
                    if row in decoded.ambiguous and policies.refuses_ambiguous(model):
                        flaws[position] = decoded.ambiguous[row]
                        continue
                    groups.setdefault((number, model), []).append(position)
                    continue
                found = _of_another_shape(policies, shape, model, raws[position])
            undecided.append(position)
            # Of several reasons the one of the shape that the event is most likely of.
            rank = _rank(policies, number, found)
            if rank > told.get(position, -1):
                told[position], flaws[position] = rank, found
        left = undecided
        if not left:
            break
    result: list[tuple[str, Batch]] = []
    for (number, model), positions in groups.items():
        decoded, place = decodings[number], places[number]
        rows = [place.get(position, position) for position in positions]
        columns = Columns.of(decoded, rows)
        if model in policies.policies and (misnamed := _misnamed(columns)):
            # Routes and tallies could not name them.
            kept = [i for i in range(len(rows)) if i not in misnamed]
            flaws |= {positions[i]: found for i, found in misnamed.items()}
            positions, rows = [positions[i] for i in kept], [rows[i] for i in kept]
            columns = Columns.of(decoded, rows)
            if not rows:
                continue
        non_finite = {i: decoded.non_finite[row] for i, row in enumerate(rows) if row in decoded.non_finite}
        result.append((model, Batch(columns, positions, non_finite)))
    return result, flaws


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
