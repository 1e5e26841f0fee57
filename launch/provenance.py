"""Where a run came from: code, patch, versions, host, data. Written beside it as provenance.json."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_pipeline.storage import write_whole
from launch.environment import hardware, installed
from pretrain.tracking.base import DatasetFacts, without_credentials, without_secrets

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
PROVENANCE_FILE, ENVIRONMENT_FILE, PATCH_FILE = "provenance.json", "environment.txt", "code.patch"


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
        "patch": without_secrets(patch[:MAX_PATCH_CHARS]) if patch else None,
        "versions": versions(),
        "host": socket.gethostname(),
        "platform": f"{platform.system()} {platform.machine()}",
        "command": [without_credentials(word) for word in sys.argv],
        "world_size": world_size,
        "device": device,
        "hardware": hardware(),
        "datasets": [{**asdict(data), "address": without_credentials(data.address)} for data in datasets],
    }


def write_provenance(run: Path, facts: dict[str, Any]) -> list[Path]:
    """Write where a run comes from into its folder: facts, packages, what is not committed; the files."""
    write_whole(run / PROVENANCE_FILE, json.dumps(facts, indent=1).encode())
    write_whole(run / ENVIRONMENT_FILE, installed().encode())
    (run / PATCH_FILE).unlink(missing_ok=True)  # of an earlier start
    if facts["patch"] is None:
        return [run / PROVENANCE_FILE, run / ENVIRONMENT_FILE]
    write_whole(run / PATCH_FILE, f"{facts['patch']}\n".encode())
    return [run / PROVENANCE_FILE, run / ENVIRONMENT_FILE, run / PATCH_FILE]
