"""Until when a switch is open, or that its end has passed, is said by `check` and by doctor."""

from datetime import timedelta
from pathlib import Path

import pytest

from e2e.commands import holdfast
from holdfast.cli.doctor import _unchecked
from holdfast.settings import Settings
from holdfast_schemas import utc_now

CHECK = '[[checks]]\nname = "floor"\nkind = "range"\nmin = 10\n'


@pytest.mark.parametrize(("hours", "passed"), [(1, False), (-1, True)])
async def test_check_and_doctor_say_it(tmp_path: Path, hours: int, passed: bool) -> None:
    """Before the end as an open switch; after it nothing is open, and the switch is to be taken out of the files."""
    until = f"{utc_now() + timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}"
    (tmp_path / "policies").mkdir()
    policy = f'model = "pricing"\nmode = "off"\nmode_until = {until}\n{CHECK}'
    (tmp_path / "policies" / "pricing.toml").write_text(policy)
    config = tmp_path / "holdfast.toml"
    config.write_text(f'[guard]\nno_policy = "approve"\nno_policy_until = "{until}"\n')
    facts = (await holdfast(config, "check", "--json")).facts
    assert facts["settings"]["guard"]["no_policy_until"] == until
    (shown,) = facts["policies"].values()
    assert (shown["mode"], shown["mode_until"]) == ("off", until)
    warnings = " ".join(facts["warnings"])
    guard = {"no_policy": "approve", "no_policy_until": until}
    settings = Settings.model_validate({"policies": str(tmp_path / "policies"), "guard": guard})
    told = [one.finding for one in _unchecked(settings)]
    for text in (warnings, " ".join(told)):
        assert (f'pricing has mode = "off" until {until}, and enforces from then on' in text) is not passed
        assert (f"mode_until of pricing has passed ({until}), so its checks are enforced" in text) is passed
        assert ("guard.no_policy_until has passed" in text) is passed
    assert any("some outputs pass unchecked" in one for one in told) is not passed
    assert ("no check blocks" in warnings) is not passed
