"""What docker/ ships parses, fits its tools' schemas and the pinned versions, and is safe.

There is no container engine here: that an image builds and a cluster starts is tried by hand, and
docker/README.md says what was tried.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from typer.main import get_command

from prefsweep.orchestrator.commands.cli import app
from prefsweep.sweeps.runtime import ResourcesSpec

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
YAML_FILES = sorted(DOCKER.glob("*.yaml"))
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
)
SECRETS = {"HF_TOKEN", "WANDB_API_KEY", "RAY_AUTH_TOKEN"} | {
    f"AWS_{name}" for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")
}


def load(name: str) -> Any:
    return yaml.safe_load((DOCKER / name).read_text())


def everywhere(value: Any) -> Iterator[Any]:
    """All mappings in a document, at any depth."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, dict | list):
            yield from everywhere(child)


# --- the image -----------------------------------------------------------------------------------


def test_the_image_runs_as_a_user_without_rights_and_can_be_asked_for_its_health() -> None:
    last_stage = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.*)$", last_stage, re.MULTILINE) == ["1000"]
    assert "HEALTHCHECK" in last_stage
    assert "COPY --from=build" in last_stage


def test_every_installation_is_pinned() -> None:
    for line in re.findall(r"pip install (.*)", DOCKERFILE):
        assert "--constraint constraints.txt" in line or "--no-deps --no-build-isolation ." in line
    listed = subprocess.run(
        [sys.executable, DOCKER / "requirements.py", ROOT / "pyproject.toml"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    names = {re.match(r"[A-Za-z0-9_.-]+", line)[0] for line in listed if line}  # pyright: ignore
    pinned = {name.lower().replace("_", "-") for name in PINS}
    assert {"ray", "torch", "trl", "setuptools"} <= names
    assert [name for name in names if name.lower().replace("_", "-") not in pinned] == []


def test_python_is_one_that_the_package_allows_and_the_tests_use() -> None:
    [version] = re.findall(r"^ARG PYTHON=(.*)$", DOCKERFILE, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={version}"
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {
        "python:${PYTHON}-slim-bookworm"
    }


def test_what_is_copied_is_let_through_and_nothing_else() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
        for word in line.split()
    }
    assert ignored[0] == "*"
    assert allowed == copied
    assert all((ROOT / path).exists() for path in copied)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_has_nothing_to_say() -> None:
    subprocess.run(["hadolint", DOCKER / "Dockerfile"], check=True)


# --- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_secrets_are_named_and_never_given(path: Path) -> None:
    for mapping in everywhere(load(path.name)):
        for name in SECRETS & mapping.keys():
            assert mapping[name] is None, f"{path.name}: {name} has a value"
        if mapping.get("name") in SECRETS:
            assert set(mapping) == {"name", "valueFrom"}, f"{path.name}: {mapping['name']}"
            assert set(mapping["valueFrom"]) == {"secretKeyRef"}
    for line in (line for line in DOCKERFILE.split("\n") if not line.startswith("#")):
        assert not re.search("|".join(SECRETS), line)


# --- compose -------------------------------------------------------------------------------------


def compose_command() -> list[str]:
    """Compose 2 as a plugin or a program of its own; skips where there is none."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            run = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
            if run.returncode == 0 and run.stdout.lstrip("v").startswith(("2.", "3.", "4.", "5.")):
                return command
    pytest.skip("Docker Compose 2 is not installed")


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.cuda.yaml"]])
def test_compose_takes_its_files(files: list[str]) -> None:
    words = [word for name in files for word in ("-f", str(DOCKER / name))]
    environment = os.environ | {"RAY_AUTH_TOKEN": "not-shown"}
    run = subprocess.run(
        [*compose_command(), *words, "--profile", "s3", "config", "--format", "json"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    services = json.loads(run.stdout)["services"]
    assert set(services) == {"head", "worker", "s3"}
    assert "not-shown" not in run.stdout
    images = {services[name]["image"] for name in ("head", "worker")}
    assert len(images) == 1  # the head's and the workers' versions are the same


def test_only_the_head_is_reached_from_outside_and_only_from_this_machine() -> None:
    services = load("compose.yaml")["services"]
    assert [name for name in services if "ports" in services[name]] == ["head"]
    assert services["head"]["ports"] == ["127.0.0.1:8265:8265"]


def test_all_nodes_share_the_storage_and_ask_for_the_token() -> None:
    for name in ("head", "worker"):
        node = load("compose.yaml")["services"][name]
        assert "store:/data" in node["volumes"]
        assert node["environment"]["RAY_AUTH_MODE"] == "${RAY_AUTH_MODE:-token}"
        assert node["secrets"] == ["ray_auth_token"]


# --- Kubernetes ----------------------------------------------------------------------------------

GROUP = {
    "type": "object",
    "additionalProperties": False,
    "required": ["rayStartParams", "template"],
    "properties": {
        "groupName": {"type": "string"},
        "replicas": {"type": "integer", "minimum": 0},
        "minReplicas": {"type": "integer", "minimum": 0},
        "maxReplicas": {"type": "integer", "minimum": 1},
        "serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        "rayStartParams": {"additionalProperties": {"type": "string"}},
        "template": {"type": "object", "required": ["spec"]},
    },
}
CLUSTER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["headGroupSpec"],
    "properties": {
        "rayVersion": {"type": "string"},
        "authOptions": {"properties": {"mode": {"enum": ["disabled", "token"]}}},
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": {
            "additionalProperties": False,
            "properties": {
                "idleTimeoutSeconds": {"type": "integer"},
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
            },
        },
        "headGroupSpec": GROUP,
        "workerGroupSpecs": {"type": "array", "items": GROUP},
    },
}
JOB = {
    "type": "object",
    "additionalProperties": False,
    "required": ["entrypoint", "rayClusterSpec"],
    "properties": {
        "entrypoint": {"type": "string"},
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": {"type": "integer"},
        "backoffLimit": {"type": "integer"},
        "rayClusterSpec": CLUSTER,
    },
}
"""The fields of KubeRay's own types (ray.io/v1) that are used, by their names and kinds."""


def kuberay() -> dict[str, Any]:
    items = load("kuberay.yaml")["items"]
    assert {item["apiVersion"] for item in items} == {"ray.io/v1"}
    return {item["kind"]: item for item in items}


def test_the_kubernetes_resources_have_the_fields_of_kuberay() -> None:
    items = kuberay()
    jsonschema.validate(items["RayJob"]["spec"], JOB)
    jsonschema.validate(items["RayCluster"]["spec"], CLUSTER)


def test_kubernetes_nodes_are_alike_unprivileged_and_of_the_pinned_ray() -> None:
    spec = kuberay()["RayCluster"]["spec"]
    assert spec["rayVersion"] == PINS["ray"]
    assert spec["authOptions"] == {"mode": "token"}
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"]
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_gpu_workers_come_and_go() -> None:
    spec = kuberay()["RayJob"]["spec"]["rayClusterSpec"]
    [workers] = spec["workerGroupSpecs"]
    assert spec["enableInTreeAutoscaling"]
    assert workers["minReplicas"] < workers["maxReplicas"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1


# --- Ray's launcher ------------------------------------------------------------------------------


def test_the_launcher_takes_its_file() -> None:
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    config = load("cluster.yaml")
    jsonschema.validate(config, json.loads(schema.read_text()))
    assert config["head_node_type"] in config["available_node_types"]
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all(command.startswith("RAY_AUTH_MODE=token ") for command in starts)
    assert not any("dashboard-host" in command for command in starts)  # stays on localhost


# --- the page ------------------------------------------------------------------------------------


def test_the_page_links_to_files_that_exist_and_to_all_of_this_folder() -> None:
    page = (DOCKER / "README.md").read_text()
    targets = re.findall(r"\]\(([^)#]+)\)", page)
    assert all((DOCKER / target).exists() for target in targets)
    assert {path.name for path in DOCKER.iterdir() if path.is_file()} <= {*targets, "README.md"}


def test_the_page_names_commands_and_fields_that_exist() -> None:
    page = (DOCKER / "README.md").read_text()
    known = set(get_command(app).commands)  # pyright: ignore[reportAttributeAccessIssue]
    shown = set(re.findall(r"prefsweep (run|status|doctor)\b", page))
    assert shown <= known
    placement = page.partition("## Placement")[2].partition("\n## ")[0]
    fields = set(re.findall(r"`((?:num|gpus|cpus|threads)_\w+)`", placement))
    assert fields >= {"num_generators", "gpus_per_trial"}
    assert fields <= set(ResourcesSpec.model_fields)


def test_the_page_says_which_files_compose_takes_and_which_packages_there_are() -> None:
    page = (DOCKER / "README.md").read_text()
    assert not re.search(r"docker compose (cp|exec|run|down|logs)\b", page), "where is its file?"
    told = [DOCKER / "README.md", *ROOT.glob("orchestrator/**/*.py"), *ROOT.glob("workers/*.py")]
    named = [path.name for path in told if re.search(r"prefsweep\[\w", path.read_text())]
    assert not named, "no index has prefsweep: what an extra brings is named itself"
