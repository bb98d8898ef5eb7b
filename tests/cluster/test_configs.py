"""The configurations of clusters: Ray's schema, what their commands do, what they say of other files."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.conftest import ROOT

FILES = {"aws": ROOT / "cluster.yaml", "local": ROOT / "docs" / "cluster-on-premise.yaml"}
Config = dict[str, Any]


@pytest.fixture(params=FILES)
def config(request: pytest.FixtureRequest) -> Config:
    loaded: Config = yaml.safe_load(FILES[request.param].read_text(encoding="utf-8"))
    assert loaded["provider"]["type"] == request.param
    return loaded


def validate(config: Config) -> None:
    """What `ray up` does with a file before it starts anything."""
    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_the_file(config: Config) -> None:
    validate(config)


@pytest.mark.parametrize(
    "change",
    [
        {"max_worker": 8},
        {"idle_timeout_minutes": "soon"},
        {"initialization_commands": "sudo reboot"},
        {"auth": {"ssh_user": "me", "password": "x"}},
        {"rsync_exclude": ".git"},
        {"available_node_types": {"head": {"resources": {}, "node_config": {}, "max_worker": 1}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_ray_refuses_a_broken_copy(change: Config) -> None:
    broken = yaml.safe_load(FILES["aws"].read_text(encoding="utf-8")) | change
    with pytest.raises(jsonschema.ValidationError):
        validate(broken)


def test_ray_refuses_a_head_that_is_not_among_the_nodes() -> None:
    broken = yaml.safe_load(FILES["aws"].read_text(encoding="utf-8")) | {"head_node_type": "heads"}
    with pytest.raises(ValueError, match="head_node_type"):
        validate(broken)


def test_models_go_to_spot_gpu_workers_that_are_started_when_needed() -> None:
    config = yaml.safe_load(FILES["aws"].read_text(encoding="utf-8"))
    head, gpu = (config["available_node_types"][name] for name in (config["head_node_type"], "gpu"))
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]  # a head that is lost takes the run with it
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gpu["min_workers"] == 0
    assert gpu["max_workers"] == config["max_workers"]
    assert gpu["node_config"]["ImageId"] == head["node_config"]["ImageId"]
    assert (
        config["provider"]["cache_stopped_nodes"] is False
    )  # Ray would stop spot instances, which EC2 refuses


def commands(config: Config) -> list[str]:
    return [command for name, found in config.items() if name.endswith("_commands") for command in found]


def test_the_commands_are_shell(config: Config) -> None:
    assert len(commands(config)) >= 7
    for command in commands(config):
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_every_node_has_the_token_and_wants_it(config: Config, tmp_path: Path) -> None:
    """The line that the set-up adds to ~/.bashrc, added twice, in a shell like those that Ray starts."""
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    [line] = [command for command in config["setup_commands"] if ".bashrc" in command]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    for _ in range(2):
        subprocess.run(["bash", "-c", line], env=environment, check=True)
    shell = ["bash", "--norc", "-c", "source ~/.bashrc && echo $PATH $RAY_AUTH_MODE $RAY_USAGE_STATS_ENABLED"]
    printed = subprocess.run(shell, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.split() == [f"{tmp_path}/lethe/env/bin:/usr/bin:/bin", "token", "0"]
    assert len((tmp_path / ".bashrc").read_text().splitlines()) == 1


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
def test_the_code_travels_and_nothing_else(config: Config, tmp_path: Path) -> None:
    """rsync itself, with the excludes, from a folder with all that a user may have in this one."""
    assert config["file_mounts"]["~/lethe/code"] == "."
    code = ("orchestrator/__main__.py", "workers/data.py", "methods/finetune.py", "attacks/ulira.py")
    kept = {*code, "grids/paper.yaml", "constraints.txt", "pyproject.toml", "orchestrator/report.py"}
    left = (".git/config", ".venv/bin/python", "data/cifar10/x", "results/runs/x", "results-paper/runs/x")
    for name in (
        *kept,
        *left,
        "report.html",
        "lethe.egg-info/x",
        ".mypy_cache/x",
        "methods/__pycache__/x.pyc",
    ):
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).touch()
    excludes = [word for pattern in config["rsync_exclude"] for word in ("--exclude", pattern)]
    subprocess.run(["rsync", "-a", *excludes, f"{tmp_path}/here/", f"{tmp_path}/there/"], check=True)
    there = tmp_path / "there"
    assert {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()} == kept


def test_the_datasets_of_the_papers_grid_are_prepared_on_the_head() -> None:
    config = yaml.safe_load(FILES["aws"].read_text(encoding="utf-8"))
    [prepare] = [command for command in config["head_setup_commands"] if "lethe prepare" in command]
    datasets, folder = re.fullmatch(r"\S+/lethe prepare (.*) --data (\S+)", prepare).groups()
    grid = yaml.safe_load((ROOT / "grids" / "paper.yaml").read_text(encoding="utf-8"))
    assert set(datasets.split()) == set(grid["datasets"]) - {"utkface"}  # that one is fetched by hand
    assert folder == "~/lethe/data"  # where a job looks, and `--data lethe/data` of `ray submit`


@pytest.mark.parametrize("path", [*FILES.values(), ROOT / "docs" / "cluster.md"], ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:grids|docs|tests|orchestrator)/[\w/-]+\.(?:yaml|py)", text))
    assert any(name.startswith("grids/") for name in named)
    assert not {name for name in named if not (ROOT / name).is_file()}


# ---- Kubernetes: no schema comes with Ray; the fields are those of KubeRay's ray.io/v1 --------------------

GROUP = {"rayStartParams", "template", "serviceType", "headService", "enableIngress", "resources", "labels"}
FIELDS = {
    "spec": {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec"}
    | {"workerGroupSpecs", "suspend", "managedBy", "headServiceAnnotations", "gcsFaultToleranceOptions"},
    "head": GROUP,
    "worker": GROUP - {"serviceType", "headService", "enableIngress"}
    | {"groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "numOfHosts", "suspend"}
    | {"scaleStrategy"},
}


def problems(documents: list[Config]) -> list[str]:
    """What is wrong with the manifest, one line each."""
    cluster, volume = documents
    spec = cluster["spec"]
    head, [worker] = spec["headGroupSpec"], spec["workerGroupSpecs"]
    found = [
        f"{name}: {field}"
        for name, part in (("spec", spec), ("head", head), ("worker", worker))
        for field in part.keys() - FIELDS[name]
    ]
    pods = [group["template"]["spec"] for group in (head, worker)]
    checks = {
        "kinds": [document["kind"] for document in documents] == ["RayCluster", "PersistentVolumeClaim"],
        "version": cluster["apiVersion"] == "ray.io/v1",
        "token": spec["authOptions"] == {"mode": "token"},
        "models on the head": head["rayStartParams"]["num-cpus"] == "0",
        "strings": all(isinstance(v, str) for g in (head, worker) for v in g["rayStartParams"].values()),
        "replicas": 0 <= worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"],
        "image": len({pod["containers"][0]["image"] for pod in pods}) == 1,
        "gpus": "nvidia.com/gpu" in limits(pods[1]),
        "limits": all(limits(pod) == pod["containers"][0]["resources"]["requests"] for pod in pods),
    }
    [mounted], [filled] = pods[0]["containers"][0]["volumeMounts"], pods[0]["volumes"]
    checks["volume"] = mounted["name"] == filled["name"]
    checks["claim"] = filled["persistentVolumeClaim"]["claimName"] == volume["metadata"]["name"]
    checks["folder"] = mounted["mountPath"] == "/home/ray/lethe/data"  # ~/lethe/data of the image's user
    return found + [name for name, good in checks.items() if not good]


def limits(pod: Config) -> Config:
    found: Config = pod["containers"][0]["resources"]["limits"]
    return found


@pytest.fixture
def manifest() -> list[Config]:
    text = (ROOT / "docs" / "raycluster.yaml").read_text(encoding="utf-8")
    return copy.deepcopy(list(yaml.safe_load_all(text)))  # anchors make parts the same object


def test_the_manifest_has_the_fields_of_kuberay(manifest: list[Config]) -> None:
    assert problems(manifest) == []


def test_the_manifest_has_the_version_of_ray_that_is_tested(manifest: list[Config]) -> None:
    [version] = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert manifest[0]["spec"]["rayVersion"] == version
    assert f"rayproject/ray:{version}-py311-gpu" in (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("spec: enableAutoscaling", lambda d: d[0]["spec"].update(enableAutoscaling=True)),
        ("worker: maxWorkers", lambda d: d[0]["spec"]["workerGroupSpecs"][0].update(maxWorkers=1)),
        ("replicas", lambda d: d[0]["spec"]["workerGroupSpecs"][0].update(replicas=9)),
        ("token", lambda d: d[0]["spec"].update(authOptions={"mode": "disabled"})),
        ("claim", lambda d: d[1]["metadata"].update(name="other")),
        ("strings", lambda d: d[0]["spec"]["workerGroupSpecs"][0].update(rayStartParams={"num-cpus": 4})),
    ],
)
def test_a_broken_manifest_is_found(
    manifest: list[Config], named: str, change: Callable[[list[Config]], None]
) -> None:
    change(manifest)
    assert named in problems(manifest)
