"""`make bench`: the claims about speed, measured on a real Kafka, in parts.

    make bench                                    all parts, five rounds each
    make bench ARGS="throughput latency"          these parts
    make bench ARGS="throughput --rounds 2 --add" two rounds more, beside those stored before
    make bench ARGS="report"                      no run: the report from what is stored

Each part is stored as benchmarks/results/<part>.json, and benchmarks/results/report.md is put together from all that
are stored.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import report  # noqa: E402
from growth import GROWTH  # noqa: E402
from latency import LATENCY  # noqa: E402
from memory import MEMORY  # noqa: E402
from reaction import REACTION  # noqa: E402
from throughput import MIXED, THROUGHPUT  # noqa: E402

import backends  # noqa: E402  the broker that the tests use

PARTS = {
    "throughput": THROUGHPUT,
    "mixed": MIXED,
    "latency": LATENCY,
    "reaction": REACTION,
    "memory": MEMORY,
    "growth": GROWTH,
}


def _part(name: str) -> str:
    if name not in (*PARTS, "report"):
        raise argparse.ArgumentTypeError(f"there is no part {name!r}; there are {', '.join(PARTS)}, and report")
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", type=_part, metavar="part", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--add", action="store_true", help="keep the runs that are stored, and add to them")
    args = parser.parse_args()
    chosen = {name: part for name, part in PARTS.items() if name in (args.parts or PARTS)}
    minutes = {name: part.minutes(args.rounds) for name, part in chosen.items()}
    if minutes:
        each = ", ".join(f"{name} {needed:.0f}" for name, needed in minutes.items())
        print(f"This takes about {sum(minutes.values()):.0f} minutes on two cores ({each}).", file=sys.stderr)
    for name, part in chosen.items():
        # Each on a broker of its own: none suffers from what another left behind.
        with tempfile.TemporaryDirectory() as directory, backends.open_kafka() as broker:
            rows = asyncio.run(part.run(broker.bootstrap, args.rounds, Path(directory)))
        report.store(name, rows, args.rounds, backends.choose_kafka().name, add=args.add)
        print(f"\n{part.heading}\n\n{part.show(rows)}\n")
    print(f"Written to {report.write(PARTS).relative_to(HERE.parent)}.")


if __name__ == "__main__":
    main()
