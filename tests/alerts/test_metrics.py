"""What the services export, where an alert depends on it: on a real installation."""

import asyncio

import pytest

from alerts.installation import SHADOW, Installation
from e2e.stack import POLICY, Worker

pytestmark = [pytest.mark.real_kafka, pytest.mark.asyncio(loop_scope="package")]


def samples(worker: Worker, name: str) -> list[str]:
    """The lines that a worker exports of this metric."""
    return [line for line in worker.get("/metrics")[1].splitlines() if line.partition("{")[0].partition(" ")[0] == name]


async def test_counters_of_known_labels_start_at_zero(installation: Installation) -> None:
    """An increase from nothing to 1 would be none for Prometheus."""
    guard, switch = installation.workers["guard"], installation.workers["switch"]
    for verdict in ("approved", "blocked"):
        assert f'holdfast_predictions_total{{model="none",verdict="{verdict}"}} 0.0' in guard.get("/metrics")[1]
    findings = samples(guard, "holdfast_findings_total")
    for check, enforced in (("price_floor", "true"), ("cheap", "false"), ("fenced", "true"), ("held", "true")):
        assert any(f'check="{check}",enforced="{enforced}",model="calm"' in line for line in findings), check
    refused = 'holdfast_commands_total{action="unpin",model="calm",outcome="refused"} 0.0'
    assert refused in switch.get("/metrics")[1]


async def test_a_gauge_is_exported_only_by_who_knows(installation: Installation) -> None:
    """A guard says nothing of Redis, nor the switch of lag: no sample is better than a 0 that looks like a fact."""
    guard, switch = installation.workers["guard"], installation.workers["switch"]
    assert switch.metric("holdfast_redis_up", service="switch") == 1
    for worker, foreign in (
        (guard, ("holdfast_redis_up", "holdfast_route_held", "holdfast_open_incidents", "holdfast_route_mismatch")),
        (switch, ("holdfast_guard_lag_records", "holdfast_remembered_entities")),
        (installation.workers["api"], ("holdfast_redis_up", "holdfast_progress_timestamp_seconds")),
    ):
        assert [name for name in foreign if samples(worker, name)] == []
        assert samples(worker, "process_resident_memory_bytes")


async def test_a_refused_policy_shows_until_it_is_mended(installation: Installation) -> None:
    """Also when the file goes back to exactly what is in force."""
    stack, guard = installation.stack, installation.workers["guard"]

    def in_force() -> float:
        return guard.metric("holdfast_policies_in_force", service="guard")

    assert in_force() == 1
    stack.write_policy("calm", "[[checks]]\nname = 7\n")
    await stack.until(lambda: in_force() == 0, "the guard refuses the policy")
    stack.write_policy("calm", SHADOW + POLICY)
    await stack.until(lambda: in_force() == 1, "the guard has the policy again")


async def test_a_newer_route_in_redis_counts_as_overwritten(installation: Installation) -> None:
    """The switch rises above it, and they agree again."""
    stack, switch = installation.stack, installation.workers["switch"]
    state = "holdfast:{calm}:state"

    def differs() -> float:
        return switch.metric("holdfast_route_mismatch", model="calm")

    assert differs() == 0
    repairs = switch.metric("holdfast_redis_repairs_total")
    await stack.redis.hset(state, "epoch", "900")
    await stack.until(lambda: stack.route("calm")["epoch"] > 900, "the epoch rises above it")
    await stack.until(lambda: differs() == 0, "they agree again")
    assert switch.metric("holdfast_redis_repairs_total") > repairs
    assert await stack.redis.hget(state, "epoch") == str(stack.route("calm")["epoch"])


async def test_incidents_holds_and_pins_are_counted(installation: Installation) -> None:
    """As the switch decides them, and as it restores them when it starts again."""
    stack, switch = installation.stack, installation.workers["switch"]

    def shown() -> tuple[float, ...]:
        return (
            switch.metric("holdfast_open_incidents", model="calm", status="triggered"),
            switch.metric("holdfast_open_incidents", model="calm", status="acknowledged"),
            switch.metric("holdfast_route_held", model="calm"),
            switch.metric("holdfast_route_pinned", model="calm"),
        )

    assert shown() == (1, 0, 0, 0)
    await stack.command("calm", "acknowledge", "v2")
    await stack.command("calm", "pin", "v1")
    await stack.until(lambda: shown() == (0, 1, 0, 1), "acknowledged and pinned")
    await stack.command("calm", "hold")
    await stack.until(lambda: shown() == (0, 1, 1, 0), "held")
    await asyncio.to_thread(switch.restart)
    await stack.ready(switch)
    await stack.until(lambda: shown() == (0, 1, 1, 0), "restored")
    await stack.command("calm", "resume", "v1")
    await stack.until(lambda: shown() == (0, 1, 0, 1), "resumed, pinned as before")
    await stack.command("calm", "unpin")
    await stack.until(lambda: shown() == (0, 1, 0, 0), "unpinned")


async def test_guards_show_the_epoch_that_they_obey(installation: Installation) -> None:
    """Equal to the switch's within moments of a change."""
    stack = installation.stack
    await stack.command("calm", "pin", "v1")
    await stack.command("calm", "unpin")
    epoch = stack.route("calm")["epoch"]
    for name in ("guard", "switch"):
        worker = installation.workers[name]
        await stack.until(
            lambda w=worker, n=name: w.metric("holdfast_route_epoch", service=n, model="calm") == epoch, name
        )


async def test_what_another_worker_has_taken_over_is_exported_no_longer(installation: Installation) -> None:
    """Each partition is counted once while a third guard comes and one goes: stale lag would look like lag."""
    stack = installation.stack
    (third,) = await stack.start("guard")
    guards = [worker for worker in stack.workers if worker.name == "guard"]

    def partitions(name: str) -> list[str]:
        lines = [line for guard in guards if guard.running for line in samples(guard, name)]
        return sorted(line.partition('partition="')[2].partition('"')[0] for line in lines)

    async def once_each() -> None:
        await stack.ready(*(guard for guard in guards if guard.running))
        for name in ("holdfast_guard_lag_records", "holdfast_progress_timestamp_seconds"):
            await stack.until(lambda name=name: partitions(name) == ["0", "1"], f"{name} of each partition once")

    await once_each()
    await asyncio.to_thread(third.stop)
    await once_each()


async def test_metrics_of_the_installation_reach_prometheus(installation: Installation) -> None:
    """Under the names of jobs that the rules know, and with none of the services missing."""

    def jobs() -> set[str]:
        return {series["metric"]["job"] for series in installation.prometheus.query('up{job=~"holdfast-.+"} == 1')}

    wanted = {f"holdfast-{name}" for name in installation.workers}
    await installation.stack.until(lambda: jobs() == wanted, f"{wanted} are scraped")
