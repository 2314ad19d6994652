"""What `holdfast blocked release` and `malformed retry` say of their results."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import typer
from rich.console import Console
from rich.text import Text

from holdfast.release import Answer, Released
from holdfast.terminal import show, table
from holdfast_schemas import Finding

SHOWN = 20

_WORDS = {
    Answer.RELEASED: "released",
    Answer.WOULD_BE_RELEASED: "would be released",
    Answer.SUPERSEDED: "superseded",
    Answer.ALREADY_RELEASED: "released before",
    Answer.TOO_OLD: "too old",
    Answer.NOT_FOUND: "not found",
}
_ADVICE = {
    Answer.SUPERSEDED: "Superseded: a newer output of the same key was approved; --superseded releases it too.",
    Answer.TOO_OLD: "Too old: older than release.max_age. Let the model predict again.",
}


def show_released(
    results: Sequence[Released],
    *,
    as_json: bool,
    heading: str,
    why: Callable[[Finding], str],
    words: Mapping[Answer, str],
    advice: Mapping[Answer, str],
) -> None:
    """Print how many had which answer, what stands against the others, and what to do.

    `words` and `advice` complete those that both commands share. Raises typer.Exit with code 1 when any of them is not
    released.
    """
    words, advice = {**_WORDS, **words}, {**_ADVICE, **advice}
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
        console.print(", ".join(f"{count:,} {words[answer]}" for answer, count in counts.items()) + ".")
        for answer in counts:
            if answer in advice:
                console.print(advice[answer], soft_wrap=True)

    facts = {
        "counts": {answer.value: count for answer, count in counts.items()},
        "predictions": [
            {
                "source": result.source,
                "answer": result.answer.value,
                "findings": [finding.model_dump(mode="json", exclude_none=True) for finding in result.findings],
            }
            for result in results
        ],
    }
    show(as_json, facts, display)
    if any(result.answer not in (Answer.RELEASED, Answer.WOULD_BE_RELEASED) for result in results):
        raise typer.Exit(1)
