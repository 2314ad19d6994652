"""Others that do the five stateless checks, each made on first use under .cache/peers.

What they need is pinned: `pom.xml` for Kafka Streams, `quix.lock` for Quix Streams, whose confluent-kafka is not
ours. All write the event as it came, without the headers that a guard adds.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from contenders import Case, Contender

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / ".cache" / "peers"


def _made(name: str, sources: Sequence[str], commands: Callable[[Path], list[list[str]]]) -> Path:
    """The folder that `commands` fill, filled anew when one of the sources has changed. Raises SystemExit."""
    target = CACHE / name
    wanted = hashlib.sha256(b"".join((HERE / source).read_bytes() for source in sources)).hexdigest()
    stamp = target / "sources.sha256"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == wanted:
            return target
        shutil.rmtree(target, ignore_errors=True)
        for command in commands(target):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            except FileNotFoundError:
                raise SystemExit(f"The peer {name} is made with {command[0]}, which is not here. Install it.") from None
            except subprocess.CalledProcessError as error:
                said = (error.stdout + error.stderr).strip()[-2000:]
                raise SystemExit(f"The peer {name} could not be made; {command[0]} says:\n{said}") from None
        stamp.write_text(wanted)
    return target


def _kafka_streams(commit_ms: int) -> Callable[[Case], list[str]]:
    def command(case: Case) -> list[str]:
        target = _made(
            "kafka-streams",
            ("pom.xml", "FiveChecks.java"),
            lambda target: [
                [
                    "mvn",
                    "-q",
                    "-B",
                    "-f",
                    f"{HERE}/pom.xml",
                    "dependency:copy-dependencies",
                    f"-DoutputDirectory={target}",
                ],
                ["javac", "-cp", f"{target}/*", "-d", str(target), f"{HERE}/FiveChecks.java"],
            ],
        )
        options = ["-Xmx1g", "-XX:+UseParallelGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        own = [*_arguments(case), str(case.directory / case.prefix), str(commit_ms)]
        return ["java", *options, "-cp", f"{target}:{target}/*", "FiveChecks", *own]

    return command


def _quix(case: Case) -> list[str]:
    uv = [sys.executable, "-m", "uv"]
    target = _made(
        "quix",
        ("quix.lock",),
        lambda target: [
            [*uv, "venv", "--python", sys.executable, str(target)],
            [*uv, "pip", "install", "--python", f"{target}/bin/python", "--require-hashes", "-r", f"{HERE}/quix.lock"],
        ],
    )
    return [f"{target}/bin/python", f"{HERE}/quix_job.py", *_arguments(case)]


def _faststream(case: Case) -> list[str]:
    return [sys.executable, f"{HERE}/faststream_job.py", *_arguments(case)]


def _arguments(case: Case) -> list[str]:
    floors = case.directory / "five-checks" / "floors.csv"
    return [case.bootstrap, case.group, case.source, case.approved, case.blocked, str(floors)]


THROUGHPUT_COMMIT_MS = 500
LATENCY_COMMIT_MS = 10
KAFKA_STREAMS = Contender("Kafka Streams, exactly once", _kafka_streams(THROUGHPUT_COMMIT_MS))
KAFKA_STREAMS_QUICK = Contender(KAFKA_STREAMS.name, _kafka_streams(LATENCY_COMMIT_MS))
QUIX = Contender("Quix Streams, exactly once", _quix, most=500_000)
FASTSTREAM = Contender("FastStream, a message a call", _faststream, most=20_000)
PEERS = (KAFKA_STREAMS, QUIX, FASTSTREAM)
