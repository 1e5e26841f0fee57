"""A submission's folder: code, config and scripts of a job, as they were when it was submitted."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_pipeline.errors import UsageError, why
from data_pipeline.storage import write_whole
from launch.config import dump_config
from launch.lock import SUBMISSIONS_FOLDER
from launch.paths import is_file
from launch.provenance import FROZEN_FILE, PATCH_FILE, source, versions
from launch.submit.base import CODE_FOLDER, ELEMENTS_FOLDER, LOGS_FOLDER, Job, JobConfig, Place, folder_for
from launch.submit.shell import interpreter
from launch.submitted import RECORD_FILE, submission_folders

PACKAGES = ("data_pipeline", "pretrain", "launch", "configs")
NEW, LEFT_S = ".new-", 3600.0
HERE = Path(__file__).resolve().parents[2]
LEFT_OUT = ("__pycache__", "*.pyc", FROZEN_FILE)


def code_files(root: Path = HERE) -> list[Path]:
    """foreframe's own files below `root`, relative to it, in order; those of tests and docs are not among
    them."""
    found = [
        path.relative_to(root)
        for name in PACKAGES
        for path in (root / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != FROZEN_FILE
    ]
    return sorted(found)


def code_digest(root: Path = HERE) -> str:
    """16 hex digits of names and bytes of foreframe's own files: equal where the same code would run."""
    hashed = hashlib.sha256()
    for path in code_files(root):
        data = (root / path).read_bytes()
        hashed.update(f"{path.as_posix()}\0{len(data)}\0".encode())
        hashed.update(data)
    return hashed.hexdigest()[:16]


def next_folder(config: JobConfig) -> Path:
    """Of the next submission of this config; not made. Absolute."""
    run = folder_for(config).absolute()
    taken = [int(folder.name) for folder in submission_folders(run)]
    return run / SUBMISSIONS_FOLDER / f"{max(taken, default=0) + 1:03d}"


def freeze(job: Job, place: Place, elements: Sequence[JobConfig] = ()) -> Job:
    """Write the submission's folder, whole or not at all; the job as it lies there.

    elements: configs of a sweep, job.elements of them. A folder that another submission took meanwhile is
    passed over.
    Raises: UsageError when it cannot be written.
    """
    parent = job.folder.parent
    _sweep(parent)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=NEW, dir=parent))
    except OSError as error:
        raise UsageError(f"{parent} cannot be written, choose another out=...: {why(error)}") from error
    try:
        made.chmod(0o755)
        _copy_code(made / CODE_FOLDER)
        (made / LOGS_FOLDER).mkdir()
        if elements:
            (made / ELEMENTS_FOLDER).mkdir()
        while True:
            for number, config in enumerate(elements):
                (made / ELEMENTS_FOLDER / f"{number:03d}.yaml").write_text(dump_config(config))
            if not elements:
                (made / "config.yaml").write_text(dump_config(job.config))
            files = place.files(job)
            for name, text in files.items():
                (made / name).write_text(text)
                (made / name).chmod(0o755 if text.startswith("#!") else 0o644)
            write_record(made, _record(job, place, made, files))
            try:
                made.rename(job.folder)
                return job
            except OSError:
                if not job.folder.exists():
                    raise
                job = replace(job, folder=parent / f"{int(job.folder.name) + 1:03d}")
    except OSError as error:
        raise UsageError(f"{job.folder} cannot be written: {why(error)}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what submissions that were killed while they froze left behind."""
    for left in parent.glob(f"{NEW}*"):
        with suppress(OSError):  # another's, or gone in the meantime
            if time.time() - left.stat().st_mtime > LEFT_S:
                shutil.rmtree(left, ignore_errors=True)


def _copy_code(target: Path) -> None:
    """foreframe's packages, and what git says of them, which a copy outside a checkout could not tell."""
    for path in code_files():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HERE / path, target / path)
    (target / "launch" / FROZEN_FILE).write_text(json.dumps(source(), indent=1))


def _record(job: Job, place: Place, made: Path, files: Mapping[str, str]) -> dict[str, Any]:
    code = source()
    if code["patch"]:
        (made / PATCH_FILE).write_text(f"{code['patch']}\n")
    named = ["config.yaml", *files] if not job.elements else [*files]
    named += [f"{ELEMENTS_FOLDER}/{number:03d}.yaml" for number in range(job.elements)]
    return {
        "name": job.name,
        "kind": job.kind,
        "elements": job.elements,
        "place": place.model_dump(mode="json"),
        "interpreter": interpreter(place),  # on the nodes; whoever asks them later may have another one
        "workdir": str(job.workdir),
        "run": str(job.run),
        "submitted": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": code["commit"],
        "is_patched": bool(code["patch"]),
        "code": code_digest(made / CODE_FOLDER),
        "versions": versions(),
        "files": {name: hashlib.sha256((made / name).read_bytes()).hexdigest() for name in named},
        "state": "not started",
        "id": None,
        "told": {},
    }


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    write_whole(folder / RECORD_FILE, json.dumps(record, indent=1).encode())


def update_record(folder: Path, **changes: object) -> None:
    """Change what is known of a submission: its state, id, what to type."""
    write_record(folder, {**read_record(folder), **changes})


def read_record(folder: Path) -> dict[str, Any]:
    """Raises: UsageError when there is none that can be read."""
    try:
        found = json.loads((folder / RECORD_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder} holds no {RECORD_FILE} that can be read: need a submission's folder"
        ) from error
    if not isinstance(found, dict):
        raise UsageError(f"{folder / RECORD_FILE} holds no submission")
    return found


@dataclass(frozen=True)
class Submission:
    """One that was made. folder: its own. record: as in submission.json."""

    folder: Path
    record: dict[str, Any]


def find_submission(path: Path) -> Submission:
    """A submission by its folder, or the last of a run's folder. Raises: UsageError."""
    if is_file(path / RECORD_FILE):
        return Submission(path, read_record(path))
    return submissions(path)[0]


def submissions(run: Path) -> list[Submission]:
    """Of a run, newest first; a damaged one is passed over, where there are others. Raises: UsageError."""
    found, damaged = [], None
    for folder in reversed(submission_folders(run)):
        try:
            found.append(Submission(folder, read_record(folder)))
        except UsageError as error:
            damaged = damaged or error
    if found:
        return found
    raise damaged or UsageError(
        f"{run} is no run that was submitted: need a run's folder, or one of its {SUBMISSIONS_FOLDER}"
    )
