"""Faults put into whole manifests, one at a time: each is told by its path and line, with what is right."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("kubeflow_trainer_api", reason="needs the extra `kubernetes`")

from data_pipeline.errors import ConfigError, UsageError
from launch.cli import app
from launch.submit.kubernetes.faults import check_manifest, check_text
from launch.submit.kubernetes.rules import document_problems
from tests.launch.kubernetes_jobs import place, sharding, sweep, training

Plain = dict[str, Any]
SECRET = {"secret_env": {"AWS_ACCESS_KEY_ID": "s3/id"}, "gpus_per_node": 1}
POD = "spec.replicatedJobs.0.template.spec.template.spec"
PATCH = "spec.runtimePatches.0.trainingRuntimeSpec.template.spec.replicatedJobs.0.template.spec.template.spec"
HEAD = "spec.rayClusterSpec.headGroupSpec"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A manifest of each kind, as rendered."""
    here = tmp_path_factory.mktemp("kubernetes")
    jobs = {
        "TrainJob": (training(here), place(**SECRET)),
        "JobSet": (training(here), place(form="jobset", secrets=("hub",), **SECRET)),
        "RayJob": (sharding(here), place(nodes=3)),
        "Job": (sweep(here, 3), place(**SECRET)),
    }
    return {kind: next(iter(on.files(job).values())) for kind, (job, on) in jobs.items()}


@pytest.fixture(scope="module")
def plain(whole: dict[str, str]) -> dict[str, list[Plain]]:
    return {kind: list(yaml.safe_load_all(text)) for kind, text in whole.items()}


def at(document: Any, path: str) -> Any:
    for part in path.split("."):
        document = document[int(part) if isinstance(document, list) else part]
    return document


def put(path: str, value: Any) -> Callable[[Plain], None]:
    def change(document: Plain) -> None:
        above, _, name = path.rpartition(".")
        holder = at(document, above) if above else document
        holder[int(name) if isinstance(holder, list) else name] = value

    return change


def drop(path: str) -> Callable[[Plain], None]:
    def change(document: Plain) -> None:
        above, _, name = path.rpartition(".")
        del at(document, above)[name]

    return change


def twice(path: str) -> Callable[[Plain], None]:
    return lambda document: at(document, path).append(copy.deepcopy(at(document, path)[0]))


def both(*changes: Callable[[Plain], None]) -> Callable[[Plain], None]:
    def change(document: Plain) -> None:
        for each in changes:
            each(document)

    return change


ONE = f"{POD}.containers.0"
SEEDED: list[tuple[str, str, Callable[[Plain], None], str, str]] = [
    # id, kind, what is done to it, the path that is told, what is told
    ("unknown field of a container", "JobSet", put(f"{ONE}.imagePulPolicy", "Always"),
     f"{ONE}.imagePulPolicy", "Container has no such field; try imagePullPolicy"),
    ("unknown field of a job", "TrainJob", put("spec.trainer.numNode", 2), "spec.trainer.numNode",
     "try numNodes"),
    ("unknown field far down", "RayJob", put(f"{HEAD}.template.spec.volumes.1.emptyDir.size", "1Gi"),
     f"{HEAD}.template.spec.volumes.1.emptyDir.size", "EmptyDirVolumeSource has no such field"),
    ("unknown field of a Ray cluster", "RayJob", put("spec.rayClusterSpec.rayversion", "2"),
     "spec.rayClusterSpec.rayversion", "try rayVersion"),
    ("text for a number", "TrainJob", put("spec.trainer.numNodes", "2"), "spec.trainer.numNodes",
     "a whole number"),
    ("a number for text", "JobSet", put(f"{ONE}.env.0.value", 1), f"{ONE}.env.0.value", "put it in quotes"),
    ("a mapping for a list", "JobSet", put(f"{POD}.containers", {"name": "node"}), f"{POD}.containers",
     "a list"),
    ("text for yes or no", "JobSet", put("spec.network.enableDNSHostnames", "yes"),
     "spec.network.enableDNSHostnames", "true or false"),
    ("a field that must be there", "JobSet", drop(f"{ONE}.name"), f"{ONE}.name", "cannot be without it"),
    ("no template of a worker", "RayJob", drop("spec.rayClusterSpec.workerGroupSpecs.0.template"),
     "spec.rayClusterSpec.workerGroupSpecs.0.template", "cannot be without it"),
    ("one of a few words", "Job", put("spec.completionMode", "indexed"), "spec.completionMode",
     "try Indexed"),
    ("restart policy", "Job", put("spec.template.spec.restartPolicy", "Always"),
     "spec.template.spec.restartPolicy", "Never or OnFailure"),
    ("wrong apiVersion", "JobSet", put("apiVersion", "jobset.x-k8s.io/v1"), "apiVersion",
     "try jobset.x-k8s.io/v1alpha2"),
    ("wrong kind", "JobSet", put("kind", "Jobset"), "kind", "try JobSet"),
    ("a list for a kind", "RayJob", put("kind", ["RayJob"]), "kind", "one of those that are checked here"),
    ("a mapping for an apiVersion", "RayJob", put("apiVersion", {}), "apiVersion", "try ray.io/v1"),
    ("text for a list of jobs", "JobSet",
     put("spec.failurePolicy.rules.0.targetReplicatedJobs", 5),
     "spec.failurePolicy.rules.0.targetReplicatedJobs", "a list"),
    ("a mapping for a key", "JobSet", put(f"{POD}.volumes.0.configMap.items", [{"key": {}, "path": "a"}]),
     f"{POD}.volumes.0.configMap.items.0.key", "text"),
    ("nothing to run", "TrainJob", put("spec", None), "spec", "what is to run"),
    ("a runtime without a name", "TrainJob", put("spec.runtimeRef.name", ""), "spec.runtimeRef.name",
     "a runtime's name; it is missing"),
    ("a runtime that none is", "TrainJob", put("spec.runtimeRef.name", "x y"), "spec.runtimeRef.name",
     "a DNS name"),
    ("an image that none is", "TrainJob", put("spec.trainer.image", "x y"), "spec.trainer.image",
     "the name of an image"),
    ("an image in capitals", "JobSet", put(f"{ONE}.image", "Team/Image:1"), f"{ONE}.image",
     "the name of an image"),
    ("more nodes than a number holds", "TrainJob", put("spec.trainer.numNodes", 10**30),
     "spec.trainer.numNodes", "to 2147483647"),
    ("a user below 0", "JobSet", put(f"{POD}.securityContext.runAsUser", -1),
     f"{POD}.securityContext.runAsUser", "from 0 to 2147483647"),
    ("a time below 0", "Job", put("spec.template.spec.terminationGracePeriodSeconds", -1),
     "spec.template.spec.terminationGracePeriodSeconds", "from 0 to"),
    ("success as a failure", "Job", put("spec.podFailurePolicy.rules.1.onExitCodes.values.0", 0),
     "spec.podFailurePolicy.rules.1.onExitCodes.values.0", "0 is none"),
    ("bad label in a patch", "TrainJob", put(f"{PATCH.removesuffix('.spec')}.metadata.labels", {"a": "x y"}),
     f"{PATCH.removesuffix('.spec')}.metadata.labels.a", "a label's value"),
    ("bad label of a worker", "RayJob", put(f"{HEAD}.template.metadata.labels", {"a": "x y"}),
     f"{HEAD}.template.metadata.labels.a", "a label's value"),
    ("a quantity beyond all", "JobSet", put(f"{ONE}.resources.limits.memory", "1e99999999999"),
     f"{ONE}.resources.limits.memory", "a quantity"),
    ("no secret named", "TrainJob", drop("spec.trainer.env.1.valueFrom.secretKeyRef.name"),
     "spec.trainer.env.1.valueFrom.secretKeyRef.name", "a Secret's name; it is missing"),
    ("an empty secret", "JobSet", put(f"{ONE}.envFrom.0.secretRef.name", ""),
     f"{ONE}.envFrom.0.secretRef.name", "a Secret's name; it is missing"),
    ("no key of a secret", "TrainJob", drop("spec.trainer.env.1.valueFrom.secretKeyRef.key"),
     "spec.trainer.env.1.valueFrom.secretKeyRef.key", "cannot be without it"),
    ("a credential by value", "TrainJob",
     put("spec.trainer.env.1", {"name": "AWS_SECRET_ACCESS_KEY", "value": "x1"}),
     "spec.trainer.env.1.value", "by reference only"),
    ("a credential's form", "JobSet", put(f"{ONE}.command.4", "--key=hf_abcdefghijklmnop1234"),
     f"{ONE}.command.4", "no credentials"),
    ("bad quantity", "JobSet", put(f"{ONE}.resources.limits.memory", "32 GB"),
     f"{ONE}.resources.limits.memory", "a quantity"),
    ("request above limit", "TrainJob", put("spec.trainer.resourcesPerNode.requests.cpu", "9"),
     "spec.trainer.resourcesPerNode.requests.cpu", "at most its limit 8"),
    ("half a GPU", "JobSet", put(f"{ONE}.resources.limits", {"nvidia.com/gpu": "500m"}),
     f"{ONE}.resources.limits.nvidia.com/gpu", "a whole number"),
    ("bad size of shared memory", "RayJob", put(f"{HEAD}.template.spec.volumes.1.emptyDir.sizeLimit", "lots"),
     f"{HEAD}.template.spec.volumes.1.emptyDir.sizeLimit", "a quantity"),
    ("bad name", "TrainJob", put("metadata.name", "My_Job"), "metadata.name", "try my-job"),
    ("a name too long for its pods", "JobSet", put("metadata.name", "a" * 60), "metadata.name", "shorter"),
    ("a name too long for Ray", "RayJob", put("metadata.name", "a" * 48), "metadata.name",
     "at most 47 characters"),
    ("a name that no service has", "TrainJob", put("metadata.name", "3d"), "metadata.name", "try run-3d"),
    ("another namespace", "JobSet", put("metadata.namespace", "other"), "metadata.namespace",
     "of the others"),
    ("bad label", "JobSet", put("metadata.labels.team", "a b"), "metadata.labels.team", "a label's value"),
    ("two containers of one name", "JobSet", twice(f"{POD}.containers"), f"{POD}.containers.1.name",
     "a name that containers.0 has not got"),
    ("two variables of one name", "JobSet", twice(f"{ONE}.env"), f"{ONE}.env.2.name", "no other variable"),
    ("two volumes of one name", "JobSet", twice(f"{POD}.volumes"), f"{POD}.volumes.4.name",
     "no other volume"),
    ("a mount without its volume", "JobSet", put(f"{ONE}.volumeMounts.1.name", "shm"),
     f"{ONE}.volumeMounts.1.name", "one of the pod's volumes (config, shared-memory, claim-0, claim-1)"),
    ("the same in a patch", "TrainJob", put(f"{PATCH}.containers.0.volumeMounts.0.name", "conf"),
     f"{PATCH}.containers.0.volumeMounts.0.name", "one of the pod's volumes"),
    ("two mounts at one path", "JobSet", put(f"{ONE}.volumeMounts.1.mountPath", "/runs"),
     f"{ONE}.volumeMounts.2.mountPath", "nothing else is mounted"),
    ("no claim named", "JobSet", put(f"{POD}.volumes.2.persistentVolumeClaim.claimName", ""),
     f"{POD}.volumes.2.persistentVolumeClaim.claimName", "of a PersistentVolumeClaim; it is missing"),
    ("a volume of two sources", "JobSet", put(f"{POD}.volumes.2.emptyDir", {}), f"{POD}.volumes.2",
     "one source"),
    ("what the runtime sets itself", "TrainJob", put("spec.trainer.env.0.name", "PET_NODE_RANK"),
     "spec.trainer.env.0.name", "the runtime sets it"),
    ("variables in a patch", "TrainJob", put(f"{PATCH}.containers.0.env", [{"name": "A", "value": "b"}]),
     f"{PATCH}.containers.0.env", "spec.trainer.env"),
    ("no nodes", "TrainJob", put("spec.trainer.numNodes", 0), "spec.trainer.numNodes", "1 or more"),
    ("policy of another container", "Job",
     put("spec.podFailurePolicy.rules.1.onExitCodes.containerName", "main"),
     "spec.podFailurePolicy.rules.1.onExitCodes.containerName", "a container of the pod (node)"),
    ("fewer workers than at least", "RayJob", put("spec.rayClusterSpec.workerGroupSpecs.0.replicas", 1),
     "spec.rayClusterSpec.workerGroupSpecs.0.replicas", "from minReplicas 2"),
    ("kept, but not taken down", "RayJob",
     both(put("spec.shutdownAfterJobFinishes", False), put("spec.ttlSecondsAfterFinished", 9)),
     "spec.ttlSecondsAfterFinished", "shutdownAfterJobFinishes"),
    ("no job to run", "RayJob", drop("spec.entrypoint"), "spec.entrypoint", "the command"),
    ("a toleration of nothing", "JobSet", put(f"{POD}.tolerations", [{"operator": "Equal", "value": "a"}]),
     f"{POD}.tolerations.0.key", "a taint's key"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change", "path", "said"), [row[1:] for row in SEEDED], ids=[r[0] for r in SEEDED]
)
def test_a_seeded_fault_is_told_by_its_path(
    kind: str, change: Callable[[Plain], None], path: str, said: str, plain: dict[str, list[Plain]]
) -> None:
    config_map, job = copy.deepcopy(plain[kind])
    config_map["data"] = dict.fromkeys(config_map["data"], "")
    change(job)
    text = yaml.safe_dump_all([config_map, job], sort_keys=False)
    with pytest.raises(ConfigError) as found:
        check_text(text, "m.yaml")
    told = {problem.key.partition(".")[2] or problem.key: problem for problem in found.value.problems}
    assert path in told, found.value
    assert said in str(told[path])
    assert len(told) == 1, f"one fault is told once: {found.value}"
    assert re.match(r"m\.yaml(:\d+)?: ", str(told[path]))
    assert "hf_abc" not in str(found.value)


@pytest.mark.parametrize(
    ("kind", "left", "missing"),
    [
        ("TrainJob", {}, "config.yaml"),
        ("JobSet", {"conf.yaml": ""}, "config.yaml"),
        ("RayJob", {}, "config.yaml"),
        ("Job", {"element-0.yaml": "", "element-2.yaml": ""}, "element-1.yaml"),
    ],
)
def test_a_config_map_without_what_the_command_reads_is_a_fault(
    kind: str, left: Plain, missing: str, plain: dict[str, list[Plain]]
) -> None:
    config_map, job = copy.deepcopy(plain[kind])
    config_map["data"] = left
    with pytest.raises(ConfigError) as found:
        check_text(yaml.safe_dump_all([config_map, job]), "m.yaml")
    (problem,) = found.value.problems
    assert problem.key == "ConfigMap.data"
    assert str(problem).endswith(f"'({', '.join(left) or 'empty'})': need what is read from it: {missing}")


def test_what_is_not_read_from_a_config_map_is_not_looked_for(plain: dict[str, list[Plain]]) -> None:
    config_map, job = copy.deepcopy(plain["JobSet"])
    words = at(job, f"{ONE}.command")
    words += ["/etc/foreframe/", "/etc/foreframe/more/a.txt", "/etc/foreframe/$(HOSTNAME).yaml", "/etc/hosts"]
    check_text(yaml.safe_dump_all([config_map, job]), "m.yaml")


@pytest.mark.parametrize(
    "image",
    ["python", "team/foreframe:1", "Registry.Example.org:5000/a/b:1.0", f"a/b@sha256:{'0' * 64}",
     f"a/b:1@sha512:{'0' * 128}", "localhost:5000/a"],
)  # fmt: skip
def test_images_that_engines_take_are_no_faults(image: str, plain: dict[str, list[Plain]]) -> None:
    config_map, job = copy.deepcopy(plain["JobSet"])
    put(f"{ONE}.image", image)(job)
    check_text(yaml.safe_dump_all([config_map, job]), "m.yaml")


def test_whole_manifests_have_no_faults(whole: dict[str, str]) -> None:
    for kind, text in whole.items():
        assert [each.data["kind"] for each in check_text(text, "m.yaml")] == ["ConfigMap", kind]


def test_every_fault_is_told_at_once_with_its_line(whole: dict[str, str]) -> None:
    lines = whole["JobSet"].splitlines(keepends=True)
    first = next(n for n, line in enumerate(lines) if "parallelism:" in line)
    lines[first] = lines[first].replace("parallelism", "paralelism")
    second = next(n for n, line in enumerate(lines) if "claimName: runs" in line)
    lines[second] = lines[second].replace("runs", "'Runs'")
    with pytest.raises(ConfigError) as found:
        check_text("".join(lines), "m.yaml")
    assert [problem.file for problem in found.value.problems] == [
        f"m.yaml:{first + 1}",
        f"m.yaml:{second + 1}",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("---\n---\n", "it is empty"),
        ("a: [1", "valid YAML"),
        ("- 1\n", "`key: value` lines"),
        ("kind: Job\nkind: Job\n", "each key once"),
        ("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData: {k: v}\n", "no Secret's values"),
        (
            "kind: Deployment\napiVersion: apps/v1\nmetadata: {name: a}\n",
            "one of those that are checked here",
        ),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: 3}\n", "put it in quotes"),
        ("apiVersion: v1\nkind: ConfigMap\ndata: {k: v}\n", "a name"),
    ],
)
def test_what_is_no_manifest_is_a_sentence(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_text(text, "m.yaml")


def test_a_config_map_of_more_than_a_mebibyte_is_refused(plain: dict[str, list[Plain]]) -> None:
    config_map = copy.deepcopy(plain["Job"][0])
    assert list(document_problems(config_map)) == []
    config_map["data"]["more"] = "/" * (1 << 20)
    (problem,) = document_problems(config_map)
    assert (problem.key, "at most 1048576 bytes" in str(problem)) == ("ConfigMap.data", True)


def test_the_command_checks_a_file_that_was_edited(
    whole: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(whole["TrainJob"])
    app(["config", "check-manifest", str(file)], standalone_mode=False)
    assert capsys.readouterr().out.startswith(
        "no faults found without a cluster: ConfigMap one-001, TrainJob"
    )
    file.write_text(whole["TrainJob"].replace("numNodes", "nodes"))
    with pytest.raises(ConfigError, match=r"spec\.trainer\.nodes"):
        app(["config", "check-manifest", str(file)], standalone_mode=False)
    with pytest.raises(UsageError, match="cannot be read"):
        check_manifest(tmp_path / "away.yaml")
