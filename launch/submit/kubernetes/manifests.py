"""What is handed to a cluster: a ConfigMap with the frozen config, and the job that reads it, as plain data.

Sources: the custom resources of Kubeflow Trainer 2.3 (trainer.kubeflow.org/v1alpha1), JobSet 0.12
(jobset.x-k8s.io/v1alpha2) and KubeRay 1.7 (ray.io/v1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from launch.submit.base import Job
from launch.submit.kubernetes import names
from launch.submit.kubernetes.pods import (
    CONFIG_FOLDER,
    Plain,
    container,
    environment,
    failure_policy,
    mounts,
    resources,
    scheduling,
    template,
    volumes,
    without_empty,
)
from launch.submit.kubernetes.settings import KubernetesSettings

NODE = "node"  # the replicated job and its container, as Trainer's runtimes name them
PORT = 29400
LONGEST_NAME = (
    40  # leaves room for what controllers hang on, such as -node-0-1023-x7k2p; a RayJob's limit is 47
)
TRAINER, JOBSET, RAY = "trainer.kubeflow.org/v1alpha1", "jobset.x-k8s.io/v1alpha2", "ray.io/v1"
INDEX = "$(JOB_COMPLETION_INDEX)"  # Kubernetes puts in the value, no shell does


def name_of(job: Job) -> str:
    """A submission's name in the cluster: the run's, and the submission's number."""
    number = job.folder.name
    name = names.as_label(job.name, LONGEST_NAME - len(number) - 1)
    if not name[0].isalpha():  # names of services begin with a letter
        name = names.as_label(f"run-{name}", LONGEST_NAME - len(number) - 1)
    return f"{name}-{number}"


def labels_of(job: Job, place: KubernetesSettings) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "foreframe",
        "app.kubernetes.io/instance": name_of(job),
        "app.kubernetes.io/component": job.kind,
        "app.kubernetes.io/managed-by": "foreframe",
        **place.labels,
    }


def documents(
    job: Job, place: KubernetesSettings, configs: Sequence[str], pythonpath: str | None = None
) -> list[Plain]:
    """The ConfigMap and the job. configs: YAML as pods read it, one, or one an element of a sweep.

    pythonpath: where pods find the submission's own code; None where the image's runs.
    """
    env = {"PYTHONUNBUFFERED": "1", **({"PYTHONPATH": pythonpath} if pythonpath else {})}
    if job.elements:
        rendered = sweep_job(job, place, env)
    elif job.kind == "shard":
        rendered = ray_job(job, place, env)
    elif place.form == "trainjob":
        rendered = train_job(job, place, env)
    else:
        rendered = job_set(job, place, env)
    return [config_map(job, place, configs), rendered]


def config_file(job: Job) -> str:
    """Where pods find their config; the element of a sweep is that of the pod's index."""
    return f"{CONFIG_FOLDER}/element-{INDEX}.yaml" if job.elements else f"{CONFIG_FOLDER}/config.yaml"


def config_map(job: Job, place: KubernetesSettings, configs: Sequence[str]) -> Plain:
    files = {f"element-{number}.yaml": text for number, text in enumerate(configs)} if job.elements else {}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job, place, labels_of(job, place)),
        "immutable": True,
        "data": files or {"config.yaml": configs[0]},
    }


def train_job(job: Job, place: KubernetesSettings, env: Mapping[str, str]) -> Plain:
    """A TrainJob: the runtime gives its container PET_*, torchrun's node, nodes, ranks and address."""
    pod = {
        "volumes": volumes(place, name_of(job)),
        "containers": [
            {
                "name": NODE,
                "volumeMounts": mounts(place),
                "securityContext": {"allowPrivilegeEscalation": False},
            }
        ],
        **scheduling(place),
    }
    patch = {"metadata": {"labels": labels_of(job, place)}, "spec": pod}
    of_node = {"name": NODE, "template": {"spec": {"template": patch}}}
    spec = {
        "runtimeRef": {
            "apiGroup": "trainer.kubeflow.org",
            "kind": place.runtime_kind,
            "name": place.runtime,
        },
        "trainer": {
            "image": place.image,
            "command": _trainer_command(job, place),
            "numNodes": place.nodes,
            "numProcPerNode": place.ranks,
            "resourcesPerNode": _node_resources(place),
            "env": environment(place, env),
        },
        "runtimePatches": [
            {
                "manager": "foreframe.io/submit",
                "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [of_node]}}},
            }
        ],
        "activeDeadlineSeconds": place.deadline_s,
    }
    return _job(TRAINER, "TrainJob", job, place, spec)


def _trainer_command(job: Job, place: KubernetesSettings) -> list[str]:
    if place.launcher == "supervise":
        words = job.arguments(
            place,
            node_rank="$(PET_NODE_RANK)",
            rendezvous="$(PET_MASTER_ADDR):$(PET_MASTER_PORT)",
            config=config_file(job),
        )
        return [_python(place), "-m", "launch", *words]
    runner = [place.python, "-m", "torch.distributed.run"] if place.python else ["torchrun"]
    return [*runner, "-m", "launch", "train", config_file(job), *job.options]


def job_set(job: Job, place: KubernetesSettings, env: Mapping[str, str]) -> Plain:
    """A JobSet of one indexed Job, a pod a node; they meet at the first one's name, which a service resolves.

    A pod that fails ends the job, and all are made anew, `restarts` times; not where that cannot help.
    """
    name = name_of(job)
    words = job.arguments(
        place, node_rank=INDEX, rendezvous=f"{name}-{NODE}-0-0.{name}:{PORT}", config=config_file(job)
    )
    one = container(place, NODE, [_python(place), "-m", "launch", *words], _node_resources(place), env)
    of_node = {
        "completionMode": "Indexed",
        "completions": place.nodes,
        "parallelism": place.nodes,
        "backoffLimit": 0,
        "activeDeadlineSeconds": place.deadline_s,
        "podFailurePolicy": failure_policy("FailJob", NODE),
        "template": template(place, one, labels_of(job, place), name),
    }
    spec = {
        "network": {"enableDNSHostnames": True, "subdomain": name, "publishNotReadyAddresses": True},
        "failurePolicy": {
            "maxRestarts": place.restarts,
            "rules": [
                {
                    "name": "would-fail-again",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                }
            ],
        },
        "replicatedJobs": [{"name": NODE, "replicas": 1, "template": {"spec": without_empty(of_node)}}],
        "ttlSecondsAfterFinished": place.keep_s,
    }
    return _job(JOBSET, "JobSet", job, place, spec)


def sweep_job(job: Job, place: KubernetesSettings, env: Mapping[str, str]) -> Plain:
    """An indexed Job, a pod an element; one that fails leaves the others alone."""
    words = job.arguments(place, config=config_file(job))
    one = container(place, NODE, [_python(place), "-m", "launch", *words], _node_resources(place), env)
    spec = {
        "completionMode": "Indexed",
        "completions": job.elements,
        "parallelism": min(place.parallel or job.elements, job.elements),
        "backoffLimitPerIndex": place.restarts,
        "activeDeadlineSeconds": place.deadline_s,
        "podFailurePolicy": failure_policy("FailIndex", NODE),
        "ttlSecondsAfterFinished": place.keep_s,
        "template": template(place, one, labels_of(job, place), name_of(job)),
    }
    return _job("batch/v1", "Job", job, place, spec)


def ray_job(job: Job, place: KubernetesSettings, env: Mapping[str, str]) -> Plain:
    """A RayJob: KubeRay makes a Ray cluster of `nodes` pods, the first of which drives, and takes it down."""

    def group(name: str) -> Plain:
        one = container(place, name, None, _node_resources(place), env)
        pod = template(place, one, labels_of(job, place), name_of(job), restarts=None)
        start = {"dashboard-host": "0.0.0.0"} if name == "ray-head" else {}
        return {"rayStartParams": start, "template": pod}

    others = place.nodes - 1
    workers = {
        "groupName": "workers", "replicas": others, "minReplicas": others, "maxReplicas": others,
        **group("ray-worker"),
    }  # fmt: skip
    cluster = {
        "rayVersion": place.ray_version or _ray_version(),
        "headGroupSpec": group("ray-head"),
        "workerGroupSpecs": [workers] if others else None,
    }
    spec = {
        "entrypoint": f"{_python(place)} -m launch shard {config_file(job)} --ray-address auto",
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": place.keep_s,
        "activeDeadlineSeconds": place.deadline_s,
        "backoffLimit": place.restarts,
        "rayClusterSpec": without_empty(cluster),
    }
    return _job(RAY, "RayJob", job, place, spec)


def _job(api: str, kind: str, job: Job, place: KubernetesSettings, spec: Plain) -> Plain:
    kueue = without_empty(
        {
            "kueue.x-k8s.io/queue-name": place.queue,
            "kueue.x-k8s.io/priority-class": place.queue_priority,
        }
    )
    metadata = _metadata(job, place, {**labels_of(job, place), **kueue})
    if place.annotations:
        metadata["annotations"] = dict(place.annotations)
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": without_empty(spec)}


def _metadata(job: Job, place: KubernetesSettings, labels: Mapping[str, str]) -> Plain:
    return {"name": name_of(job), "namespace": place.namespace, "labels": dict(labels)}


def _node_resources(place: KubernetesSettings) -> Plain:
    return resources(place.cpus, place.memory, place.gpu_resource, place.gpus_per_node)


def _python(place: KubernetesSettings) -> str:
    return place.python or "python"


def _ray_version() -> str | None:
    """Of this machine; the image is made of the same constraints."""
    try:
        return version("ray")
    except PackageNotFoundError:
        return None
