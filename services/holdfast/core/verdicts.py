"""The verdict on each record of a fetched batch, as the headers that the record gets."""

import msgspec

from holdfast.core.grouping import Batch
from holdfast.core.judgement import Judgement
from holdfast.core.samples import Source
from holdfast.core.verdict_headers import (
    Headers,
    deletion_headers,
    findings_header,
    reference_header,
    source_header,
    verdict_headers,
)
from holdfast_schemas import Verdict

_TO_LINES = msgspec.json.Encoder().encode_lines


class Verdicts:
    """By position in the batch, the headers of what is approved and of what is blocked; None: it is not there."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.approved: list[Headers | None] = [None] * len(source.records)
        self.blocked: list[Headers | None] = [None] * len(source.records)

    def add(self, batch: Batch, judgement: Judgement, policy_id: str | None, model: str) -> None:
        """Take in what was found of one model's predictions. Raises RuntimeError for one blocked without a reason."""
        versions = batch.columns.values("model_version")
        ours = {version: verdict_headers(Verdict.APPROVED, policy_id, model, version) for version in set(versions)}
        theirs = {version: verdict_headers(Verdict.BLOCKED, policy_id, model, version) for version in ours}
        if len(versions) == len(self.approved):
            self.approved = [*map(ours.__getitem__, versions)]
        else:
            for position, version in zip(batch.positions, versions, strict=True):
                self.approved[position] = ours[version]
        passes = judgement.approved
        # All findings in one go: a line for each row.
        lines = _TO_LINES([*judgement.findings.values()]).splitlines()
        for row, line in zip(judgement.findings, lines, strict=True):
            position, found = batch.positions[row], findings_header(line)
            if passes[row]:
                self.approved[position] = [*ours[versions[row]], found]
            else:
                self.approved[position] = None
                self.blocked[position] = [*theirs[versions[row]], found, source_header(self._source.of(position))]
        for row, used in judgement.used.items():
            position = batch.positions[row]
            headers = self.approved[position]
            if headers is None:
                raise RuntimeError("a prediction that was blocked was held against a reference for the first time")
            self.approved[position] = [*headers, reference_header(used)]
        # What is blocked has a finding that says why; without one nothing of the batch may go out.
        if len(judgement.findings) < len(passes) - int(passes.sum()):
            raise RuntimeError("a prediction was blocked without a finding")

    def pass_on_deletion(self, position: int) -> None:
        """Take in a deletion by the producer, which goes where approved predictions go."""
        self.approved[position] = deletion_headers(self._source.of(position))
