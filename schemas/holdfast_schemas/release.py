"""What `holdfast.releases` carries: a person's request to release predictions, and how a guard answers it."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from holdfast_schemas._base import Contract, Count, Name, NonEmpty, Said
from holdfast_schemas.verdict import Finding

MAX_RELEASES = 500
"""Predictions in one command: a guard releases them in one transaction."""
SourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+/[0-9]+/[0-9]+$", max_length=300)]


class WaitingPrediction(Contract):
    """One prediction without an approval."""

    model_config = ConfigDict(extra="forbid")

    source: SourceName
    """`topic/partition/offset` of the prediction. The command stands in the partition of the same number."""
    offset: Count
    """Of its record in the same partition of `predictions.blocked`, or of `predictions.malformed` for a `retry`."""


class ReleaseCommand(Contract):
    """What a person or a pipeline asks the guards for; a guard judges by the policies in force there.

    A command that was answered is not carried out again: `command_id` tells it. A member that the contract does not
    name is refused.
    """

    model_config = ConfigDict(extra="forbid")

    command_id: NonEmpty
    action: Literal["release", "retry"]
    """`release`: of what was blocked. `retry`: of what could not be decoded."""
    model: Name
    version: Name | None = None
    """Only predictions of this version; it is of use for a `retry`."""
    predictions: Annotated[tuple[WaitingPrediction, ...], Field(min_length=1, max_length=MAX_RELEASES)]
    actor: Said
    reason: Said
    force: bool = False
    """Release what fails the policy, too."""
    superseded: bool = False
    """Release what a newer approved output of the same key has overtaken, too."""
    dry_run: bool = False
    """Only say what would be released."""


class ReleaseAnswer(Contract):
    """What became of one prediction that a command names."""

    source: NonEmpty
    answer: NonEmpty
    """`released`, `would_be_released`, `still_fails`, `still_malformed`, `superseded`, `already_released`, `too_old`,
    `not_found`, `unclear`, `not_written`, `needs_second_person` or `would_need_second_person`."""
    findings: tuple[Finding, ...] = ()
    """What fails today's policy."""
