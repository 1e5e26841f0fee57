"""The kinds of places, and how one is named: by its kind, or by a file that describes it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import yaml

from data_pipeline.errors import ConfigError, UsageError
from launch.config import check_document, find_config
from launch.paths import is_file
from launch.submit.base import Place
from launch.yaml_file import Document, read_document

# Each in the module of its name, which is imported when it is asked for.
PLACES = {
    "local": "LocalPlace",
    "ssh": "SshPlace",
    "slurm": "SlurmPlace",
    "kubernetes": "KubernetesPlace",
    "ray": "RayPlace",
}


def place_class(kind: str) -> type[Place]:
    found = getattr(import_module(f"launch.submit.{kind}"), PLACES[kind])
    assert issubclass(found, Place)
    return found


def read_place(name: str, settings: Iterable[str] = ()) -> Place:
    """The place that `name` stands for, a kind or a YAML file with a `kind`, under `key=value` settings.

    Raises: ConfigError with every problem at once; UsageError when there is no such kind or file.
    """
    settings = [_as_text(setting) for setting in settings]
    if name in PLACES:
        document = Document(f"--on {name}", {"kind": name})
    elif Path(name).suffix in (".yaml", ".yml") or is_file(name):
        document = read_document(find_config(name))
        if isinstance(document.data.get("env"), dict):  # as it is written: 010, 0x10 and true are text here
            document.data["env"] = yaml.load(Path(document.file).read_text("utf-8"), yaml.BaseLoader)["env"]
    else:
        near = difflib.get_close_matches(name, PLACES, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"--on is {name!r}: need {', '.join(PLACES)}, or a YAML file of such a place{hint}")
    kind = document.data.get("kind")
    if not isinstance(kind, str) or kind not in PLACES:
        raise ConfigError(
            "kind", got=kind, need=f"one of {', '.join(PLACES)}", file=document.where("kind"),
            try_=difflib.get_close_matches(str(kind), PLACES, n=1, cutoff=0.5),
        )  # fmt: skip
    return check_document(document, settings, place_class(kind))


def _as_text(setting: str) -> str:
    """An environment variable's value is text, whatever YAML would make of it."""
    key, equals, value = setting.partition("=")
    if not key.startswith("env.") or value[:1] in ("'", '"'):
        return setting
    return f"{key}{equals}{json.dumps(value, ensure_ascii=False)}"
