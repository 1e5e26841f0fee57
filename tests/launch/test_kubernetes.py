"""Jobs for Kubernetes: what is rendered, how pods find each other, config, folders and secrets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("kubeflow_trainer_api", reason="needs the extra `kubernetes`")

from data_pipeline.config import DataConfig
from data_pipeline.errors import ConfigError
from launch.config import check_document, read_config
from launch.submit.kubernetes import KubernetesPlace
from launch.submit.kubernetes.names import amount, as_label, is_label
from launch.submit.kubernetes.rules import pod_specs
from launch.yaml_file import read_document
from pretrain.config import RunConfig
from tests.launch.kubernetes_jobs import IMAGE, place, rendered, sharding, sweep, training

ROOT = Path(__file__).parents[2]


def expanded(words: list[str], env: dict[str, str]) -> list[str]:
    """As the kubelet does: $(NAME) becomes the variable's value, and stays where there is none; $$ is $."""
    return [
        re.sub(
            r"\$(\$|\((\w+)\))", lambda found: "$" if found[1] == "$" else env.get(found[2], found[0]), word
        )
        for word in words
    ]


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    return dict(next(iter(pod_specs(job["spec"], "")))[1])


def test_a_train_job_starts_torchrun_and_leaves_nodes_and_ranks_to_the_runtime(tmp_path: Path) -> None:
    config_map, job = rendered(training(tmp_path), place(nodes=4, gpus_per_node=8))
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    trainer = job["spec"]["trainer"]
    assert trainer["command"] == ["torchrun", "-m", "launch", "train", "/etc/foreframe/config.yaml"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (4, 8, IMAGE)
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "8"
    assert not any(each["name"].startswith("PET_") for each in trainer["env"])
    pod = pod_of(job)
    mounts = {each["mountPath"]: each["name"] for each in pod["containers"][0]["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes[mounts["/etc/foreframe"]]["configMap"]["name"] == config_map["metadata"]["name"]
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert volumes[mounts["/data"]]["persistentVolumeClaim"] == {"claimName": "data", "readOnly": True}


@pytest.mark.parametrize(
    ("form", "env"),
    [
        ("jobset", {"JOB_COMPLETION_INDEX": "3"}),
        ("trainjob", {"PET_NODE_RANK": "3", "PET_MASTER_ADDR": "a-node-0-0.a", "PET_MASTER_PORT": "29500"}),
    ],
)
def test_every_node_is_told_its_number_and_where_the_first_one_is(
    form: str, env: dict[str, str], tmp_path: Path
) -> None:
    _, job = rendered(
        training(tmp_path, name="a"), place(form=form, launcher="supervise", nodes=4, gpus_per_node=2)
    )
    command = (
        pod_of(job)["containers"][0].get("command") if form == "jobset" else job["spec"]["trainer"]["command"]
    )
    words = expanded(command, env)
    options = dict(zip(words[5::2], words[6::2], strict=True))
    assert words[:5] == ["python", "-m", "launch", "supervise", "/etc/foreframe/config.yaml"]
    first = {"jobset": "a-001-node-0-0.a-001:29400", "trainjob": "a-node-0-0.a:29500"}[form]
    assert options == {"--nproc": "2", "--nnodes": "4", "--node-rank": "3", "--rendezvous": first}


def test_a_job_set_makes_a_pod_a_node_under_the_name_that_the_others_look_for(tmp_path: Path) -> None:
    _, job = rendered(training(tmp_path), place(form="jobset", nodes=3, restarts=7, keep_s=60))
    spec, name = job["spec"], job["metadata"]["name"]
    (node,) = spec["replicatedJobs"]
    inner = node["template"]["spec"]
    assert inner["completionMode"] == "Indexed"
    assert inner["completions"] == inner["parallelism"] == 3
    # JobSet's own rule for a pod's host name: jobset-replicatedJob-jobIndex-podIndex.subdomain
    host = f"{name}-{node['name']}-0-0.{spec['network']['subdomain']}"
    command = pod_of(job)["containers"][0]["command"]
    assert command[command.index("--rendezvous") + 1].rpartition(":")[0] == host
    assert spec["failurePolicy"]["maxRestarts"] == 7
    assert spec["ttlSecondsAfterFinished"] == 60
    # What would end the same way again is not started again; what the cluster took away does not count.
    ignored, final = inner["podFailurePolicy"]["rules"]
    assert ignored["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert final["onExitCodes"]["values"] == [2, 3, 4, 5]
    assert 75 not in final["onExitCodes"]["values"], "a run that was asked to stop goes on"
    assert inner["template"]["spec"]["terminationGracePeriodSeconds"] > 660, "a save may take that long"


def test_one_node_needs_no_meeting(tmp_path: Path) -> None:
    _, job = rendered(training(tmp_path), place(form="jobset"))
    assert pod_of(job)["containers"][0]["command"][5:] == ["--nproc", "1"]


def test_a_ray_job_has_a_head_that_drives_and_the_other_nodes_as_workers(tmp_path: Path) -> None:
    config_map, job = rendered(sharding(tmp_path), place(nodes=3, cpus=16, ray_version="2.60.0"))
    spec = job["spec"]
    assert spec["entrypoint"] == "python -m launch shard /etc/foreframe/config.yaml --ray-address auto"
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 2
    for group in (cluster["headGroupSpec"], workers):
        (one,) = group["template"]["spec"]["containers"]
        assert one["resources"]["limits"] == {"cpu": "16", "memory": "32Gi"}
        assert "/dev/shm" in [each["mountPath"] for each in one["volumeMounts"]]
    config = yaml.safe_load(config_map["data"]["config.yaml"])
    assert (config["out"], config["sources"]) == ("/runs/set", ["/data/clips"])
    _, alone = rendered(sharding(tmp_path), place())
    assert "workerGroupSpecs" not in alone["spec"]["rayClusterSpec"]


def test_pods_read_the_same_config_with_their_own_addresses(tmp_path: Path) -> None:
    mixture = [{"shards": "sets/a", "weight": 2.0}, {"shards": "s3://bucket/b"}]
    job = training(
        tmp_path,
        data={"shards": mixture},
        probe={"data": str(tmp_path / "sets" / "probe")},
        init={"weights": "/runs/before"},
        tracker={"uri": f"sqlite:///{tmp_path}/runs/mlflow.db"},
    )
    config_map, _ = rendered(job, place(secret_env={"AWS_ACCESS_KEY_ID": "s3/id"}))
    assert config_map["immutable"] is True
    (tmp_path / "config.yaml").write_text(config_map["data"]["config.yaml"])
    found = read_config(tmp_path / "config.yaml", [], RunConfig)
    assert found.out == "/runs"
    assert [source.shards for source in found.data.sources] == ["/data/a", "s3://bucket/b"]
    assert (found.probe.data, found.init.weights) == ("/data/probe", "/runs/before")
    assert found.tracker.uri == "sqlite:////runs/mlflow.db"
    same = {"out", "data", "probe", "init", "tracker"}
    assert found.model_dump(exclude=same) == job.config.model_dump(exclude=same), "nothing else is touched"


@pytest.mark.parametrize(
    ("changes", "settings", "key", "said"),
    [
        ({"shards": "elsewhere/mine"}, {}, "data.shards", "need a folder of a claim that pods mount"),
        ({"out": "outside"}, {}, "out", "or all of it ends with the pods"),
        ({"out": "sets/runs"}, {}, "out", "volume data is read_only"),
        ({"tracker": {"uri": "http://127.0.0.1:5000"}}, {}, "tracker.uri", "need an address that pods reach"),
        ({"shards": "s3://bucket/set"}, {}, "secrets", "as the config reads s3://"),
        ({}, {"code": "volume", "volumes": [{"claim": "d", "mount": "/d"}]}, "code", "need a folder of"),
        ({}, {"secrets": ["s3"]}, "secrets", "name each variable in secret_env"),
        ({}, {"keep_s": 60}, "keep_s", "a TrainJob has no field for it"),
    ],
)  # fmt: skip
def test_what_pods_could_not_see_or_have_is_refused(
    changes: dict[str, Any], settings: dict[str, Any], key: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as refused:
        place(**settings).files(training(tmp_path, **changes))
    assert key in [problem.key for problem in refused.value.problems]


@pytest.mark.parametrize(
    "settings",
    [
        {"secrets": ("s3",), "form": "jobset"},
        {"service_account": "reader"},
        {"node_credentials": True},
    ],
)
def test_a_store_is_read_with_credentials_by_reference(settings: dict[str, Any], tmp_path: Path) -> None:
    _, job = rendered(training(tmp_path, shards="s3://bucket/set"), place(**settings))
    if "secrets" in settings:
        assert pod_of(job)["containers"][0]["envFrom"] == [{"secretRef": {"name": "s3"}}]


def test_a_secret_is_named_and_never_written(tmp_path: Path) -> None:
    _, job = rendered(training(tmp_path), place(secret_env={"HF_TOKEN": "hub/token"}))
    assert {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}},
    } in job["spec"]["trainer"]["env"]
    (tmp_path / "p.yaml").write_text(
        f"kind: kubernetes\nimage: {IMAGE}\nsecret_env: {{HF_TOKEN: hf_abcdefghijklmnop1234}}\n"
    )
    with pytest.raises(ConfigError, match="never the value itself") as refused:
        check_document(read_document(tmp_path / "p.yaml"), [], KubernetesPlace)
    assert "hf_abc" not in str(refused.value)


@pytest.mark.parametrize(
    ("setting", "key", "said"),
    [
        ("image=foreframe", "image", "a tag other than latest"),
        ("image=foreframe:latest", "image", "a tag other than latest"),
        ("image=Fore Frame:1", "image", "an image with a tag or digest"),
        ("image=null", "image", "an image with a tag or digest"),
        ("memory=32 GB", "memory", "a quantity"),
        ("cpus=-1", "cpus", "a quantity, such as 4, 500m or 32Gi, above 0"),
        ("shared_memory=64Gi", "shared_memory", "less than memory = 32Gi"),
        ("namespace=Team_A", "namespace", "try team-a"),
        ("labels={team: a b}", "labels.team", "a label's value"),
        ("labels={team: null}", "labels", "team has nothing"),
        ("node_selector={team: null}", "node_selector", "team has nothing"),
        ("annotations={note: [1]}", "annotations", "note has several values"),
        ("volumes=[{claim: Runs, mount: /runs}]", "volumes.0.claim", "a DNS name"),
        ("volumes=[{claim: r, mount: /dev/shm}]", "volumes.0.mount", "nothing else is mounted"),
        ("env={PET_NNODES: 2}", "env.PET_NNODES", "Trainer sets it"),
        ("env={AWS_SECRET_ACCESS_KEY: abc}", "env", "without credentials"),
        ("imag=a:1", "imag", "image"),
        ("secrets=['']", "secrets.0", "a DNS name"),
    ],
)
def test_settings_of_a_place_are_refused_with_their_name(
    setting: str, key: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "p.yaml").write_text(f"kind: kubernetes\nimage: {IMAGE}\n")
    with pytest.raises(ConfigError, match=re.escape(said)) as refused:
        check_document(read_document(tmp_path / "p.yaml"), [setting], KubernetesPlace)
    assert key in [problem.key for problem in refused.value.problems]


@pytest.mark.parametrize("value", ["a$$b", "$(PYTHONUNBUFFERED)", "$HOME", "$$(PYTHONUNBUFFERED)", "5$"])
def test_a_variable_has_in_a_pod_the_value_that_the_place_gives_it(value: str, tmp_path: Path) -> None:
    _, job = rendered(training(tmp_path), place(env={"X": value}))
    env = {each["name"]: each["value"] for each in job["spec"]["trainer"]["env"]}
    assert expanded([env["X"]], {"PYTHONUNBUFFERED": "1"}) == [value]


def test_labels_may_be_numbers_and_yes_or_no(tmp_path: Path) -> None:
    _, job = rendered(training(tmp_path), place(labels={"a": 1, "b": True, "c": "x"}))
    assert {key: job["metadata"]["labels"][key] for key in "abc"} == {"a": "1", "b": "true", "c": "x"}


def test_a_sweep_is_one_indexed_job_whose_elements_fail_alone(tmp_path: Path) -> None:
    config_map, job = rendered(sweep(tmp_path, 3), place(gpus_per_node=1, parallel=2))
    spec = job["spec"]
    assert (job["kind"], spec["completions"], spec["parallelism"]) == ("Job", 3, 2)
    assert spec["backoffLimitPerIndex"] == 3
    assert spec["podFailurePolicy"]["rules"][1]["action"] == "FailIndex"
    command = pod_of(job)["containers"][0]["command"]
    for number in range(3):
        folder, _, file = expanded(command, {"JOB_COMPLETION_INDEX": str(number)})[4].rpartition("/")
        assert folder == "/etc/foreframe"
        assert yaml.safe_load(config_map["data"][file])["seed"] == number
    with pytest.raises(ConfigError, match="an element is a pod"):
        place(nodes=2).files(sweep(tmp_path, 3))


def test_code_of_the_submission_runs_where_a_volume_holds_it(tmp_path: Path) -> None:
    _, job = rendered(training(tmp_path), place(code="volume"))
    env = {each["name"]: each.get("value") for each in job["spec"]["trainer"]["env"]}
    assert env["PYTHONPATH"] == "/runs/one/submissions/001/code"


@pytest.mark.parametrize("name", ["ViT_L16", "3d", "x" * 200, "a.-b", "Ünïcode"])
@pytest.mark.parametrize("form", ["trainjob", "jobset"])
def test_any_run_has_a_name_that_pods_and_services_may_have(name: str, form: str, tmp_path: Path) -> None:
    job = training(tmp_path)
    job = type(job)("train", name, job.config, job.folder, job.workdir)
    _, found = rendered(job, place(form=form, nodes=1000))
    longest = f"{found['metadata']['name']}-node-0-999-x7k2p"
    assert is_label(longest)
    assert longest[0].isalpha()


def test_labels_for_kueue_stand_on_the_job_alone(tmp_path: Path) -> None:
    _, job = rendered(training(tmp_path), place(queue="vision", queue_priority="high", form="jobset"))
    labels = job["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "vision"
    assert labels["kueue.x-k8s.io/priority-class"] == "high"
    inner = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["metadata"]["labels"]
    assert not any(key.startswith("kueue") for key in inner)


def test_a_manifest_says_that_nobody_has_run_it(tmp_path: Path) -> None:
    (text,) = place().files(training(tmp_path)).values()
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert text.startswith(head)
    assert "validated offline" in head
    assert "have not run this form on a cluster" in head


def test_the_shipped_example_renders_all_it_speaks_of(tmp_path: Path) -> None:
    file = ROOT / "configs" / "launch" / "kubernetes.yaml"
    on = check_document(read_document(file), ["gpus_per_node=0"], KubernetesPlace)
    job = training(tmp_path, shards="data/mine")
    assert rendered(job, on)[1]["kind"] == "TrainJob"
    lines = file.read_text().splitlines()
    commented = [line[2:].partition("  #")[0] for line in lines if re.match(r"# \w+: \S", line)]
    for form, left_out in (("jobset", ()), ("trainjob", ("secrets", "keep_s"))):
        more = [each.replace(": ", "=", 1) for each in commented if not each.startswith(left_out or "-")]
        both = check_document(
            read_document(file), [*more, "gpus_per_node=0", f"form={form}"], KubernetesPlace
        )
        assert rendered(job, both)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4", 4), ("500m", 0.5), ("1Ki", 1024), ("1.5Gi", 1610612736), ("2k", 2000), ("1e3", 1000), (3, 3),
     ("1E", 10**18)],
)  # fmt: skip
def test_quantities_are_what_kubernetes_takes_them_for(text: str | int, size: float) -> None:
    found = amount(text)
    assert found is not None
    assert float(found) == size


@pytest.mark.parametrize("text", ["", "4 cores", "1gb", "GiB", "0x4", "--1", "1Kb", True])
def test_what_is_no_quantity_is_none(text: str) -> None:
    assert amount(text) is None


def test_labels_of_names() -> None:
    assert as_label("ViT_L16, lr=1e-3") == "vit-l16-lr-1e-3"
    assert as_label("---") == "job"
    assert isinstance(sharding(Path("/x")).config, DataConfig)
