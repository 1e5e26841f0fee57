"""What each kind of node needs, who may import whom, and that every pin is there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Without these a data node has no training, and a training node no pipeline; the rest of each must work.
NODES = {
    "a data node": (
        ("torch", "deepspeed", "mlflow", "xformers", "safetensors", "matplotlib"),
        (
            "data_pipeline.execute",
            "data_pipeline.dataset",
            "data_pipeline.verify",
            "launch.data",
            "launch.cli",
            "launch.doctor.local",
            "launch.doctor.hosts",
        ),
    ),
    "a training node": (
        ("ray",),
        (
            "launch.train",
            "launch.results",
            "launch.ui",
            "launch.doctor.local",
            "pretrain.loop",
            "pretrain.probe",
            "pretrain.strategy.deepspeed",
        ),
    ),
}
MAY_IMPORT = {"errors", "format", "storage", "decode", "synthetic", "worlds"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """{name: version} of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    plain = [line.split("#")[0].strip() for line in lines]
    return {normal(name): version for name, version in (line.split("==") for line in plain if line)}


def requirements() -> Iterator[Requirement]:
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *(line for name in extras for line in extras[name])]:
        found = Requirement(text)
        if found.name != PROJECT["name"]:
            yield found


@pytest.mark.parametrize("node", NODES)
def test_a_node_works_without_what_it_does_not_need(node: str) -> None:
    missing, modules = NODES[node]
    script = (
        "import importlib, importlib.abc, sys\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {missing!r}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("needed", list(requirements()), ids=lambda needed: needed.name)
def test_every_requirement_is_pinned_within_its_range(needed: Requirement) -> None:
    assert needed.specifier.contains(pins()[normal(needed.name)])


def test_pins_hold_no_local_build_and_no_address() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert not any("+" in version for version in pins().values())
    assert "://" not in text
    assert "index" not in text


def names_of(text: str) -> Iterator[str]:
    """Dotted names that a module imports, and those it reaches through what it imported: torch.nn.Linear."""
    tree = ast.parse(text)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                first = alias.name.partition(".")[0]
                known[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in known:
            yield ".".join([known[node.id], *reversed(parts)])


RANKS = ("torch.distributed", "deepspeed", "pretrain.strategy")


def sees_ranks(text: str) -> list[str]:
    return [name for name in names_of(text) if f"{name}.".startswith(tuple(f"{known}." for known in RANKS))]


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.distributed.get_rank()",
        "import torch as t\nx = t.distributed",
        "import torch.nn as nn\nimport torch\ntorch.distributed.is_initialized()",
        "from torch import distributed as dist\ndist.get_world_size()",
        "import torch.distributed",
        "import torch.distributed as dist",
        "from torch.distributed import get_rank",
        "def f():\n    import torch.distributed.nn",
        "import deepspeed",
        "import deepspeed.comm as dist",
        "from pretrain.strategy.base import World",
    ],
)
def test_whatever_sees_a_rank_is_found(text: str) -> None:
    assert sees_ranks(text)
    assert not sees_ranks("import torch\nfrom torch import nn\ntorch.distributions.Normal\nnn.Linear(1, 1)")


def test_training_knows_the_contract_of_the_data_and_no_more() -> None:
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / "pretrain").rglob("*.py")
        for name in names_of(path.read_text())
        if name.startswith("data_pipeline.") and name.split(".")[1] not in MAY_IMPORT
    }
    assert not found


def test_models_and_objectives_never_see_a_rank() -> None:
    found = {
        (str(path.relative_to(ROOT)), name)
        for folder in ("model", "objective")
        for path in (ROOT / "pretrain" / folder).rglob("*.py")
        for name in sees_ranks(path.read_text())
    }
    assert not found


def test_models_read_no_environment() -> None:
    assert not [
        path.name
        for path in (ROOT / "pretrain" / "model").rglob("*.py")
        if "environ" in path.read_text() or "getenv" in path.read_text()
    ]
