"""Where a run came from: code, patch, versions, host, data. Written beside it as provenance.json."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pretrain.tracking.base import DatasetFacts, without_credentials

PACKAGES = (
    "foreframe",
    "torch",
    "deepspeed",
    "xformers",
    "webdataset",
    "decord",
    "av",
    "ray",
    "mlflow",
    "numpy",
)
MAX_PATCH_CHARS = 200_000


def versions() -> dict[str, str]:
    """Installed versions of what matters; packages that are absent are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


OURS = Path(__file__).resolve()


def git(*arguments: str) -> str | None:
    """What git says of foreframe's own source tree, or None outside a checkout of it."""
    top = _git("rev-parse", "--show-toplevel")
    # Installed into a virtual environment that lies in another project's checkout, that one would answer.
    if top is None or Path(top, "launch", OURS.name).resolve() != OURS:
        return None
    return _git(*arguments)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=OURS.parent,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip("\n")


def provenance(datasets: Sequence[DatasetFacts], world_size: int, device: str) -> dict[str, Any]:
    """Everything that another person needs to know which code and data made a run."""
    patch = git("diff", "HEAD")
    return {
        "commit": git("rev-parse", "HEAD"),
        "patch": patch[:MAX_PATCH_CHARS] if patch else None,
        "versions": versions(),
        "host": socket.gethostname(),
        "platform": f"{platform.system()} {platform.machine()}",
        "command": [without_credentials(word) for word in sys.argv],
        "world_size": world_size,
        "device": device,
        "datasets": [{**asdict(data), "address": without_credentials(data.address)} for data in datasets],
    }
