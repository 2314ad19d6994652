"""The runbooks that incidents and alerts link to are served by the API, from a checkout and from the wheel."""

import re
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from backends import ROOT
from holdfast.api.app import make_app
from holdfast.api.context import Api
from holdfast.settings import load_settings
from holdfast_schemas import ALERT_NAMES

NAMES = sorted(path.stem for path in (ROOT / "alerts" / "runbooks").glob("*.md") if path.stem != "README")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Nobody in particular, at an API that has not read a topic yet."""
    transport = httpx.ASGITransport(make_app(Api(load_settings(api={"start_token": "the-one-of-my-laptop"}))))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as client:
        yield client


async def test_the_default_link_of_every_incident_leads_to_a_page(client: httpx.AsyncClient) -> None:
    """At the API's own address, readable without a token, while the topics are still being read."""
    for name in ALERT_NAMES.values():
        link = urlsplit(f"{load_settings().runbook_url}{name}.md")
        assert (link.scheme, link.netloc) == ("http", "localhost:8080")
        answer = await client.get(link.path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        assert f"<h1>{name}</h1>" in answer.text
        assert '<pre><code class="language-bash">' in answer.text


async def test_every_link_on_every_runbook_page_works(client: httpx.AsyncClient) -> None:
    """From the list of all to each, and from one to another, with `.md` and without; nothing is inline."""
    index = await client.get("/runbooks", follow_redirects=True)
    assert re.findall(r'href="/runbooks/(\w+)"', index.text) == NAMES
    assert "<table>" in index.text
    for name in NAMES:
        page = await client.get(f"/runbooks/{name}")
        assert page.text == (await client.get(f"/runbooks/{name}.md")).text
        assert "<style" not in page.text
        assert "<script" not in page.text
        for link in re.findall(r'href="([^"]*)"', page.text):
            assert (await client.get(str(page.url.join(link)).replace("/asyncapi", "/"))).status_code in (200, 503), (
                link
            )


@pytest.mark.parametrize("name", ["Nothing", "..%2f..%2fpyproject", "README.md.md", "rules.yml", "HoldfastApiDown%00"])
async def test_there_is_nothing_else(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get(f"/runbooks/{name}")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_a_link_goes_where_the_configuration_says() -> None:
    """Below the console's address, or to a place of its own."""
    url = load_settings(notify={"console_url": "https://holdfast.example.com/"}).runbook_url
    assert url == "https://holdfast.example.com/runbooks/"
    assert load_settings(switch={"runbook_url": "https://wiki.example/"}).runbook_url == "https://wiki.example/"


def test_the_wheel_has_them(tmp_path: Path) -> None:
    """As in the container image: there is no checkout beside it."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    packaged = {Path(one).stem for one in files if one.startswith("holdfast/api/console/runbooks/")}
    assert packaged == {*NAMES, "README"}
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(tmp_path / "site")], check=True)
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            "from holdfast.api.console.runbook import runbook; print(runbook('HoldfastRouteHeld')[1])",
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "<h1>HoldfastRouteHeld</h1>" in shown.stdout
