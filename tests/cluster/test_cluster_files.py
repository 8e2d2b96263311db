"""The files of cluster/ are valid, match the lock and the recipes, and open no extra ports."""

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.cityscapes_semantic_r50 import RECIPE as SEMANTIC
from jobs.coco_r50 import RECIPE as INSTANCE

TOP = Path(__file__).parents[2]
CLUSTER = TOP / "cluster"
LOCK = dict(re.findall(r"^([\w-]+)==([^\s;]+)", (TOP / "requirements.lock").read_text(), re.M))
GPUS = INSTANCE.scale.num_workers
LAUNCHERS = ("aws.yaml", "gcp.yaml", "on_premise.yaml")
CLOUDS = LAUNCHERS[:2]
MANIFESTS = ("kuberay/raycluster.yaml", "kuberay/rayjob.yaml")
IMAGE = f"YOUR-REGISTRY/boundary-squeeze:{LOCK['ray']}"


@cache
def _load(name):
    return yaml.safe_load((CLUSTER / name).read_text())


def _ray_cluster(name):
    spec = _load(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def _groups(name):
    spec = _ray_cluster(name)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def _only_container(group):
    (container,) = group["template"]["spec"]["containers"]
    return container


def _object(required, optional=()):
    """Make a JSON schema of an object without other fields."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": dict(required) | dict(optional),
    }


_TEXT, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
_TEMPLATE = _object({"spec": {"type": "object"}})
_START = {"type": "object", "additionalProperties": _TEXT}
_CLUSTER_SPEC = _object(
    {
        "rayVersion": _TEXT,
        "authOptions": _object({"mode": {"const": "token"}}),
        "enableInTreeAutoscaling": {"const": True},
        "autoscalerOptions": _object({"idleTimeoutSeconds": _COUNT}),
        "headGroupSpec": _object(
            {"serviceType": {"const": "ClusterIP"}, "rayStartParams": _START, "template": _TEMPLATE}
        ),
        "workerGroupSpecs": {
            "type": "array",
            "minItems": 1,
            "items": _object(
                {
                    "groupName": _TEXT,
                    "replicas": _COUNT,
                    "minReplicas": _COUNT,
                    "maxReplicas": _COUNT,
                    "rayStartParams": _START,
                    "template": _TEMPLATE,
                }
            ),
        },
    }
)
_JOB_SPEC = _object(
    {
        "entrypoint": _TEXT,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode"]},
        "shutdownAfterJobFinishes": {"const": True},
        "ttlSecondsAfterFinished": _COUNT,
        "activeDeadlineSeconds": _COUNT,
        "backoffLimit": _COUNT,
        "rayClusterSpec": _CLUSTER_SPEC,
    }
)
_SPECS = {"RayCluster": _CLUSTER_SPEC, "RayJob": _JOB_SPEC}


def _ray_object(kind):
    return _object(
        {
            "apiVersion": {"const": "ray.io/v1"},
            "kind": {"const": kind},
            "metadata": _object({"name": _TEXT}),
            "spec": _SPECS[kind],
        }
    )


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_accepts_the_launcher_file(name):
    validate_config(prepare_config(_load(name)))


def test_ray_rejects_an_unknown_field():
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config({**_load("aws.yaml"), "max_worker": 2}))


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_manifest_has_the_fields_of_its_kind(name):
    manifest = _load(name)
    jsonschema.validate(manifest, _ray_object(manifest["kind"]))


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_accepts_the_pods(name):
    for group in _groups(name):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.34", strict=True)


def test_kubernetes_accepts_the_volume_claim_and_rejects_a_misspelled_one():
    claim = _load("kuberay/storage.yaml")
    kubernetes_validate.validate(claim, "1.34", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(claim | {"spec": {"accessMode": "x"}}, "1.34", strict=True)


def test_both_manifests_describe_the_same_cluster():
    assert _ray_cluster(MANIFESTS[0]) == _ray_cluster(MANIFESTS[1])


def test_every_image_has_the_locked_version_of_ray():
    assert f"FROM rayproject/ray:{LOCK['ray']}-py311\n" in (CLUSTER / "Dockerfile").read_text()
    assert {_load(name)["docker"]["image"] for name in LAUNCHERS} == {IMAGE}
    for name in MANIFESTS:
        assert _ray_cluster(name)["rayVersion"] == LOCK["ray"]
        assert {_only_container(group)["image"] for group in _groups(name)} == {IMAGE}
    tags = re.findall(r"boundary-squeeze:([\d.]*\d)", (CLUSTER / "README.md").read_text())
    assert set(tags) == {LOCK["ray"]}


def test_gpus_match_the_workers_of_the_recipes():
    assert SEMANTIC.scale.num_workers == GPUS
    for name in CLOUDS:
        worker = _load(name)["available_node_types"]["gpu_worker"]
        assert worker["resources"]["GPU"] * worker["max_workers"] == GPUS, name
        assert _load(name)["max_workers"] == worker["max_workers"]
    for name in MANIFESTS:
        (group,) = _ray_cluster(name)["workerGroupSpecs"]
        gpus = int(_only_container(group)["resources"]["limits"]["nvidia.com/gpu"])
        assert gpus * group["maxReplicas"] == GPUS, name
    assert len(_load("on_premise.yaml")["provider"]["worker_ips"]) * 4 == GPUS


def test_workers_leave_cpus_to_ray_data():
    per_gpu = INSTANCE.scale.cpus_per_worker
    for name in CLOUDS:
        have = _load(name)["available_node_types"]["gpu_worker"]["resources"]
        assert have["CPU"] > have["GPU"] * per_gpu
    for name in MANIFESTS:
        limits = _only_container(_groups(name)[1])["resources"]["limits"]
        assert int(limits["cpu"]) > int(limits["nvidia.com/gpu"]) * per_gpu


def test_the_head_does_no_work():
    for name in CLOUDS:
        types = _load(name)["available_node_types"]
        assert types[_load(name)["head_node_type"]]["resources"] == {"CPU": 0}
    assert "--num-cpus=0 --num-gpus=0 " in _load("on_premise.yaml")["head_start_ray_commands"][1]
    for name in MANIFESTS:
        assert _ray_cluster(name)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_gpu_nodes_of_the_clouds_are_spot():
    aws, gcp = (_load(name)["available_node_types"]["gpu_worker"]["node_config"] for name in CLOUDS)
    assert aws["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gcp["scheduling"]["provisioningModel"] == "SPOT"


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_have_equal_requests_and_limits_and_enough_shared_memory(name):
    for group in _groups(name):
        container, spec = _only_container(group), group["template"]["spec"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert mounts == {"shared-memory": "/dev/shm", "storage": "/mnt/storage"}  # noqa: S108
        shared = volumes["shared-memory"]["emptyDir"]
        assert shared["medium"] == "Memory"
        size_gib = int(shared["sizeLimit"].removesuffix("Gi"))
        assert int(group["rayStartParams"]["object-store-memory"]) <= size_gib * 2**30
        assert size_gib < int(container["resources"]["limits"]["memory"].removesuffix("Gi"))
        claim = volumes["storage"]["persistentVolumeClaim"]["claimName"]
        assert claim == _load("kuberay/storage.yaml")["metadata"]["name"]


def test_the_paths_of_the_job_are_mounted():
    words = _load("kuberay/rayjob.yaml")["spec"]["entrypoint"].split()
    flags = dict(pairwise(words))
    assert flags["--storage"].startswith("/mnt/storage/")
    assert flags["--data.root"].startswith("/mnt/storage/")
    home = re.search(r"^WORKDIR (.+)$", (CLUSTER / "Dockerfile").read_text(), re.M)[1]
    assert (TOP / Path(words[1]).relative_to(home)).is_file()
    assert "--volume /mnt/storage:/mnt/storage" in _load("on_premise.yaml")["docker"]["run_options"]
    assert _load("kuberay/storage.yaml")["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_launcher_requires_the_token_and_opens_no_port(name):
    config = _load(name)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    hosts = re.findall(r"--(?:dashboard|ray-client-server)-host[= ](\S+)", " ".join(starts))
    assert hosts == ["127.0.0.1"]
    assert not re.search(r"(-p|--publish)\b", " ".join(config["docker"]["run_options"]))


def test_aws_names_its_security_group():
    """Ray would create one with SSH open to every address."""
    for node_type in _load("aws.yaml")["available_node_types"].values():
        assert node_type["node_config"]["SecurityGroupIds"] == ["sg-YOUR-GROUP"]


def test_pods_are_not_root_and_use_no_host_port():
    for name in MANIFESTS:
        for group in _groups(name):
            spec = group["template"]["spec"]
            assert spec["securityContext"]["runAsNonRoot"]
            assert not spec.get("hostNetwork")
            ports = _only_container(group).get("ports", [])
            assert not any("hostPort" in port for port in ports)
            assert {port["containerPort"] for port in ports} <= {6379, 8265}


@pytest.mark.parametrize(("name", "user"), [("Dockerfile", "ray"), ("mlflow/Dockerfile", "mlflow")])
def test_images_install_the_lock_and_run_as_a_user(name, user):
    text = (CLUSTER / name).read_text()
    assert re.findall(r"^USER (\S+)$", text, re.M)[-1] == user
    assert re.search(r"pip install .*-[rc] (/tmp/)?requirements\.lock", text.replace("\\\n", ""))
    ignored = (CLUSTER / f"{name}.dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?:--\S+ )?(.+) \S+$", text, re.M)
    for path in " ".join(copied).split():
        assert (TOP / path).exists()
        assert f"!{path}" in ignored


def test_mlflow_listens_on_loopback_and_its_database_is_private():
    services = _load("mlflow/compose.yaml")["services"]
    assert services["mlflow"]["ports"] == ["${MLFLOW_ADDRESS:-127.0.0.1}:5000:5000"]
    assert "ports" not in services["postgres"]
    password = services["postgres"]["environment"]["POSTGRES_PASSWORD"]
    assert password.startswith("${MLFLOW_DB_PASSWORD:?")


def test_the_readme_names_every_file_and_all_named_files_exist():
    text = (CLUSTER / "README.md").read_text()
    linked = set(re.findall(r"\]\(([^)]+\.yaml)\)", text))
    assert linked == {*LAUNCHERS, *MANIFESTS, "mlflow/compose.yaml"}
    for path in re.findall(r"cluster/[\w./-]+\w", text):
        assert (TOP / path).exists(), path
    assert "(cluster/README.md)" in (TOP / "README.md").read_text()


def test_the_files_that_the_doctor_names_exist():
    code = "".join(path.read_text() for path in (TOP / "pipeline/doctor").glob("*.py"))
    named = set(re.findall(r"cluster/[A-Z]\w*(?:\.md)?", code))
    assert named == {"cluster/README.md", "cluster/Dockerfile"}
    assert all((TOP / path).is_file() for path in named)


def test_no_file_has_the_address_of_a_package_registry():
    pattern = r"-index-url|--find-links|pypi\.|pythonhosted|(docker|ghcr|quay|gcr)\.io"
    for path in CLUSTER.rglob("*"):
        if path.is_file():
            assert not re.search(pattern, path.read_text()), path
