"""docker-compose.yml and deploy/kubernetes: whole, hardened, and of one mind with settings, alerts and topics."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from backends import ROOT
from holdfast.adapters.policies import load_policies
from holdfast.settings import load_settings
from holdfast_schemas import Party
from test_repository import COMPOSE, DOCKERFILE, OUR_IMAGE, unknown_command

SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROMETHEUS = yaml.safe_load((ROOT / "alerts" / "prometheus.yml").read_text(encoding="utf-8"))
ONE_SHOT = {"acls", "topics", "demo"}
DIGESTED = re.compile(r"^(?P<image>[a-z0-9./-]+:[\w.-]+)@\$\{(?P<digest>[A-Z_]+)(:\?[^}]+)?\}$")
"""An image by a tag and a digest, which is a variable without a default."""
SECRET = re.compile(r"(?i)(?<!allow_)(password|token|secret|api_?key|routing_key)[A-Z_]*$")


# Compose


def test_the_stack_is_whole() -> None:
    """Everything that an operator needs, two guards among it; the demo only on request."""
    assert set(SERVICES) == {
        *("kafka", "redis", "acls", "topics", "guard", "switch", "notify", "api", "audit", "demo"),
        *("prometheus", "alertmanager", "grafana", "kafka-exporter"),
    }
    assert SERVICES["guard"]["deploy"]["replicas"] == 2
    assert "ports" not in SERVICES["guard"]
    assert [name for name, service in SERVICES.items() if service.get("profiles")] == ["demo"]


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_a_container_may_do_no_more_than_it_must(service: dict[str, Any]) -> None:
    """A user that is not root, a read-only file system, no capability; ports on this machine only."""
    assert str(service["user"]).split(":")[0] not in {"", "0", "root"}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [port for port in service.get("ports", ()) if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONE_SHOT))
def test_a_service_says_whether_it_is_well(name: str) -> None:
    """Whoever waits for another waits for that."""
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    for other, wanted in SERVICES[name].get("depends_on", {}).items():
        expected = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
        assert wanted["condition"] == expected


def test_no_secret_is_in_the_file() -> None:
    """Secrets are files in a folder that git ignores, and each is used."""
    for service in SERVICES.values():
        for variable, value in service.get("environment", {}).items():
            assert not SECRET.search(variable) or str(value).startswith("/run/secrets/"), variable
        assert not re.search(r"\w@", str(service.get("command", ""))), "no login in an address"
    used = [
        secret if isinstance(secret, str) else secret["source"]
        for service in SERVICES.values()
        for secret in service.get("secrets", ())
    ]
    assert set(used) == set(COMPOSE["secrets"])
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert {Path(secret["file"]).parts[0] for secret in COMPOSE["secrets"].values()} == {"secrets"}
    assert "/secrets/" in ignored


LOGINS = {
    "acls": "set-up",
    "topics": "holdfast-admin",
    "guard": "holdfast-guard",
    "switch": "holdfast-switch",
    "notify": "holdfast-notify",
    "api": "holdfast-api",
    "audit": "holdfast-auditor",
    "demo": "set-up",
}


def test_each_service_has_its_own_login_to_kafka_and_no_other() -> None:
    """One that is broken into gives away its own rights alone. The two that set things up run once."""
    logins = {}
    for name, service in SERVICES.items():
        environment = service.get("environment", {})
        if "HOLDFAST_KAFKA__BOOTSTRAP_SERVERS" in environment:
            logins[name] = environment["HOLDFAST_KAFKA__SASL_USERNAME"]
            file = environment["HOLDFAST_KAFKA__SASL_PASSWORD_FILE"].removeprefix("/run/secrets/")
            theirs = [secret for secret in service["secrets"] if secret.startswith("kafka_")]
            assert theirs == [file]
            assert file.removeprefix("kafka_") == logins[name].removeprefix("holdfast-").replace("set-up", "setup")
    assert logins == LOGINS
    assert {name for name, login in logins.items() if login == "set-up"} <= ONE_SHOT


def made_secrets(folder: Path) -> Path:
    """What deploy/compose-secrets makes, in a copy of the repository that has nothing else."""
    (folder / "deploy").mkdir()
    shutil.copy(ROOT / "deploy" / "compose-secrets", folder / "deploy")
    subprocess.run([folder / "deploy" / "compose-secrets"], check=True, capture_output=True)
    return folder / "secrets"


def test_the_secrets_of_compose_are_made_once_and_stay(tmp_path: Path) -> None:
    """Every file that is mounted, a login for every party, no password twice; a second run changes nothing."""
    secrets = made_secrets(tmp_path)
    assert {Path(one["file"]).name for one in COMPOSE["secrets"].values()} <= {file.name for file in secrets.iterdir()}
    jaas = (secrets / "kafka_jaas").read_text()
    users = dict(re.findall(r'^ +user_(\S+)="(\w+)"$', jaas, re.MULTILINE))
    assert set(users) == {"broker", "set-up", "exporter", *(f"holdfast-{party}" for party in Party)}
    assert len(set(users.values())) == len(users)
    assert all(len(password) == 48 for password in users.values())
    for party in Party:
        assert (secrets / f"kafka_{party}").read_text() == users[f"holdfast-{party}"]
    assert f"--sasl.password={users['exporter']}\n" in (secrets / "kafka_exporter_arguments").read_text()
    assert secrets.stat().st_mode & 0o777 == 0o700
    before = {file.name: file.read_bytes() for file in secrets.iterdir()}
    subprocess.run([tmp_path / "deploy" / "compose-secrets"], check=True, capture_output=True)
    assert {file.name: file.read_bytes() for file in secrets.iterdir()} == before


def test_kafka_of_compose_lets_nobody_in_without_a_login() -> None:
    """At no listener; two logins may do everything, and no more."""
    environment = SERVICES["kafka"]["environment"]
    protocols = dict(one.split(":") for one in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    assert set(protocols.values()) == {"SASL_PLAINTEXT"}
    assert {one.split("://")[0] for one in environment["KAFKA_LISTENERS"].split(",")} == set(protocols)
    assert environment["KAFKA_AUTHORIZER_CLASS_NAME"].endswith(".StandardAuthorizer")
    assert environment["KAFKA_ALLOW_EVERYONE_IF_NO_ACL_FOUND"] == "false"
    assert environment["KAFKA_SUPER_USERS"] == "User:broker;User:set-up"


def test_every_image_goes_by_a_digest_that_one_command_finds(tmp_path: Path) -> None:
    """A tag may be moved by who owns it. Without the digests nothing starts, and nothing is built."""
    wanted = set()
    for service in SERVICES.values():
        if service["image"] != OUR_IMAGE:
            found = DIGESTED.match(service["image"])
            assert found is not None, service["image"]
            assert found[3], "compose says what to do"
            wanted.add((found["image"], found["digest"]))
    for base in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE):
        found = DIGESTED.match(base)
        assert found is not None, base
        wanted.add((found["image"], found["digest"]))
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$@" >> "$0.asked"\necho sha256:$(printf %s "$4" | sha256sum | cut -c1-64)\n')
    docker.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = ROOT / "deploy" / "pin-images"
    done = subprocess.run([script], env=environment, capture_output=True, text=True, check=True)
    digest = {image: hashlib.sha256(image.encode()).hexdigest() for image, _ in wanted}
    assert set(done.stdout.splitlines()) == {f"{name}=sha256:{digest[image]}" for image, name in wanted}
    docker.write_text("#!/bin/sh\necho not found\n")
    refused = subprocess.run([script], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "names no digest" in refused.stderr


SAFE_REDIS = {(6, 2): 24, (7, 2): 16, (7, 4): 11, (8, 2): 10, (8, 4): 6, (8, 6): 7, (8, 8): 3, (8, 10): 2}
"""By release line, the first patch without a known way to run code: Lua (CVE-2025-49844), XACKDEL (CVE-2025-62507),
blocked clients (CVE-2026-23479), RESTORE (CVE-2026-62356), and those that were fixed with them up to September 2026."""


def test_redis_has_no_known_way_to_run_code() -> None:
    """The image is of a release line that is cared for, at the patch that closes the last of them or a later one."""
    found = re.search(r"redis:(\d+)\.(\d+)\.(\d+)", SERVICES["redis"]["image"])
    assert found is not None
    major, minor, patch = map(int, found.groups())
    assert patch >= SAFE_REDIS[major, minor]


def test_alertmanager_gets_the_files_that_its_configuration_reads() -> None:
    """Each `…_file` has its secret, at that path."""
    configuration = (ROOT / "alerts" / "alertmanager.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"^\s*-?\s*\w+_file: (\S+)", configuration, re.MULTILINE))
    assert {secret["target"] for secret in SERVICES["alertmanager"]["secrets"]} == named


def test_what_is_mounted_exists() -> None:
    """A missing file would become an empty folder."""
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume


def test_prometheus_scrapes_what_runs() -> None:
    """Each target is a service of the stack, at a port that it listens on."""
    targets = set()
    for job in PROMETHEUS["scrape_configs"]:
        for found in job.get("dns_sd_configs", ()):
            targets |= {(name, found["port"]) for name in found["names"]}
        for found in job.get("static_configs", ()):
            targets |= {(host, int(port)) for host, port in (target.split(":") for target in found["targets"])}
    targets.discard(("localhost", 9090))
    open_ports = {
        (name, int(str(port).rpartition(":")[2]))
        for name, service in SERVICES.items()
        for port in [*service.get("ports", ()), *service.get("expose", ())]
    }
    assert targets <= open_ports
    assert {"guard", "switch", "notify", "api", "audit"} <= {name for name, _ in targets}


# Kubernetes

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
OBJECTS: list[dict[str, Any]] = [
    found
    for name in KUSTOMIZATION["resources"]
    for found in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))
]
LONG_RUNNING = ("guard", "switch", "notify", "api", "audit")


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {found["metadata"]["name"]: found for found in OBJECTS if found["kind"] == kind}


DEPLOYMENTS = of_kind("Deployment")
PODS = {name: found["spec"]["template"] for kind in ("Deployment", "Job") for name, found in of_kind(kind).items()}
SCALED_OBJECT = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "keda.sh/v1alpha1"},
        "spec": {
            "type": "object",
            "required": ["scaleTargetRef", "triggers"],
            "additionalProperties": False,
            "properties": {
                "scaleTargetRef": {"type": "object", "required": ["name"]},
                "minReplicaCount": {"type": "integer", "minimum": 1},
                "maxReplicaCount": {"type": "integer"},
                "pollingInterval": {"type": "integer"},
                "cooldownPeriod": {"type": "integer"},
                "fallback": {
                    "type": "object",
                    "required": ["failureThreshold", "replicas"],
                    "additionalProperties": False,
                    "properties": {"failureThreshold": {"type": "integer"}, "replicas": {"type": "integer"}},
                },
                "advanced": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "horizontalPodAutoscalerConfig": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"behavior": {"type": "object"}, "name": {"type": "string"}},
                        }
                    },
                },
                "triggers": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["type", "metadata"],
                        "additionalProperties": False,
                        "properties": {
                            "type": {"const": "kafka"},
                            # All of a trigger's metadata are strings.
                            "metadata": {
                                "type": "object",
                                "required": ["bootstrapServers", "consumerGroup", "topic", "lagThreshold"],
                                "additionalProperties": False,
                                "properties": {
                                    "bootstrapServers": {"type": "string"},
                                    "consumerGroup": {"type": "string"},
                                    "topic": {"type": "string"},
                                    "lagThreshold": {"type": "string", "pattern": r"^\d+$"},
                                    "offsetResetPolicy": {"enum": ["earliest", "latest"]},
                                    "allowIdleConsumers": {"enum": ["true", "false"]},
                                },
                            },
                            "authenticationRef": {"type": "object", "required": ["name"]},
                        },
                    },
                },
            },
        },
    },
}
"""What KEDA's definition says of the fields that are used here."""


@pytest.mark.parametrize("found", OBJECTS, ids=lambda found: f"{found['kind']}/{found['metadata']['name']}")
def test_kubernetes_would_take_it(found: dict[str, Any]) -> None:
    """By the schema of its kind; a field that does not exist is an error."""
    if found["kind"] == "ScaledObject":
        jsonschema.validate(found, SCALED_OBJECT)
        # Its scaling rules are those of a HorizontalPodAutoscaler.
        behavior = found["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        found = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": found["metadata"],
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", **found["spec"]["scaleTargetRef"]},
                "minReplicas": found["spec"]["minReplicaCount"],
                "maxReplicas": found["spec"]["maxReplicaCount"],
                "behavior": behavior,
            },
        }
    kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)


def test_the_kustomization_names_every_file() -> None:
    """And nothing that is not there."""
    generated = [name for one in KUSTOMIZATION["configMapGenerator"] for name in one["files"]]
    named = {"kustomization.yaml", *KUSTOMIZATION["resources"], *generated}
    assert {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()} == named
    names = [(found["kind"], found["metadata"]["name"]) for found in OBJECTS]
    assert len(names) == len(set(names))


def test_each_pod_has_its_own_secret_for_kafka_and_no_other() -> None:
    """It must be there: a pod without a login does not start. The kustomization says which ones to make."""
    text = (FOLDER / "kustomization.yaml").read_text(encoding="utf-8")
    named = set()
    for name, pod in PODS.items():
        (container,) = pod["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": f"holdfast-kafka-{name.removeprefix('holdfast-')}"}}]
        volumes = [volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume]
        keys = [one["valueFrom"].get("secretKeyRef", {}).get("name") for one in container["env"] if "valueFrom" in one]
        named |= {*volumes, *filter(None, keys)}
        assert f"-{name.removeprefix('holdfast-')}" in text
    assert named == {"holdfast-redis", "holdfast-api-tokens"}
    assert {"holdfast-redis"} == {
        key["valueFrom"]["secretKeyRef"]["name"]
        for key in PODS["holdfast-switch"]["spec"]["containers"][0]["env"]
        if "secretKeyRef" in key.get("valueFrom", {})
    }


def test_the_base_pulls_no_image_before_its_digest_is_set() -> None:
    """The digest that stands there is nobody's; the command that sets it is beside it."""
    (image,) = KUSTOMIZATION["images"]
    assert image["name"] == OUR_IMAGE.partition(":")[0]
    assert image["digest"] == f"sha256:{'0' * 64}"
    assert "newTag" not in image
    assert "kustomize edit set image" in (FOLDER / "kustomization.yaml").read_text(encoding="utf-8")


def test_every_service_is_deployed() -> None:
    assert set(DEPLOYMENTS) == {f"holdfast-{name}" for name in LONG_RUNNING}
    assert set(of_kind("Job")) == {"holdfast-topics"}


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_a_pod_may_do_no_more_than_it_must(pod: dict[str, Any]) -> None:
    """Not root, nothing writable but /tmp, no capability, no token of the cluster, bounded memory."""
    spec = pod["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert of_kind("ServiceAccount")[spec["serviceAccountName"]]["automountServiceAccountToken"] is False
    assert {"memory"} <= container["resources"]["limits"].keys()
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/tmp"]  # noqa: S108  a mount point
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    # The cluster's own HOLDFAST_API_SERVICE_HOST would be taken for a setting that does not exist.
    assert spec["enableServiceLinks"] is False


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_a_pod_runs_what_exists(pod: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Our image, one of our commands; its variables name settings, over the file of the base."""
    (container,) = pod["spec"]["containers"]
    assert container["image"] == OUR_IMAGE
    assert unknown_command(container["args"]) is None
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], str(variable.get("value", "redis://redis:6379/0")))
    monkeypatch.setenv("HOLDFAST_CONFIG", str(FOLDER / "holdfast.toml"))
    monkeypatch.delenv("HOLDFAST_API__TOKENS_FILE", raising=False)
    settings = load_settings()
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(settings.policies) in mounts
    name = container["args"][0]
    if name in LONG_RUNNING:
        section = getattr(settings, name)
        host, port = (section.host, section.port) if name == "api" else (section.health_host, section.health_port)
        assert (host, [{"name": "http", "containerPort": port}]) == ("0.0.0.0", container["ports"])  # noqa: S104
        assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(port)


def test_the_policies_of_the_base_load() -> None:
    generated = [name for one in KUSTOMIZATION["configMapGenerator"] for name in one["files"] if "policies/" in name]
    assert len(load_policies(FOLDER / "policies").policies) == len(generated)


@pytest.mark.parametrize("name", [f"holdfast-{name}" for name in LONG_RUNNING])
def test_a_deployment_ends_and_is_watched_as_it_must(name: str) -> None:
    """Probes at both paths, more than ten seconds to finish a batch, and labels that select its own pods only."""
    found = DEPLOYMENTS[name]
    spec = found["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    assert spec["terminationGracePeriodSeconds"] > 10
    labels = found["spec"]["selector"]["matchLabels"]
    assert labels == found["spec"]["template"]["metadata"]["labels"] == found["metadata"]["labels"]
    assert labels["app.kubernetes.io/component"] == name.removeprefix("holdfast-")
    (spread,) = spec["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels
    if name != "holdfast-audit":
        budget = of_kind("PodDisruptionBudget")[name]["spec"]
        assert (budget["maxUnavailable"], budget["selector"]["matchLabels"]) == (1, labels)


def test_guards_scale_on_what_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The group and the topic are those of the settings, and there are never more guards than partitions."""
    monkeypatch.setenv("HOLDFAST_CONFIG", str(FOLDER / "holdfast.toml"))
    settings = load_settings()
    spec = of_kind("ScaledObject")["holdfast-guard"]["spec"]
    (trigger,) = spec["triggers"]
    assert spec["scaleTargetRef"]["name"] in DEPLOYMENTS
    assert "replicas" not in DEPLOYMENTS["holdfast-guard"]["spec"]
    assert spec["maxReplicaCount"] == settings.topic_settings.partitions
    assert trigger["metadata"]["consumerGroup"] == settings.guard.group
    assert trigger["metadata"]["topic"] == settings.topics.predictions
    assert trigger["metadata"]["bootstrapServers"] == settings.kafka.bootstrap_servers


def test_the_console_is_behind_its_service() -> None:
    service = of_kind("Service")["holdfast-api"]["spec"]
    assert service["selector"] == DEPLOYMENTS["holdfast-api"]["spec"]["template"]["metadata"]["labels"]
    assert [port["targetPort"] for port in service["ports"]] == ["http"]


def reaches(component: str) -> set[tuple[str, int]]:
    """What a component may open connections to: the name in the peer's labels (or its namespace) and the port."""
    found: set[tuple[str, int]] = set()
    for policy in of_kind("NetworkPolicy").values():
        labels = {"app.kubernetes.io/name": "holdfast", "app.kubernetes.io/component": component}
        if policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items():
            for rule in policy["spec"].get("egress", ()):
                for peer in rule["to"]:
                    pods = peer.get("podSelector", peer["namespaceSelector"])["matchLabels"]
                    found |= {(next(iter(pods.values())), port["port"]) for port in rule["ports"]}
    return found


@pytest.mark.parametrize(
    ("component", "more"),
    [
        ("guard", set()),
        ("switch", {("redis", 6379)}),
        ("notify", {("alertmanager", 9093)}),
        ("api", set()),
        ("audit", set()),
        ("topics", set()),
    ],
)
def test_a_service_reaches_what_it_needs_and_no_more(component: str, more: set[tuple[str, int]]) -> None:
    """Name service and Kafka for all; Redis for the switch alone, Alertmanager for notify alone."""
    assert reaches(component) == {("kube-system", 53), ("kafka", 9092), *more}


def test_what_is_not_allowed_is_denied() -> None:
    """One policy selects all pods of ours for both directions and allows nothing."""
    denies = of_kind("NetworkPolicy")["holdfast-nothing-else"]["spec"]
    assert denies == {
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "holdfast"}},
        "policyTypes": ["Ingress", "Egress"],
    }
    inwards = {name for name, found in of_kind("NetworkPolicy").items() if found["spec"].get("ingress")}
    assert inwards == {"holdfast-api-from-ingress", "holdfast-metrics"}
