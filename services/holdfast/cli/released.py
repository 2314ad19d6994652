"""What `holdfast blocked release` and `malformed retry` say of the guards' answers."""

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from holdfast.cli.terminal import duration, show, table
from holdfast.core.approvals import ASKED_FOR
from holdfast.core.duration import format_duration
from holdfast.core.releases import Answer
from holdfast.release import Answers
from holdfast_schemas import Finding

SHOWN = 20
WaitOption = Annotated[
    timedelta,
    typer.Option(
        "--wait",
        help="How long to wait for a guard's next answer, as in 30s or 2m.",
        metavar="TIME",
        parser=duration,
        show_default="30s",
    ),
]
WAIT = timedelta(seconds=30)
_WORDS: dict[str, str] = {
    Answer.RELEASED: "released",
    Answer.WOULD_BE_RELEASED: "would be released",
    Answer.SUPERSEDED: "superseded",
    Answer.ALREADY_RELEASED: "released before",
    Answer.TOO_OLD: "too old",
    Answer.NOT_FOUND: "not found",
    Answer.UNCLEAR: "unclear",
    Answer.NOT_WRITTEN: "not written",
    Answer.NEEDS_SECOND_PERSON: "waiting for a second person",
    Answer.WOULD_NEED_SECOND_PERSON: "would wait for a second person",
}
_TWO = f"By force only two people release: somebody else must ask for the same within {format_duration(ASKED_FOR)}."
_ADVICE: dict[str, str] = {
    Answer.NEEDS_SECOND_PERSON: _TWO,
    Answer.WOULD_NEED_SECOND_PERSON: _TWO,
    Answer.SUPERSEDED: "Superseded: a newer output of the same key was approved; --superseded releases it too.",
    Answer.TOO_OLD: "Too old: older than the guards' guard.release_max_age. Let the model predict again.",
    Answer.UNCLEAR: (
        "Unclear: an audit record that cannot be read names it, so it may have been released before. Let the model "
        "predict again."
    ),
    Answer.NOT_WRITTEN: "Not written: the approved topic does not take the record. See its settings: holdfast doctor",
}


def show_released(
    answers: Answers,
    *,
    as_json: bool,
    heading: str,
    why: Callable[[Finding], str],
    words: Mapping[str, str],
    advice: Mapping[str, str],
) -> None:
    """Print how many had which answer, what stands against the others, and what to do.

    `words` and `advice` complete those that both commands share. Raises typer.Exit with code 1 when any of them is not
    released.
    """
    words, advice, results = {**_WORDS, **words}, {**_ADVICE, **advice}, answers.results
    counts = Counter(result.answer for result in results)

    def display(console: Console) -> None:
        failing = [result for result in results if result.findings]
        if failing:
            rows = table("source", heading)
            for result in failing[:SHOWN]:
                rows.add_row(Text(result.source), Text("\n".join(map(why, result.findings))))
            console.print(rows)
        if len(failing) > SHOWN:
            console.print(f"… and {len(failing) - SHOWN:,} more; --json prints them all.")
        # A newer guard may know other answers.
        console.print(", ".join(f"{count:,} {words.get(answer, answer)}" for answer, count in counts.items()) + ".")
        for answer in counts:
            if answer in advice:
                console.print(advice[answer], soft_wrap=True)

    facts = {
        "command_id": answers.command_id,
        "counts": {str(answer): count for answer, count in counts.items()},
        "predictions": [
            {
                "source": result.source,
                "answer": str(result.answer),
                "findings": [finding.model_dump(mode="json", exclude_none=True) for finding in result.findings],
            }
            for result in results
        ],
    }
    show(as_json, facts, display)
    if any(result.answer not in (Answer.RELEASED, Answer.WOULD_BE_RELEASED) for result in results):
        raise typer.Exit(1)
