"""Whether a change costs speed: the guard of this checkout and that of another one, in turns on one broker.

    .venv/bin/python benchmarks/against.py ../holdfast-before --rounds 5

The other checkout has its own .venv (`make install`). Both judge by the policy of eight checks, exactly once; see
throughput.py for how one run is measured. Printed are the medians, and the median of the ratios of each round.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import numpy as np  # noqa: E402
import workload  # noqa: E402
from contenders import GUARD, PASSTHROUGH, Case, Contender  # noqa: E402
from report import Row, markdown, median  # noqa: E402
from throughput import MIXED_RECORDS, compare, warm_up  # noqa: E402
from workload import Traffic  # noqa: E402

import backends  # noqa: E402  the broker that the tests use
from holdfast_schemas import TOPICS  # noqa: E402


def guard_of(checkout: Path) -> Contender:
    """The guard that the other checkout's Python runs, with this one's configuration and topics."""
    python = checkout.resolve() / ".venv" / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"{python} does not exist. Run `make install` in {checkout}.")

    roles = subprocess.run(
        [python, "-c", "from holdfast_schemas import TOPICS; print(*TOPICS)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()

    def command(case: Case) -> list[str]:
        words = GUARD.command(case)
        # An earlier version refuses the names of topics that it does not know.
        config = case.directory / f"{case.prefix}.toml"
        unknown = tuple(f"{role} = " for role in TOPICS if role not in roles)
        lines = config.read_text().splitlines()
        config.write_text("\n".join(line for line in lines if not (unknown and line.startswith(unknown))))
        return [str(python), *words[1:]]

    return Contender(f"guard of {checkout.name}", command)


async def run(other: Contender, bootstrap: str, rounds: int, directory: Path) -> list[Row]:
    """Both guards twice in every round, in an order that favours neither."""
    workload.write_policies(directory / "policies", Traffic())
    await warm_up(bootstrap, directory)
    return await compare(
        (PASSTHROUGH, other, GUARD, GUARD, other), Traffic(), MIXED_RECORDS, bootstrap, rounds, directory
    )


def show(rows: Sequence[Row], other: Contender) -> str:
    """The figures as Markdown."""

    def of_round(number: str, name: str, figure: str) -> float:
        return float(np.mean([row[figure] for row in rows if (row["round"], row["contender"]) == (number, name)]))

    def ratio(figure: str, name: str) -> str:
        numbers = dict.fromkeys(row["round"] for row in rows)
        ratios = [of_round(number, name, figure) / of_round(number, other.name, figure) for number in numbers]
        return f"{np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"

    lines = []
    for name in (PASSTHROUGH.name, other.name, GUARD.name):
        mine = [row for row in rows if row["contender"] == name]
        lines.append(
            [
                name,
                f"{median(mine, 'per_second'):,.0f}",
                ratio("per_second", name),
                f"{median(mine, 'cpu_s_per_100k'):.3f}",
                ratio("cpu_s_per_100k", name),
            ]
        )
    headings = ("contender", "records/s", f"of {other.name}", "CPU s / 100,000", f"CPU, of {other.name}")
    return markdown(headings, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    other = guard_of(args.checkout)
    with tempfile.TemporaryDirectory() as directory, backends.open_kafka() as broker:
        print(show(asyncio.run(run(other, broker.bootstrap, args.rounds, Path(directory))), other))


if __name__ == "__main__":
    main()
