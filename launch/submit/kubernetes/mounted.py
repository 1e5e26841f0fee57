"""Whether the files that a job's command reads are in the ConfigMaps that its pods mount."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipeline.errors import Problem
from launch.submit.kubernetes.pod_rules import fields, items, text

INDEX = "$(JOB_COMPLETION_INDEX)"  # of an indexed Job: Kubernetes puts in the pod's number
COMMANDS = ("command", "args", "entrypoint")
MOST_NAMED = 4


def unread_problems(documents: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Problem]]:
    """Of each ConfigMap of a manifest, with its number there, that lacks a file which is read from it."""
    for number, document in enumerate(documents):
        name = text(document.get("metadata"), "name")
        if document.get("kind") != "ConfigMap" or name is None:
            continue
        keys = set(map(str, (*fields(document, "data"), *fields(document, "binaryData"))))
        missing = sorted({file for each in documents for file in _files_read(each, name)} - keys)
        if missing:
            more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
            need = f"what is read from it: {', '.join(missing[:MOST_NAMED])}{more}"
            yield (
                number,
                Problem("ConfigMap.data", need, f"({', '.join(sorted(keys)[:MOST_NAMED]) or 'empty'})"),
            )


def _files_read(document: Mapping[str, Any], config_map: str) -> Iterator[str]:
    """Names of files that commands of a job read where its pods mount the whole of a ConfigMap."""
    spec = document.get("spec")
    folders = {folder for pod in _below(spec, "volumes") for folder in _mounted_at(pod, config_map)}
    words = [word for holder in _holders(spec) for key in COMMANDS for word in _words(holder.get(key))]
    count = fields(document, "spec").get("completions")
    for folder in folders:
        for file in (word.removeprefix(f"{folder}/") for word in words if word.startswith(f"{folder}/")):
            if not file or "/" in file:  # the folder itself, or what is mounted below it
                continue
            if INDEX in file and isinstance(count, int):
                yield from (file.replace(INDEX, str(index)) for index in range(min(count, 100_000)))
            elif "$" not in file:
                yield file


def _mounted_at(pod: Mapping[str, Any], config_map: str) -> Iterator[str]:
    volumes = [
        text(volume, "name")
        for _, volume in items(pod, "volumes")
        if text(volume.get("configMap"), "name") == config_map and not volume["configMap"].get("items")
    ]
    for _, container in items(pod, "containers"):
        for _, mount in items(container, "volumeMounts"):
            where = text(mount, "mountPath")
            if where not in (None, "/") and text(mount, "name") in volumes and not mount.get("subPath"):
                yield where.rstrip("/")


def _holders(value: object) -> Iterator[Mapping[str, Any]]:
    """Every mapping below `value`, itself included."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from _holders(each)
    elif isinstance(value, list):
        for each in value:
            yield from _holders(each)


def _below(value: object, key: str) -> Iterator[Mapping[str, Any]]:
    return (holder for holder in _holders(value) if key in holder)


def _words(value: object) -> list[str]:
    """Of a command: a list of words, or one text for a shell."""
    if isinstance(value, str):
        return value.split()
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []
