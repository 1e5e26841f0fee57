"""Where a run came from: code, patch, versions, host, data. Written beside it as provenance.json."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
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
MAX_UNTRACKED = 200  # names; a data set that lies in the checkout may have millions
PROVENANCE_FILE, ENVIRONMENT_FILE, PATCH_FILE = "provenance.json", "environment.txt", "code.patch"
FROZEN_FILE = "frozen.json"  # beside code that `foreframe submit` copied: what it was copied from


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
            errors="replace",  # a patch may be of a file in any encoding
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip("\n")


def source() -> dict[str, Any]:
    """Where this code is from: commit; patch, cleaned of secrets; untracked files, and their number.

    None each outside a checkout. Code that was frozen by a submission says what it was frozen from.
    """
    frozen = OURS.with_name(FROZEN_FILE)
    if frozen.is_file():
        try:
            found = json.loads(frozen.read_bytes())
            return {key: found[key] for key in ("commit", "patch", "untracked", "num_untracked")}
        except (OSError, ValueError, KeyError, TypeError):
            return {"commit": None, "patch": None, "untracked": None, "num_untracked": None}
    patch, others = git("diff", "HEAD"), untracked()
    return {
        "commit": git("rev-parse", "HEAD"),
        "patch": cleaned(patch) if patch else None,
        # what the patch says nothing of
        "untracked": others and [without_credentials(name) for name in others[:MAX_UNTRACKED]],
        "num_untracked": None if others is None else len(others),
    }


def provenance(datasets: Sequence[DatasetFacts], world_size: int, device: str) -> dict[str, Any]:
    """Everything that another person needs to know which code and data made a run."""
    return {
        **source(),
        "versions": versions(),
        "host": socket.gethostname(),
        "platform": f"{platform.system()} {platform.machine()}",
        "command": [without_credentials(word) for word in sys.argv],
        "world_size": world_size,
        "device": device,
        "hardware": hardware(),
        "datasets": [{**asdict(data), "address": without_credentials(data.address)} for data in datasets],
    }


def untracked() -> list[str] | None:
    """Files of foreframe's source tree that git neither follows nor ignores; None outside a checkout."""
    found = git("ls-files", "--others", "--exclude-standard", "--full-name", "-z", ":/")
    return None if found is None else [name for name in found.split("\0") if name]


def cleaned(patch: str) -> str:
    """A patch without secrets; of one that is too long the first lines, and that it was cut."""
    if len(patch) <= MAX_PATCH_CHARS:
        return without_secrets(patch)
    kept = patch[:MAX_PATCH_CHARS]
    kept = kept.rpartition("\n")[0] or kept
    said = (
        f"# cut by foreframe after {len(kept):,} of {len(patch):,} characters: the rest is not written down"
    )
    return f"{without_secrets(kept)}\n{said}"


def say_uncommitted(facts: Mapping[str, Any]) -> str:
    """What the commit does not hold, in a few words."""
    patch = "yes, in code.patch" if facts["patch"] else "none"
    count = facts.get("num_untracked") or 0
    files = "1 file" if count == 1 else f"{count:,} files"
    return f"{patch}; {files} that git does not know, named in {PROVENANCE_FILE}" if count else patch


def write_provenance(run: Path, facts: dict[str, Any]) -> list[Path]:
    """Write where a run comes from into its folder: facts, packages, what is not committed; the files."""
    write_whole(run / PROVENANCE_FILE, json.dumps(facts, indent=1).encode())
    write_whole(run / ENVIRONMENT_FILE, installed().encode())
    (run / PATCH_FILE).unlink(missing_ok=True)  # of an earlier start
    if facts["patch"] is None:
        return [run / PROVENANCE_FILE, run / ENVIRONMENT_FILE]
    write_whole(run / PATCH_FILE, f"{facts['patch']}\n".encode())
    return [run / PROVENANCE_FILE, run / ENVIRONMENT_FILE, run / PATCH_FILE]
