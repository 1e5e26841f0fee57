"""Whether a manifest has the fields of its kind, and no others, each of its type.

The typed models are those of the package `kubeflow_trainer_api`: Kubernetes' core, JobSet, TrainJob; they
take unknown fields in silence, which is why they are walked here, field by field.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from data_pipeline.errors import Problem, UsageError
from launch.submit.kubernetes import names

INSTALL = "pip install 'foreframe[kubernetes]'"
TYPES: dict[type, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
PREFIX = re.compile(
    r"^(?:IoK8sApi[A-Z][a-z]+V\d|IoK8sApimachineryPkg(?:ApisMetaV1|Api|Util)|JobsetV1alpha2|TrainerV1alpha1)"
)
# Text that is one of a few words, which the models leave open.
WORDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("PodSpec", "restartPolicy"): ("Always", "OnFailure", "Never"),
    ("PodSpec", "dnsPolicy"): ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    ("Container", "imagePullPolicy"): ("Always", "IfNotPresent", "Never"),
    ("Toleration", "operator"): ("Exists", "Equal", "Lt", "Gt"),
    ("Toleration", "effect"): ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    ("EmptyDirVolumeSource", "medium"): ("", "Memory"),
    ("ContainerPort", "protocol"): ("TCP", "UDP", "SCTP"),
    ("JobSpec", "completionMode"): ("Indexed", "NonIndexed"),
    ("JobSpec", "podReplacementPolicy"): ("TerminatingOrFailed", "Failed"),
    ("PodFailurePolicyRule", "action"): ("FailJob", "FailIndex", "Ignore", "Count"),
    ("PodFailurePolicyOnExitCodesRequirement", "operator"): ("In", "NotIn"),
    ("FailurePolicy", "restartStrategy"): ("Recreate", "BlockingRecreate", "InPlaceRestart"),
    ("FailurePolicyRule", "action"): (
        "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob",
        "RestartJobAndIgnoreMaxRestarts",
    ),
    ("RuntimeRef", "kind"): ("ClusterTrainingRuntime", "TrainingRuntime"),
}  # fmt: skip


# Least and greatest of whole numbers by their field; of all others 32 bits.
MOST_32, MOST_64 = (1 << 31) - 1, (1 << 63) - 1
RANGES: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup", "supplementalGroups"), (0, MOST_32)),
    **dict.fromkeys(("ttlSecondsAfterFinished", "backoffLimit", "maxRestarts"), (0, MOST_32)),
    **dict.fromkeys(("terminationGracePeriodSeconds", "activeDeadlineSeconds"), (0, MOST_64)),
    **dict.fromkeys(("generation", "observedGeneration", "deletionGracePeriodSeconds"), (0, MOST_64)),
    **dict.fromkeys(("tolerationSeconds", "expirationSeconds"), (-MOST_64, MOST_64)),
}


@cache
def kinds() -> Mapping[tuple[str, str], type[BaseModel]]:
    """The model of an object by its apiVersion and kind. Raises: UsageError without its package."""
    try:
        from kubeflow_trainer_api import models
    except ModuleNotFoundError as error:
        raise UsageError(
            f"manifests are rendered and checked with the package kubeflow-trainer-api: {INSTALL}"
        ) from error
    from launch.submit.kubernetes.rayjob import RayJob

    core = ("ConfigMap", "Secret", "PersistentVolumeClaim", "Service", "ServiceAccount", "Namespace", "Pod")
    found: dict[tuple[str, str], type[BaseModel]] = {
        ("v1", name): getattr(models, f"IoK8sApiCoreV1{name}") for name in core
    }
    trainer = "trainer.kubeflow.org/v1alpha1"
    return found | {
        ("batch/v1", "Job"): models.IoK8sApiBatchV1Job,
        ("batch/v1", "CronJob"): models.IoK8sApiBatchV1CronJob,
        ("jobset.x-k8s.io/v1alpha2", "JobSet"): models.JobsetV1alpha2JobSet,
        (trainer, "TrainJob"): models.TrainerV1alpha1TrainJob,
        (trainer, "TrainingRuntime"): models.TrainerV1alpha1TrainingRuntime,
        (trainer, "ClusterTrainingRuntime"): models.TrainerV1alpha1ClusterTrainingRuntime,
        ("ray.io/v1", "RayJob"): RayJob,
    }  # fmt: skip


def model_of(document: Mapping[str, Any]) -> type[BaseModel] | list[Problem]:
    """The model of a document's kind, or what is wrong with how it names that."""
    api, kind = document.get("apiVersion"), document.get("kind")
    known = kinds()
    if isinstance(api, str) and isinstance(kind, str) and (api, kind) in known:
        return known[api, kind]
    apis = tuple(found for found, name in known if name == kind)
    if apis:
        return [Problem(f"{kind}.apiVersion", f"that of a {kind}", _shown(api) if api else None, apis)]
    listed = ", ".join(dict.fromkeys(name for _, name in known))
    near = tuple(difflib.get_close_matches(str(kind), [name for _, name in known], n=1, cutoff=0.6))
    return [
        Problem(
            "kind", f"one of those that are checked here: {listed}", _shown(kind) if kind else "(none)", near
        )
    ]


def shape_problems(model: type[BaseModel], value: object, path: str) -> Iterator[Problem]:
    """Fields below `path` that the model has not got, that are missing, or of another type."""
    if not isinstance(value, dict):
        yield Problem(path, f"fields of {plain_name(model)}", _shown(value))
        return
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for key, each in value.items():
        inner = f"{path}.{key}"
        if key not in fields:
            near = tuple(difflib.get_close_matches(str(key), fields, n=1, cutoff=0.6))
            yield Problem(inner, f"another name: {plain_name(model)} has no such field", None, near)
        elif each is None:
            if fields[key].is_required():
                yield Problem(inner, f"a value: {plain_name(model)} cannot be without it")
        else:
            yield from _value_problems(fields[key], model, key, each, inner)
    for key, field in fields.items():
        if field.is_required() and key not in value:
            yield Problem(f"{path}.{key}", f"a value: {plain_name(model)} cannot be without it")


def _value_problems(
    field: FieldInfo, model: type[BaseModel], key: str, value: object, path: str
) -> Iterator[Problem]:
    words = WORDS.get((plain_name(model), key))
    if words and isinstance(value, str) and value not in words:
        near = tuple(difflib.get_close_matches(value, words, n=1, cutoff=0.5))
        yield Problem(path, f"one of {', '.join(word or repr(word) for word in words)}", value, near)
        return
    annotation: Any = field.annotation
    if field.metadata:
        annotation = Annotated[(annotation, *field.metadata)]
    yield from _typed_problems(annotation, value, path)


def _typed_problems(annotation: Any, value: object, path: str) -> Iterator[Problem]:
    annotation, whole = _without_none(annotation)
    origin, inner = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if (special := SPECIAL.get(plain_name(annotation))) is not None:
            if (need := special(value)) is not None:
                yield Problem(path, need, _shown(value))
            return
        yield from shape_problems(annotation, value, path)
    elif origin is list:
        if not isinstance(value, list):
            yield Problem(path, "a list", _shown(value))
            return
        for number, each in enumerate(value):
            yield from _typed_problems(inner[0], each, f"{path}.{number}")
    elif origin is dict:
        if not isinstance(value, dict):
            yield Problem(path, "keys with values", _shown(value))
            return
        for key, each in value.items():
            if not isinstance(key, str):
                yield Problem(f"{path}.{key}", "a key that is text: put it in quotes")
            yield from _typed_problems(inner[1], each, f"{path}.{key}")
    elif annotation is not Any and annotation is not datetime:  # a time is text in YAML as it is read here
        yield from _leaf_problems(whole, value, path)


def _leaf_problems(annotation: Any, value: object, path: str) -> Iterator[Problem]:
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        base = _base_of(annotation)
        need = TYPES.get(base, "") if isinstance(base, type) else ""
        if first["type"] == "literal_error":
            need = f"one of {first['ctx']['expected']}"
        elif not need or not isinstance(value, base):
            need = need or first["msg"].lower()
        else:
            need = first["msg"].lower().removeprefix("input should be ")
        if base is str and isinstance(value, bool | int | float):
            need += ": put it in quotes"
        yield Problem(path, need, _shown(value))
        return
    if isinstance(value, int) and not isinstance(value, bool):
        field = next((part for part in reversed(path.split(".")) if not part.isdigit()), "")
        least, most = RANGES.get(field, (-MOST_32 - 1, MOST_32))
        if not least <= value <= most:
            yield Problem(path, f"a whole number from {least} to {most}", value)


def _without_none(annotation: Any) -> tuple[Any, Any]:
    """What a value must be, None apart: bare, and with what else is asked of it."""
    whole = annotation
    extras: tuple[Any, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *rest = get_args(annotation)
        extras = tuple(rest)
    if get_origin(annotation) in (Union, types.UnionType):
        left = [each for each in get_args(annotation) if each is not type(None)]
        if len(left) == 1:
            annotation = left[0]
            whole = Annotated[(annotation, *extras)] if extras else annotation
            if get_origin(annotation) is Annotated and not isinstance(get_args(annotation)[0], type):
                return _without_none(annotation)
    return annotation, whole


def _base_of(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return str
    return annotation


def _quantity(value: object) -> str | None:
    is_number = isinstance(value, str | int | float) and not isinstance(value, bool)
    return None if is_number and names.amount(value) is not None else names.NEED_QUANTITY  # type: ignore[arg-type]


def _int_or_text(value: object) -> str | None:
    is_one = isinstance(value, str | int) and not isinstance(value, bool)
    return None if is_one else "a whole number or text"


SPECIAL: dict[str, Callable[[object], str | None]] = {
    "ResourceQuantity": _quantity,
    "IntstrIntOrString": _int_or_text,
}


def plain_name(model: type[BaseModel]) -> str:
    """`Container` of IoK8sApiCoreV1Container."""
    return PREFIX.sub("", model.__name__)


def _shown(value: object) -> object:
    return value if isinstance(value, str | int | float | bool) else f"({type(value).__name__})"
