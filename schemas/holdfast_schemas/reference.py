"""A reference that a person gave: what an entity's next value is held against, instead of its last approved one."""

import json
from typing import Annotated

from pydantic import Field

from holdfast_schemas._base import Contract, Name, NonEmpty, Said, UtcTime

MAX_REFERENCES = 1000
"""In one command."""


class AcceptedValue(Contract):
    """The value of one entity that a person accepts."""

    entity_id: NonEmpty
    field: Annotated[str, Field(pattern=r"^(value|(outputs|features)\..+)$", max_length=1000)] = "value"
    value: float


class Reference(Contract):
    """A record of the compacted topic `holdfast.references`, keyed by model, entity and field.

    `max_change` holds the entity's outputs against it until one of them is approved; from then on against that one.
    Each partition of the predictions does so for itself.
    """

    reference_id: NonEmpty
    """The approved output that was held against it names it in the header `holdfast-reference`."""
    model: Name
    entity_id: NonEmpty
    field: NonEmpty
    value: float
    at: UtcTime
    actor: Said
    reason: Said
    command_id: str | None = None
    """The command that asked for it."""
    source: str | None = None
    """Of a release: `topic/partition/offset` of the prediction."""

    @property
    def key(self) -> bytes:
        """The record's key: a JSON list, for both names may hold any character that could part them."""
        return json.dumps([self.model, self.entity_id, self.field], ensure_ascii=False).encode()


class UsedReference(Contract):
    """The reference that an approved output was held against, as its header says."""

    reference_id: NonEmpty
    field: NonEmpty
    value: float
