"""Pods of a job as plain data: one container, its volumes, and what it is given by reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.submit.kubernetes.settings import KubernetesSettings

Plain = dict[str, Any]
CONFIG_FOLDER = "/etc/foreframe"
SHARED_MEMORY = "/dev/shm"
CONFIG_VOLUME, SHARED_VOLUME = "config", "shared-memory"
# Exit codes that the same command would end with again: a setting, data, a checkpoint, a run that diverged.
FINAL_CODES = (2, 3, 4, 5)


def without_empty(plain: Mapping[str, Any]) -> Plain:
    """Without keys that hold nothing: null, or an empty list or mapping; `emptyDir: {}` counts."""
    return {
        key: value
        for key, value in plain.items()
        if value is not None and (value not in ({}, []) or key == "emptyDir")
    }


def resources(cpus: str, memory: str, gpu: str | None, gpus: int) -> Plain:
    """Requests and limits alike: what a pod is promised, and all that it gets."""
    amounts = {"cpu": cpus, "memory": memory} | ({gpu: str(gpus)} if gpu and gpus else {})
    return {"requests": amounts, "limits": dict(amounts)}


def environment(place: KubernetesSettings, more: Mapping[str, str]) -> list[Plain]:
    """Variables with their value, and those that come from a Secret, by reference alone.

    A value reaches a container as it stands in the place: `$$`, which Kubernetes makes `$`, and `$(NAME)`, in
    which it puts another variable, are text. Source: its API reference, EnvVar.value.
    """
    plain = [
        {"name": name, "value": value.replace("$", "$$")} for name, value in {**more, **place.env}.items()
    ]
    secret = [
        {
            "name": name,
            "valueFrom": {"secretKeyRef": {"name": of.partition("/")[0], "key": of.partition("/")[2]}},
        }
        for name, of in place.secret_env.items()
    ]
    return [*plain, *secret]


def env_from(place: KubernetesSettings) -> list[Plain]:
    return [{"secretRef": {"name": name}} for name in place.secrets]


def volumes(place: KubernetesSettings, config_map: str) -> list[Plain]:
    claims = [
        {
            "name": f"claim-{number}",
            "persistentVolumeClaim": without_empty(
                {"claimName": volume.claim, "readOnly": True if volume.read_only else None}
            ),
        }
        for number, volume in enumerate(place.volumes)
    ]
    return [
        {"name": CONFIG_VOLUME, "configMap": {"name": config_map}},
        {"name": SHARED_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": place.shared_memory}},
        *claims,
    ]


def mounts(place: KubernetesSettings) -> list[Plain]:
    claims = [
        without_empty(
            {
                "name": f"claim-{number}",
                "mountPath": volume.mount,
                "readOnly": True if volume.read_only else None,
            }
        )
        for number, volume in enumerate(place.volumes)
    ]
    return [
        {"name": CONFIG_VOLUME, "mountPath": CONFIG_FOLDER, "readOnly": True},
        {"name": SHARED_VOLUME, "mountPath": SHARED_MEMORY},
        *claims,
    ]


def container(
    place: KubernetesSettings,
    name: str,
    command: Sequence[str] | None,
    amounts: Plain,
    env: Mapping[str, str],
) -> Plain:
    return without_empty(
        {
            "name": name,
            "image": place.image,
            "imagePullPolicy": place.image_pull_policy,
            "command": list(command) if command else None,
            "env": environment(place, env),
            "envFrom": env_from(place),
            "resources": amounts,
            "volumeMounts": mounts(place),
            "securityContext": {"allowPrivilegeEscalation": False},
        }
    )


def scheduling(place: KubernetesSettings) -> Plain:
    """Where pods may run and as whom: fields that a pod and the patch of one have in common."""
    user = place.run_as
    context = {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "fsGroup": user}
    return without_empty(
        {
            "serviceAccountName": place.service_account,
            "imagePullSecrets": [{"name": name} for name in place.image_pull_secrets],
            "nodeSelector": dict(place.node_selector),
            "tolerations": [each.model_dump(exclude_none=True) for each in place.tolerations],
            "securityContext": context if user is not None else None,
            "terminationGracePeriodSeconds": place.grace_s,
        }
    )


def template(
    place: KubernetesSettings,
    one: Plain,
    labels: Mapping[str, str],
    config_map: str,
    *,
    restarts: str | None = "Never",
) -> Plain:
    """A pod template of one container. restarts: its policy; None where a controller sets it."""
    spec = {
        "containers": [one],
        "volumes": volumes(place, config_map),
        "restartPolicy": restarts,
        "priorityClassName": place.priority_class,
        "automountServiceAccountToken": None if place.service_account else False,
        **scheduling(place),
    }
    return {"metadata": {"labels": dict(labels)}, "spec": without_empty(spec)}


def failure_policy(action: str, name: str) -> Plain:
    """`action` where the same command would fail again; pods that the cluster took away do not count."""
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {
                "action": action,
                "onExitCodes": {"containerName": name, "operator": "In", "values": list(FINAL_CODES)},
            },
        ]
    }
