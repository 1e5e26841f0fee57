"""What Kubernetes asks of a pod beyond the types of its fields: names, volumes, variables, amounts.

Each rule takes what may be anything but has the right shape elsewhere: what has not is passed over here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data_pipeline.errors import Problem
from launch.submit.base import SECRET_NAME
from launch.submit.kubernetes import names

ENV_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
BYTES = ("memory", "ephemeral-storage")


def items(holder: object, key: str) -> list[tuple[int, Mapping[str, Any]]]:
    """The mappings of a list that a mapping has under a key, with their places; [] where there are none."""
    found = holder.get(key) if isinstance(holder, dict) else None
    return (
        [(n, each) for n, each in enumerate(found) if isinstance(each, dict)]
        if isinstance(found, list)
        else []
    )


def fields(holder: object, key: str) -> Mapping[str, Any]:
    """The mapping that a mapping has under a key; {} where there is none."""
    found = holder.get(key) if isinstance(holder, dict) else None
    return found if isinstance(found, dict) else {}


def text(holder: object, key: str) -> str | None:
    found = holder.get(key) if isinstance(holder, dict) else None
    return found if isinstance(found, str) else None


def pod_problems(
    path: str, spec: Mapping[str, Any], *, is_patch: bool = False, has_all_volumes: bool = True
) -> Iterator[Problem]:
    """Of a pod's spec. is_patch: of a runtime's, which has the images. has_all_volumes: and no volumes."""
    volumes = [text(volume, "name") for _, volume in items(spec, "volumes")]
    yield from _volume_problems(path, spec, volumes)
    yield from _container_problems(path, spec, is_patch, volumes if has_all_volumes else None)
    if not is_patch and not items(spec, "containers"):
        yield Problem(f"{path}.containers", "at least one container")
    for key in ("serviceAccountName", "priorityClassName"):
        yield from _named(f"{path}.{key}", text(spec, key), names.is_subdomain, names.NEED_SUBDOMAIN)
    for number, secret in items(spec, "imagePullSecrets"):
        yield from reference_problems(f"{path}.imagePullSecrets.{number}", secret, "name", "a Secret's name")
    yield from label_problems(f"{path}.nodeSelector", spec.get("nodeSelector"))
    for number, each in items(spec, "tolerations"):
        at = f"{path}.tolerations.{number}"
        if each.get("operator") == "Exists" and each.get("value"):
            yield Problem(f"{at}.value", "no value with operator Exists", each["value"])
        if not each.get("key") and each.get("operator") != "Exists":
            yield Problem(f"{at}.key", "a taint's key, or operator Exists")


def _volume_problems(path: str, spec: Mapping[str, Any], volumes: list[str | None]) -> Iterator[Problem]:
    for number, volume in items(spec, "volumes"):
        at, name = f"{path}.volumes.{number}", text(volume, "name")
        yield from _named(f"{at}.name", name, names.is_label, names.NEED_LABEL)
        if name is not None and name in volumes[:number]:
            yield Problem(f"{at}.name", "a name that no other volume of this pod has", name)
        sources = [key for key in volume if key != "name" and volume[key] is not None]
        if len(sources) != 1:
            need = "one source, such as persistentVolumeClaim, configMap or emptyDir"
            yield Problem(at, need, f"({' and '.join(sources) or 'none'})")
        if "persistentVolumeClaim" in volume:
            need = "the name of a PersistentVolumeClaim"
            yield from reference_problems(
                f"{at}.persistentVolumeClaim", volume["persistentVolumeClaim"], "claimName", need
            )
        if "configMap" in volume:
            yield from reference_problems(
                f"{at}.configMap", volume["configMap"], "name", "a ConfigMap's name"
            )
        if "secret" in volume:
            yield from reference_problems(f"{at}.secret", volume["secret"], "secretName", "a Secret's name")
        if isinstance(volume.get("emptyDir"), dict):
            yield from _positive(f"{at}.emptyDir.sizeLimit", volume["emptyDir"].get("sizeLimit"))


def _container_problems(
    path: str, spec: Mapping[str, Any], is_patch: bool, volumes: list[str | None] | None
) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for kind in ("initContainers", "containers"):
        for number, each in items(spec, kind):
            at, name = f"{path}.{kind}.{number}", text(each, "name")
            yield from _named(f"{at}.name", name, names.is_label, names.NEED_LABEL)
            if name in seen:
                yield Problem(f"{at}.name", f"a name that {seen[str(name)]} has not got", name)
            seen.setdefault(str(name), f"{kind}.{number}")
            if not is_patch and not each.get("image"):
                yield Problem(f"{at}.image", "an image")
            yield from image_problems(f"{at}.image", each.get("image"))
            yield from env_problems(at, each)
            yield from resource_problems(f"{at}.resources", each.get("resources"))
            yield from _mount_problems(at, each, volumes)
            for place, port in items(each, "ports"):
                value = port.get("containerPort")
                if isinstance(value, int) and not 0 < value < 1 << 16:
                    yield Problem(f"{at}.ports.{place}.containerPort", "1 to 65535", value)


def image_problems(path: str, image: object) -> Iterator[Problem]:
    if isinstance(image, str) and image and not names.is_image(image):
        yield Problem(path, names.NEED_IMAGE_NAME, image)


def _mount_problems(
    at: str, container: Mapping[str, Any], volumes: list[str | None] | None
) -> Iterator[Problem]:
    """volumes: the pod's, by name; None where a runtime may bring more."""
    places: list[str] = []
    for number, mount in items(container, "volumeMounts"):
        name, where = text(mount, "name"), text(mount, "mountPath")
        if name is not None and volumes is not None and name not in volumes:
            listed = ", ".join(str(each) for each in volumes) or "none"
            yield Problem(f"{at}.volumeMounts.{number}.name", f"one of the pod's volumes ({listed})", name)
        if where is not None:
            if not where.startswith("/") or ":" in where:
                yield Problem(f"{at}.volumeMounts.{number}.mountPath", "an absolute path without `:`", where)
            if where in places:
                need = "a path at which nothing else is mounted"
                yield Problem(f"{at}.volumeMounts.{number}.mountPath", need, where)
            places.append(where)


def env_problems(at: str, container: Mapping[str, Any]) -> Iterator[Problem]:
    """Variables: each once, from one source, and credentials by reference alone."""
    seen: set[str] = set()
    for number, each in items(container, "env"):
        here, name = f"{at}.env.{number}", text(each, "name") or ""
        if not ENV_NAME.fullmatch(name):
            yield Problem(f"{here}.name", "the name of a variable", name)
        if name in seen:
            yield Problem(f"{here}.name", "a name that no other variable of this container has", name)
        seen.add(name)
        value, source = each.get("value"), each.get("valueFrom")
        if value is not None and source is not None:
            yield Problem(here, "value or valueFrom, not both")
        if value and SECRET_NAME.search(name):
            need = "valueFrom.secretKeyRef: what looks like a credential is given by reference only"
            yield Problem(f"{here}.value", need, "***")
        if isinstance(source, dict):
            if len(source) != 1:
                yield Problem(f"{here}.valueFrom", "one source, such as secretKeyRef")
            for kind, what in (
                ("secretKeyRef", "a Secret's name"),
                ("configMapKeyRef", "a ConfigMap's name"),
            ):
                if kind in source:
                    yield from reference_problems(f"{here}.valueFrom.{kind}", source[kind], "name", what)
                    yield from reference_problems(
                        f"{here}.valueFrom.{kind}", source[kind], "key", "one of its keys"
                    )
    for number, each in items(container, "envFrom"):
        here = f"{at}.envFrom.{number}"
        for kind, what in (("secretRef", "a Secret's name"), ("configMapRef", "a ConfigMap's name")):
            if kind in each:
                yield from reference_problems(f"{here}.{kind}", each[kind], "name", what)
        if not {"secretRef", "configMapRef"} & each.keys():
            yield Problem(here, "secretRef or configMapRef")


def resource_problems(path: str, resources: object) -> Iterator[Problem]:
    """Amounts: none below 0, no request above its limit, whole GPUs."""
    if not isinstance(resources, dict):
        return
    found: dict[str, dict[str, Any]] = {
        kind: resources[kind] for kind in ("requests", "limits") if isinstance(resources.get(kind), dict)
    }
    for kind, amounts in found.items():
        for name, value in amounts.items():
            size = names.amount(value) if isinstance(value, str | int | float) else None
            if size is not None and size < 0:
                yield Problem(f"{path}.{kind}.{name}", "0 or more", value)
            if size is not None and "/" in str(name) and size != int(size):
                yield Problem(f"{path}.{kind}.{name}", "a whole number", value)
            if size is not None and name in BYTES and 0 < size < 1:
                yield Problem(f"{path}.{kind}.{name}", "bytes, such as 32Gi", value)
    for name, value in found.get("requests", {}).items():
        if name not in found.get("limits", {}):
            if "/" in str(name):
                yield Problem(f"{path}.limits.{name}", "the same as its request, which cannot stand alone")
            continue
        limit = found["limits"][name]
        asked, most = names.amount(value), names.amount(limit)
        if asked is None or most is None or ("/" in str(name) and most != int(most)):
            continue
        if asked > most or ("/" in str(name) and asked != most):
            need = f"{'the same as' if '/' in str(name) else 'at most'} its limit {limit}"
            yield Problem(f"{path}.requests.{name}", need, value)


def label_problems(path: str, labels: object, *, are_values: bool = True) -> Iterator[Problem]:
    """Keys and values of labels; annotations have such keys, and any values."""
    if not isinstance(labels, dict):
        return
    for key, value in labels.items():
        if isinstance(key, str) and not names.is_label_key(key):
            yield Problem(f"{path}.{key}", names.NEED_LABEL_KEY)
        elif are_values and isinstance(value, str) and not names.is_label_value(value):
            yield Problem(f"{path}.{key}", names.NEED_LABEL_VALUE, value)


def _named(path: str, name: str | None, is_good: Callable[[str], bool], need: str) -> Iterator[Problem]:
    if name is not None and not is_good(name):
        yield Problem(path, need, name, (names.as_label(name),))


def reference_problems(path: str, holder: object, key: str, need: str) -> Iterator[Problem]:
    """What is referred to must be named, and `name: ""` names nothing though its type allows it."""
    if not isinstance(holder, dict):
        return
    name = holder.get(key)
    if name is None or name == "":
        yield Problem(f"{path}.{key}", f"{need}; it is missing")
    elif key != "key":
        yield from _named(f"{path}.{key}", text(holder, key), names.is_subdomain, names.NEED_SUBDOMAIN)


def _positive(path: str, value: object) -> Iterator[Problem]:
    size = names.amount(value) if isinstance(value, str | int | float) else None
    if size is not None and size <= 0:
        yield Problem(path, "above 0", value)
