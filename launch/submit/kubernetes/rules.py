"""What jobs of each kind are asked beyond the types of their fields; most of it a controller would refuse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipeline.errors import Problem
from launch.submit.kubernetes import names
from launch.submit.kubernetes.mounted import unread_problems
from launch.submit.kubernetes.pod_rules import (
    env_problems,
    fields,
    image_problems,
    items,
    label_problems,
    pod_problems,
    reference_problems,
    resource_problems,
    text,
)
from launch.submit.kubernetes.settings import TRAINER_SETS
from pretrain.tracking.base import without_secrets

LARGEST_CONFIG_MAP = 1 << 20
SUFFIX = 6  # -x7k2p, which a Job hangs on the names of its pods
LONGEST_RAY_JOB = 47
HAVE_A_SPEC = ("Pod", "Job", "CronJob", "JobSet", "TrainJob", "RayJob")
NAMED_BY_LETTER = ("TrainJob", "JobSet", "RayJob")  # services are named after them
PLAIN_RUNTIME = "torch-distributed"  # brings no volumes of its own


def document_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Of one object of a manifest, whose shape is looked at elsewhere."""
    kind = str(document.get("kind"))
    yield from _metadata_problems(kind, document.get("metadata"))
    yield from _credential_problems(kind, document)
    if kind in HAVE_A_SPEC and document.get("spec") is None:
        yield Problem(f"{kind}.spec", "what is to run; it is missing")
        return
    yield from _inner_label_problems(f"{kind}.spec", document.get("spec"))
    spec = fields(document, "spec")
    name = text(document.get("metadata"), "name") or ""
    if kind == "ConfigMap":
        yield from _config_map_problems(document)
    elif kind == "Secret" and (document.get("data") or document.get("stringData")):
        yield Problem(
            "Secret.data", "no Secret's values in a manifest: make it with kubectl, refer to it", "***"
        )
    elif kind == "Job":
        yield from _job_problems("Job.spec", spec, name)
    elif kind == "JobSet":
        yield from _job_set_problems(spec, name)
    elif kind == "TrainJob":
        yield from _train_job_problems(spec)
    elif kind == "RayJob":
        yield from _ray_job_problems(spec, name)
    elif kind == "Pod":
        yield from pod_problems("Pod.spec", spec)


def manifest_problems(documents: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Problem]]:
    """Across the objects of one manifest, each problem with the number of its object."""
    yield from unread_problems(documents)
    seen: dict[tuple[str, str], int] = {}
    spaces = [text(each.get("metadata"), "namespace") for each in documents]
    maps = {text(each.get("metadata"), "name"): each for each in documents if each.get("kind") == "ConfigMap"}
    for number, document in enumerate(documents):
        kind, name = str(document.get("kind")), text(document.get("metadata"), "name") or ""
        if (kind, name) in seen:
            yield number, Problem(f"{kind}.metadata.name", f"a name that no other {kind} here has", name)
        seen[kind, name] = number
        if spaces[number] != spaces[0]:
            need = f"the namespace of the others, {spaces[0]!r}"
            yield number, Problem(f"{kind}.metadata.namespace", need, spaces[number])
        for path, spec in pod_specs(document.get("spec"), f"{kind}.spec"):
            for place, volume in items(spec, "volumes"):
                source = volume.get("configMap")
                found = maps.get(text(source, "name"))
                keys = found.get("data") if found is not None else None
                for each, item in items(source, "items"):
                    if isinstance(keys, dict) and text(item, "key") not in (None, *keys):
                        need = f"a key of that ConfigMap: {', '.join(map(str, keys))}"
                        at = f"{path}.volumes.{place}.configMap.items.{each}.key"
                        yield number, Problem(at, need, item.get("key"))


def pod_specs(value: object, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every pod's spec below `value`, however deep: what has a list of containers."""
    if isinstance(value, dict):
        if isinstance(value.get("containers"), list):
            yield path, value
            return
        for key, each in value.items():
            yield from pod_specs(each, f"{path}.{key}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from pod_specs(each, f"{path}.{number}")


def _metadata_problems(kind: str, metadata: object) -> Iterator[Problem]:
    name = text(metadata, "name")
    if name is None:
        yield Problem(f"{kind}.metadata.name", "a name")
    elif not names.is_subdomain(name):
        yield Problem(f"{kind}.metadata.name", names.NEED_SUBDOMAIN, name, (names.as_label(name),))
    elif kind not in ("ConfigMap", "Secret") and not names.is_label(name):
        yield Problem(f"{kind}.metadata.name", names.NEED_LABEL, name, (names.as_label(name),))
    elif kind in NAMED_BY_LETTER and not name[0].isalpha():
        yield Problem(
            f"{kind}.metadata.name", "a letter at its begin, as services have", name, (f"run-{name}",)
        )
    space = text(metadata, "namespace")
    if space is not None and not names.is_label(space):
        yield Problem(f"{kind}.metadata.namespace", names.NEED_LABEL, space)
    if isinstance(metadata, dict):
        yield from label_problems(f"{kind}.metadata.labels", metadata.get("labels"))
        annotations = metadata.get("annotations")
        yield from label_problems(f"{kind}.metadata.annotations", annotations, are_values=False)


def _inner_label_problems(path: str, value: object) -> Iterator[Problem]:
    """Of the metadata of everything that is made of templates, those in patches of a runtime included."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key == "metadata" and isinstance(each, dict):
                yield from label_problems(f"{path}.metadata.labels", each.get("labels"))
                annotations = each.get("annotations")
                yield from label_problems(f"{path}.metadata.annotations", annotations, are_values=False)
            else:
                yield from _inner_label_problems(f"{path}.{key}", each)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _inner_label_problems(f"{path}.{number}", each)


def _credential_problems(path: str, value: object) -> Iterator[Problem]:
    """Text anywhere that has the form of a credential; it is not shown."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _credential_problems(f"{path}.{key}", each)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _credential_problems(f"{path}.{number}", each)
    elif isinstance(value, str) and without_secrets(value) != value:
        yield Problem(path, "no credentials: name a Secret by reference", "***")


def _config_map_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    data = document.get("data")
    size = sum(len(str(value).encode()) for value in data.values()) if isinstance(data, dict) else 0
    if size > LARGEST_CONFIG_MAP:
        need = f"at most {LARGEST_CONFIG_MAP} bytes in all; of a sweep fewer elements"
        yield Problem("ConfigMap.data", need, f"({size} bytes)")


def _job_problems(path: str, spec: Mapping[str, Any], name: str) -> Iterator[Problem]:
    """Of a batch Job. name: the job's, as its pods will carry it."""
    completions, parallelism = spec.get("completions"), spec.get("parallelism")
    mode = spec.get("completionMode")
    for key, least in (
        ("completions", 1),
        ("parallelism", 0),
        ("backoffLimit", 0),
        ("backoffLimitPerIndex", 0),
    ):
        if isinstance(spec.get(key), int) and spec[key] < least:
            yield Problem(f"{path}.{key}", f"{least} or more", spec[key])
    if mode == "Indexed" and completions is None:
        yield Problem(f"{path}.completions", "a number, with completionMode Indexed")
    for key in ("backoffLimitPerIndex", "maxFailedIndexes"):
        if spec.get(key) is not None and mode in (None, "NonIndexed"):
            yield Problem(f"{path}.{key}", "completionMode: Indexed beside it", spec[key])
    if isinstance(completions, int) and isinstance(parallelism, int) and parallelism > completions:
        yield Problem(f"{path}.parallelism", f"at most completions = {completions}", parallelism)
    template = fields(spec, "template")
    pod = fields(template, "spec")
    at = f"{path}.template.spec"
    restarts = pod.get("restartPolicy")
    if restarts not in ("Never", "OnFailure"):
        yield Problem(f"{at}.restartPolicy", "Never or OnFailure in a Job", restarts or "(none)")
    elif restarts != "Never" and spec.get("podFailurePolicy"):
        yield Problem(f"{at}.restartPolicy", "Never with podFailurePolicy", restarts)
    containers = [each for kind in ("containers", "initContainers") for _, each in items(pod, kind)]
    known = [each["name"] for each in containers if text(each, "name") is not None]
    for number, rule in items(spec.get("podFailurePolicy"), "rules"):
        here, codes = f"{path}.podFailurePolicy.rules.{number}", rule.get("onExitCodes")
        if known and text(codes, "containerName") not in (None, *known):
            need = f"a container of the pod ({', '.join(map(str, known))})"
            yield Problem(f"{here}.onExitCodes.containerName", need, text(codes, "containerName"))
        numbers = codes.get("values") if isinstance(codes, dict) and codes.get("operator") == "In" else None
        for place, each in enumerate(numbers if isinstance(numbers, list) else ()):
            if each == 0:
                need = "an exit code of a failure: 0 is none, with operator In"
                yield Problem(f"{here}.onExitCodes.values.{place}", need, each)
        if rule.get("action") == "FailIndex" and spec.get("backoffLimitPerIndex") is None:
            yield Problem(f"{here}.action", "backoffLimitPerIndex with FailIndex", "FailIndex")
    yield from pod_problems(at, pod)
    most = f"{name}-{completions - 1}" if isinstance(completions, int) and completions > 0 else name
    if len(most) + SUFFIX > names.LONGEST_LABEL:
        over = len(most) + SUFFIX - names.LONGEST_LABEL
        need = f"a name that is {over} characters shorter: its pods are {most}-…"
        yield Problem(f"{path.partition('.')[0]}.metadata.name", need, name)


def _job_set_problems(spec: Mapping[str, Any], name: str) -> Iterator[Problem]:
    jobs = items(spec, "replicatedJobs")
    if not jobs:
        yield Problem("JobSet.spec.replicatedJobs", "at least one")
    known: list[str | None] = []
    for number, job in jobs:
        at, own = f"JobSet.spec.replicatedJobs.{number}", text(job, "name")
        if own is not None and (not names.is_label(own) or own in known):
            yield Problem(f"{at}.name", f"{names.NEED_LABEL}, and of no other replicated job", own)
        known.append(own)
        replicas = job.get("replicas", 1)
        template = fields(job, "template")
        inner = fields(template, "spec")
        last = max(0, replicas - 1) if isinstance(replicas, int) else 0
        yield from _job_problems(f"{at}.template.spec", inner, f"{name}-{own}-{last}")
    policy = spec.get("failurePolicy")
    for number, rule in items(policy, "rules"):
        targets = rule.get("targetReplicatedJobs")
        for place, each in enumerate(targets if isinstance(targets, list) else ()):
            if each not in known:
                at = f"JobSet.spec.failurePolicy.rules.{number}.targetReplicatedJobs.{place}"
                yield Problem(at, f"a replicated job ({', '.join(map(str, known))})", each)
    subdomain = text(spec.get("network"), "subdomain")
    if subdomain is not None and not names.is_label(subdomain):
        yield Problem("JobSet.spec.network.subdomain", names.NEED_LABEL, subdomain)


def _train_job_problems(spec: Mapping[str, Any]) -> Iterator[Problem]:
    yield from reference_problems(
        "TrainJob.spec.runtimeRef", spec.get("runtimeRef"), "name", "a runtime's name"
    )
    trainer = fields(spec, "trainer")
    yield from image_problems("TrainJob.spec.trainer.image", trainer.get("image"))
    for key in ("numNodes", "numProcPerNode"):
        if isinstance(trainer.get(key), int) and trainer[key] < 1:
            yield Problem(f"TrainJob.spec.trainer.{key}", "1 or more", trainer[key])
    yield from env_problems("TrainJob.spec.trainer", trainer)
    for number, each in items(trainer, "env"):
        if each.get("name") in TRAINER_SETS:
            need = "no such variable: the runtime sets it"
            yield Problem(f"TrainJob.spec.trainer.env.{number}.name", need, each["name"])
    yield from resource_problems("TrainJob.spec.trainer.resourcesPerNode", trainer.get("resourcesPerNode"))
    managers = [text(patch, "manager") for _, patch in items(spec, "runtimePatches")]
    for number, manager in enumerate(managers):
        if manager in managers[:number]:
            at = f"TrainJob.spec.runtimePatches.{number}.manager"
            yield Problem(at, "one patch a manager", manager)
    is_plain = text(spec.get("runtimeRef"), "name") == PLAIN_RUNTIME
    for path, pod in pod_specs(spec.get("runtimePatches"), "TrainJob.spec.runtimePatches"):
        yield from pod_problems(path, pod, is_patch=True, has_all_volumes=is_plain)
        for number, each in items(pod, "containers"):
            if each.get("env"):
                yield Problem(
                    f"{path}.containers.{number}.env", "spec.trainer.env: a patch cannot set it there"
                )


def _ray_job_problems(spec: Mapping[str, Any], name: str) -> Iterator[Problem]:
    if len(name) > LONGEST_RAY_JOB:
        yield Problem("RayJob.metadata.name", f"at most {LONGEST_RAY_JOB} characters", name)
    if not spec.get("entrypoint") and spec.get("submissionMode") != "InteractiveMode":
        yield Problem("RayJob.spec.entrypoint", "the command that the job is")
    if spec.get("ttlSecondsAfterFinished") is not None and not spec.get("shutdownAfterJobFinishes"):
        need = "shutdownAfterJobFinishes: true beside it"
        yield Problem("RayJob.spec.ttlSecondsAfterFinished", need, spec["ttlSecondsAfterFinished"])
    if not spec.get("rayClusterSpec") and not spec.get("clusterSelector"):
        yield Problem("RayJob.spec.rayClusterSpec", "a cluster, or clusterSelector")
    cluster = spec.get("rayClusterSpec")
    known: list[str | None] = []
    for number, group in items(cluster, "workerGroupSpecs"):
        at, own = f"RayJob.spec.rayClusterSpec.workerGroupSpecs.{number}", text(group, "groupName")
        if own is not None and (own in known or not names.is_label(own)):
            yield Problem(f"{at}.groupName", f"{names.NEED_LABEL}, and of no other group", own)
        known.append(own)
        least, most, now = (group.get(key) for key in ("minReplicas", "maxReplicas", "replicas"))
        if isinstance(least, int) and isinstance(most, int):
            if least > most:
                yield Problem(f"{at}.minReplicas", f"at most maxReplicas = {most}", least)
            elif isinstance(now, int) and not least <= now <= most:
                yield Problem(f"{at}.replicas", f"from minReplicas {least} to maxReplicas {most}", now)
    for path, pod in pod_specs(spec, "RayJob.spec"):
        yield from pod_problems(path, pod)
