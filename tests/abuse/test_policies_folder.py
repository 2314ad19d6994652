"""What somebody who may write the policies folder can do to the services that read it: nothing but change policies."""

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from backends import Kafka, RedisServer, until
from e2e.stack import Stack
from holdfast.adapters import at_rest, policy_files, tables
from holdfast.adapters.policies import PolicyStore, known_models, load_policies
from holdfast.adapters.policy_files import PolicyFolder
from holdfast.core.policy import PolicyError

POLICY = 'model = "pricing"\n[[checks]]\nname = "floor"\nkind = "range"\ntable = "{table}"\n'
TABLE = "entity_id,min\nSKU-1,{minimum}\n"
SECRET = "hunter2-correct-horse"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With one good policy and its table."""
    found = tmp_path / "policies"
    found.mkdir()
    (found / "pricing.toml").write_text(POLICY.format(table="floors.csv"))
    (found / "floors.csv").write_text(TABLE.format(minimum=1))
    os.utime(found / "floors.csv", (1, 1))  # It is at rest.
    return found


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except OSError:
        pytest.skip("devices need the right to make them")


def a_directory(path: Path) -> None:
    path.mkdir()


def a_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # The path of a socket is short.
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def a_link_to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_link_to_a_secret(path: Path) -> None:
    secret = path.parent.parent / "secret"
    secret.write_text(f"{SECRET}\n")
    path.symlink_to(secret)


def a_link_in_a_circle(path: Path) -> None:
    path.symlink_to(path.name)


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


KINDS: list[tuple[Callable[[Path], None], str]] = [
    (a_fifo, "is a FIFO, not a regular file; put a file there"),
    (a_device, "is a device, not a regular file; put a file there"),
    (a_directory, "is a directory, not a regular file; put a file there"),
    (a_socket, "is a socket, not a regular file; put a file there"),
    (a_link_to_zero, "leads outside of the policies folder; put the file itself into"),
    (a_link_to_a_secret, "leads outside of the policies folder; put the file itself into"),
    (a_link_in_a_circle, "is a link that leads to itself; put a file there"),
    (a_link_to_nothing, "cannot be read: No such file or directory"),
]


@pytest.mark.parametrize("name", ["pricing.toml", "floors.csv"])
@pytest.mark.parametrize(("make", "says"), KINDS, ids=[make.__name__ for make, _ in KINDS])
def test_what_is_not_a_file_of_the_folder_is_refused_in_a_sentence(
    folder: Path, name: str, make: Callable[[Path], None], says: str
) -> None:
    """As a policy and as a table; nothing waits for it, nothing of it is read, and the policy in force stays."""
    store = PolicyStore(folder)
    before = store.current
    (folder / name).unlink()
    make(folder / name)
    assert not store.reload()
    assert store.current is before
    assert store.refused is not None
    assert f"{folder / name} {says}" in store.refused
    assert SECRET not in store.refused
    assert "\n" not in store.refused


@pytest.mark.parametrize(
    "table", ["/run/secrets/token", "../secret", "inner/../../secret", "/dev/zero", "/proc/self/environ"]
)
def test_a_table_is_a_file_below_the_folder(folder: Path, table: str) -> None:
    """Whatever way its name leads out."""
    (folder / "inner").mkdir()
    (folder.parent / "secret").write_text(SECRET)
    (folder / "pricing.toml").write_text(POLICY.format(table=table))
    with pytest.raises(PolicyError, match=r"pricing\.toml: table .* leads outside of the policies folder") as refused:
        load_policies(folder)
    assert SECRET not in str(refused.value)


def test_a_link_that_is_exchanged_after_the_look_is_not_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the opening a folder of the path becomes a link to a place with secrets."""
    outside, inner = folder.parent / "outside", folder / "inner"
    for each in (outside, inner):
        each.mkdir()
        (each / "floors.csv").write_text(TABLE.format(minimum=1))
    really_open = os.open

    def exchanging(path: object, *arguments: int, **named: int) -> int:
        if path == folder.resolve():
            inner.rename(folder / "old")
            inner.symlink_to(outside)
        return really_open(path, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(policy_files.os, "open", exchanging)
    with pytest.raises(PolicyError, match="cannot be read"):
        PolicyFolder(folder).read(inner / "floors.csv", 1000)


def test_links_inside_the_folder_are_followed(folder: Path) -> None:
    """As Kubernetes mounts a ConfigMap, and where the folder itself is a link."""
    data = folder / "..2026_11_27"
    data.mkdir()
    for name in ("pricing.toml", "floors.csv"):
        (folder / name).rename(data / name)
        (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data").symlink_to(data.name)
    (folder.parent / "current").symlink_to(folder)
    assert set(load_policies(folder).policies) == set(load_policies(folder.parent / "current").policies) == {"pricing"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pricing.toml", f"{SECRET}\n"),
        ("pricing.toml", f"{SECRET} = {SECRET}\n"),
        ("pricing.toml", f"[{SECRET}]\n[{SECRET}]\n"),
        ("pricing.toml", f"a = {{{SECRET} = 1, {SECRET} = 2}}\n"),
        ("pricing.toml", f"{SECRET} = {{a = 1}}\n[{SECRET}.b]\n"),
        ("pricing.toml", f"a = '''{SECRET}"),
        ("pricing.toml", f'model = "pricing"\n[fields]\nvalue = ["{SECRET}"]\n'),
        ("pricing.toml", f'model = "pricing"\n[fields]\nvalue = {{path = ["{SECRET}"]}}\n'),
        ("pricing.toml", b"\xff" + SECRET.encode()),
        ("floors.csv", f"{SECRET}\n"),
        ("floors.csv", f"entity_id,min\n{SECRET}\n"),
        ("floors.csv", f"entity_id,min\na,{SECRET}\n"),
        ("floors.csv", f"entity_id,{SECRET}\na,1\n"),
        ("floors.csv", f"entity_id,min\n{SECRET},1\n{SECRET},2\n"),
        ("floors.csv", b"entity_id,min\n\xff" + SECRET.encode() + b",1\n"),
        ("floors.parquet", f"PAR1{SECRET}PAR1"),
    ],
)
def test_a_refusal_quotes_nothing_of_a_file(folder: Path, name: str, content: str | bytes) -> None:
    """The file and, of a text, the line or the byte are said."""
    (folder / "pricing.toml").write_text(POLICY.format(table=name if name != "pricing.toml" else "floors.csv"))
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PolicyError) as refused:
        load_policies(folder)
    assert name in str(refused.value)
    for part in SECRET.split("-"):
        assert part not in str(refused.value)


def test_files_have_a_size_limit_each_and_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte more is refused; no more than that is read."""
    reading = PolicyFolder(folder)
    (folder / "a").write_bytes(b"x" * 1000)
    assert len(reading.read(folder / "a", 1000)) == 1000
    with pytest.raises(PolicyError, match="is larger than"):
        reading.read(folder / "a", 999)
    monkeypatch.setattr(policy_files, "ALL_BYTES", 1500)
    reading = PolicyFolder(folder)
    reading.read(folder / "a", 1000)
    with pytest.raises(PolicyError, match="the policies and tables have more than"):
        reading.read(folder / "a", 1000)


@pytest.mark.parametrize("text", ["x" * 1_000_000, ""], ids=["one long text", "no text"])
def test_a_small_file_that_stands_for_much_is_refused(folder: Path, text: str) -> None:
    """Half a million rows of one long text would be 500 GB in memory."""
    rows = 500_000
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
    parquet.write_table(pa.table({"entity_id": column, "min": pa.array([1.0] * rows)}), folder / "floors.parquet")
    assert (folder / "floors.parquet").stat().st_size < 10_000_000
    (folder / "pricing.toml").write_text(POLICY.format(table="floors.parquet"))
    with pytest.raises(PolicyError, match="lists an entity twice"):
        load_policies(folder)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_has_a_limit_of_rows(folder: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Exactly as many are taken, one more is refused."""
    monkeypatch.setattr(tables, "MAX_ROWS", 3)
    (folder / "pricing.toml").write_text(POLICY.format(table=f"floors.{suffix}"))
    for rows in (3, 4):
        found = pa.table({"entity_id": [f"e{n}" for n in range(rows)], "min": [1.0] * rows})
        if suffix == "parquet":
            parquet.write_table(found, folder / "floors.parquet")
        else:
            (folder / "floors.csv").write_text("entity_id,min\n" + "".join(f"e{n},1\n" for n in range(rows)))
        if rows == 3:
            load_policies(folder)
    with pytest.raises(PolicyError, match="has more than 3 rows"):
        load_policies(folder)


def test_looking_for_models_waits_for_nothing(folder: Path) -> None:
    """What the command line reads of the folder is read as carefully."""
    os.mkfifo(folder / "fraud.toml")
    (folder / "other.toml").symlink_to("/dev/zero")
    assert known_models(folder, ()) == {"pricing", "fraud", "other"}


async def test_reloads_go_on_after_a_refusal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO, a link to /dev/zero and a link to the whole file system; then a good policy is taken up."""
    monkeypatch.setattr(at_rest, "REST", {".toml": 0.2, ".csv": 0.2, ".parquet": 0.2})
    monkeypatch.setattr(at_rest, "LOOK_EVERY", 0.05)
    store = PolicyStore(folder)
    first = store.current.policies["pricing"].id
    following = asyncio.create_task(store.follow())
    try:
        for make in (a_fifo, a_link_to_zero):
            make(folder / "fraud.toml")
            await until(lambda: store.refused is not None)
            (folder / "fraud.toml").unlink()
            await until(lambda: store.refused is None)
        (folder / "everything").symlink_to("/")
        fresh = folder / ".fresh"
        fresh.write_text(TABLE.format(minimum=2))
        fresh.replace(folder / "floors.csv")
        await until(lambda: store.current.policies["pricing"].id != first)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


FLOOR = '[[checks]]\nname = "floor"\nkind = "range"\nmin = 10.0\n'


@pytest.mark.real_kafka
async def test_what_happens_to_policies_is_in_the_audit(
    kafka: Kafka, redis_server: RedisServer, tmp_path: Path
) -> None:
    """A mode that was off for a moment, with both modes and its author; refusals; the rest is judged as ever."""
    async with Stack(kafka, redis_server.url, {"pricing": FLOOR}, folder=tmp_path) as stack:

        def said() -> list[dict[str, Any]]:
            return stack.audits("pricing", of_policies=True)

        async def verdict() -> str:
            sent = stack.prediction("pricing", "v1", "SKU-1", 0.01)
            await stack.send([sent])
            (found,) = await stack.until(lambda: stack.verdicts().get(sent["prediction_id"]), "it is judged")
            return found

        (guard,) = await stack.start("guard")
        (first,) = await stack.until(lambda: one_of_each(said()), "the guard says what it begins with")
        assert (first["action"], first["mode"], first["actor"]) == ("policy_at_start", "enforce", "guard-0")
        assert first["reason"] == "guard-0 started"
        assert await verdict() == "blocked"

        (stack.policies / "AUTHOR").write_text("mallory\n")
        stack.write_policy("pricing", f'mode = "off"\n{FLOOR}')
        await stack.until(lambda: guard.told("policies changed"), "the guard has it")
        assert await verdict() == "approved"
        # The verdict is there, and so is the record.
        (off,) = [one for one in one_of_each(said()) if one.get("mode") == "off"]
        assert (off["actor"], off["worker"], off["mode_before"]) == ("mallory", "guard-0", "enforce")
        assert off["policy_before"] == first["policy"]
        assert off["detail"].endswith('its mode was "enforce" and is "off", so no check runs')
        assert guard.metric("holdfast_unchecked_total", model="pricing", reason="mode_off") == 1

        os.mkfifo(stack.policies / "fraud.toml")
        (stack.policies / "AUTHOR").unlink()
        refused = await stack.until(lambda: stack.audits("fraud", of_policies=True), "the FIFO is refused")
        assert (refused[0]["action"], refused[0]["outcome"], refused[0]["actor"]) == (
            "policy_refused",
            "refused",
            "guard-0",
        )
        assert "fraud.toml is a FIFO, not a regular file" in refused[0]["detail"]
        (stack.policies / "fraud.toml").unlink()
        stack.write_policy("pricing", FLOOR)
        back = await stack.until(lambda: one_of_each(said())[2:], "the policy is back")
        assert (back[0]["mode_before"], back[0]["mode"], back[0]["policy"]) == ("off", "enforce", first["policy"])
        assert await verdict() == "blocked"


def one_of_each(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Partitions that judge at the same time may write the same record."""
    return list({record["audit_id"]: record for record in records}.values())
