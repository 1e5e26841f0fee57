"""Settings of a Kubernetes cluster as a place, and what is refused of them without a cluster."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from data_pipeline.config import DAY_S, Section
from launch.submit.base import VARIABLE, Place
from launch.submit.kubernetes import names

# What Trainer's torch plugin puts into the container itself, and refuses from others.
TRAINER_SETS = ("PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT")
TAKEN_MOUNTS = ("/etc/foreframe", "/dev/shm")
Problem = tuple[str, object, str, tuple[object, ...]]


class ClaimVolume(Section):
    """A persistent volume claim that all pods of a job see."""

    claim: str = Field(description="Name of a PersistentVolumeClaim; for several nodes ReadWriteMany.")
    mount: str = Field(pattern=r"^/[^:\s]*[^/:\s]$", description="Where pods see it, such as /runs.")
    here: str | None = Field(
        None,
        min_length=1,
        description="The same folder where `foreframe submit` is typed: addresses of the config below it are "
        "rewritten; null: the config has the pods' addresses.",
    )
    read_only: bool = Field(False, description="Pods cannot write there.")


class Toleration(Section):
    """A taint of nodes on which pods may run all the same."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class KubernetesSettings(Place):
    """A namespace of a cluster with Kubeflow Trainer, JobSet or KubeRay."""

    shares_files: ClassVar[bool] = False

    kind: Literal["kubernetes"] = "kubernetes"
    form: Literal["trainjob", "jobset"] = Field(
        "trainjob",
        description="Of training: a TrainJob (Kubeflow Trainer 2.3 or newer) or a JobSet. Sharding is a "
        "RayJob, a sweep an indexed Job.",
    )
    launcher: Literal["torchrun", "supervise"] = Field(
        "torchrun",
        description="Of a TrainJob: torchrun, or `foreframe supervise`, which starts again inside the pods "
        "and gives a last save its time. A JobSet always has supervise.",
    )
    context: str | None = Field(None, min_length=1, description="kubectl's context; null: the current one.")
    namespace: str = Field("default", description="Where everything is made.")
    image: str | None = Field(None, description="Image with foreframe in it, with a tag or a digest.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    code: Literal["image", "volume"] = Field(
        "image",
        description="Which code runs: the image's, or the submission's own copy where a volume holds it.",
    )
    runtime: str = Field("torch-distributed", description="Runtime of a TrainJob.")
    runtime_kind: Literal["ClusterTrainingRuntime", "TrainingRuntime"] = "ClusterTrainingRuntime"
    ray_version: str | None = Field(None, description="Of the image's Ray; null: that of this machine.")
    cpus: str = Field("8", description="CPU cores of a pod.")
    memory: str = Field("32Gi", description="Memory of a pod, its shared memory included.")
    gpu_resource: str = Field("nvidia.com/gpu", description="What the cluster calls a GPU.")
    shared_memory: str = Field(
        "8Gi", description="Size of /dev/shm, through which loaders, NCCL and Ray pass things on."
    )
    volumes: tuple[ClaimVolume, ...] = Field(
        (), description="Claims with runs and data: {claim: runs, mount: /runs, here: runs}."
    )
    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels that nodes must have.")
    tolerations: tuple[Toleration, ...] = ()
    service_account: str | None = Field(None, description="Such as one that may read a bucket.")
    image_pull_secrets: tuple[str, ...] = ()
    secrets: tuple[str, ...] = Field(
        (), description="Secrets whose keys become environment variables, such as AWS_ACCESS_KEY_ID."
    )
    secret_env: dict[str, str] = Field(
        default_factory=dict, description="Single variables by reference: {AWS_ACCESS_KEY_ID: secret/key}."
    )
    node_credentials: bool = Field(False, description="The nodes are let into s3:// without a secret.")
    run_as: int | None = Field(
        1000, ge=1, lt=1 << 31, description="User and group, as in the Dockerfile; null: as the image says."
    )
    queue: str | None = Field(None, description="Local queue of Kueue.")
    queue_priority: str | None = Field(None, description="WorkloadPriorityClass of Kueue.")
    priority_class: str | None = Field(None, description="PriorityClass of the pods.")
    labels: dict[str, str] = Field(default_factory=dict, description="More labels, on all that is made.")
    annotations: dict[str, str] = Field(default_factory=dict, description="More annotations of the job.")
    restarts: int = Field(
        3, ge=0, le=1000, description="Times that a job is made anew; of a TrainJob its runtime decides."
    )
    grace_s: int = Field(720, ge=1, le=int(DAY_S), description="A pod's time for its last save, in seconds.")
    deadline_s: int | None = Field(None, ge=1, description="Longest that a job may run; null: no limit.")
    keep_s: int | None = Field(
        None, ge=0, description="How long a job that has ended is kept, with its log; null: until deleted."
    )
    parallel: int | None = Field(None, ge=1, description="Elements of a sweep at a time; null: all.")

    @field_validator("cpus", "memory", "shared_memory", mode="before")
    @classmethod
    def _numbers_are_quantities(cls, value: object) -> object:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("labels", "annotations", "node_selector", mode="before")
    @classmethod
    def _label_values_are_text(cls, value: object) -> object:
        """Numbers and yes or no are text too."""
        if not isinstance(value, dict):
            return value
        for key, each in value.items():
            if not isinstance(each, str | int | float):
                found = "nothing" if each is None else "several values"
                raise ValueError(f"must be text for each key: {key} has {found}")
        return {
            key: str(each).lower() if isinstance(each, bool) else str(each) for key, each in value.items()
        }

    def problems(self) -> list[Problem]:
        """Rules across settings that fail: (key, found, needed, values to try)."""
        found = [*self._name_problems(), *self._secret_problems(), *self._volume_problems()]
        sizes = {key: names.amount(getattr(self, key)) for key in ("cpus", "memory", "shared_memory")}
        for key, size in sizes.items():
            if size is None or size <= 0:
                found.append((key, getattr(self, key), f"{names.NEED_QUANTITY}, above 0", ()))
        memory, shared = sizes["memory"], sizes["shared_memory"]
        if memory is not None and shared is not None and 0 < memory <= shared:
            need = f"less than memory = {self.memory}, of which it is a part"
            found.append(("shared_memory", self.shared_memory, need, ()))
        if self.image is None:
            found.append(("image", None, names.NEED_IMAGE, ()))
        elif (image := names.IMAGE.fullmatch(self.image)) is None:
            found.append(("image", self.image, names.NEED_IMAGE, ()))
        elif image["digest"] is None and image["tag"] in (None, "latest"):
            need = "a tag other than latest, or a digest: else nobody can say later which code ran"
            found.append(("image", self.image, need, ()))
        found += [
            (f"env.{key}", self.env.get(key), "no such variable: Trainer sets it", ())
            for key in TRAINER_SETS
            if key in self.env or key in self.secret_env
        ]
        for number, toleration in enumerate(self.tolerations):
            key = f"tolerations.{number}"
            if toleration.operator == "Exists" and toleration.value is not None:
                found.append((f"{key}.value", toleration.value, "null with operator Exists", (None,)))
            if toleration.operator == "Equal" and toleration.key is None:
                found.append((f"{key}.key", None, "a taint's key with operator Equal", ()))
        return found

    def _name_problems(self) -> list[Problem]:
        found: list[Problem] = []
        if not names.is_label(self.namespace):
            found.append(("namespace", self.namespace, names.NEED_LABEL, (names.as_label(self.namespace),)))
        if not names.is_label_key(self.gpu_resource) or "/" not in self.gpu_resource:
            found.append(("gpu_resource", self.gpu_resource, "a resource's name", ("nvidia.com/gpu",)))
        for key in ("runtime", "service_account", "queue", "queue_priority", "priority_class"):
            value = getattr(self, key)
            if value is not None and not names.is_subdomain(value):
                found.append((key, value, names.NEED_SUBDOMAIN, ()))
        for key in ("image_pull_secrets", "secrets"):
            for number, value in enumerate(getattr(self, key)):
                if not names.is_subdomain(value):
                    found.append((f"{key}.{number}", value, names.NEED_SUBDOMAIN, ()))
        for key in ("labels", "node_selector", "annotations"):
            for name, value in getattr(self, key).items():
                if not names.is_label_key(name):
                    found.append((f"{key}.{name}", None, names.NEED_LABEL_KEY, ()))
                elif key != "annotations" and not names.is_label_value(value):
                    found.append((f"{key}.{name}", value, names.NEED_LABEL_VALUE, ()))
        return found

    def _secret_problems(self) -> list[Problem]:
        found: list[Problem] = []
        for name, reference in self.secret_env.items():
            secret, slash, key = reference.partition("/")
            if not VARIABLE.fullmatch(name):
                found.append((f"secret_env.{name}", None, "the name of a variable", ()))
            if not slash or not key or not names.is_subdomain(secret):
                # What stands there may be the secret itself: it is not shown.
                need = "secret/key, the name of a Secret and one of its keys; never the value itself"
                found.append((f"secret_env.{name}", "***", need, ("s3-credentials/access-key",)))
            if name in self.env:
                found.append((f"secret_env.{name}", reference, "a name that env has not got too", ()))
        return found

    def _volume_problems(self) -> list[Problem]:
        found: list[Problem] = []
        mounts = [volume.mount for volume in self.volumes]
        for number, volume in enumerate(self.volumes):
            key = f"volumes.{number}"
            if not names.is_subdomain(volume.claim):
                found.append((f"{key}.claim", volume.claim, names.NEED_SUBDOMAIN, ()))
            if volume.mount in mounts[:number] or volume.mount in TAKEN_MOUNTS:
                found.append((f"{key}.mount", volume.mount, "a folder that nothing else is mounted at", ()))
        return found
