"""`foreframe checkpoint`: what a run's folder or a store has, whether it is whole, and less of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from data_pipeline.errors import CheckpointError, UsageError
from launch.lock import lock_run
from pretrain.checkpoint.manifest import FOLDER, step_name, step_of
from pretrain.checkpoint.retention import Retention, read_scores, sound_until
from pretrain.checkpoint.store import Listed, Store
from pretrain.config import RunConfig
from pretrain.tracking.jsonl import read_metrics

Progress = Callable[[str, int, int, str], None]  # stage, done, total, note


@dataclass(frozen=True)
class Row:
    """A checkpoint as it is listed. trouble: what its manifest and the sizes of its files say; None for none.

    kept: why the run's settings keep it, empty when they do not.
    """

    step: int
    name: str
    num_bytes: int
    written: datetime
    trouble: str | None
    world_size: int | None
    loss: float | None
    kept: str
    is_latest: bool


def open_place(address: str) -> tuple[Store, Path | None]:
    """The checkpoints of a run's folder, with that folder, or of a store's address.

    Raises: UsageError when nothing is there.
    """
    if "://" in address:
        store = Store(address)
        if not store.listed():
            raise UsageError(f"{address} holds no checkpoints: need the train.checkpoint_store of a run")
        return store, None
    run = Path(address)
    if not (run / FOLDER).is_dir():
        below = sorted(path.parent for path in run.glob(f"*/{FOLDER}")) if run.is_dir() else []
        hint = f"; {below[0]} has" if below else ""
        raise UsageError(f"{address} holds no checkpoints: need a run's folder, or an s3:// address{hint}")
    return Store(run), run


def list_checkpoints(address: str) -> list[Row]:
    """All of them, newest first, judged by manifests and sizes; no file is read. Raises: UsageError."""
    store, run = open_place(address)
    listed = store.listed()
    judged = {name: judge(store, name, found) for name, found in listed.items()}
    losses = {line["step"]: line.get("loss") for line in read_metrics(run)} if run is not None else {}
    whole = [step_of(name) or 0 for name, (trouble, _) in judged.items() if trouble is None]
    scores = read_scores(run) if run is not None else {}
    kept: dict[int, str] = {}
    if whole:
        newest = step_name(max(whole))
        kept = rule_of(judged[newest][1]).kept(whole, scores)
    latest = store.newest()
    return [
        Row(
            step=step_of(name) or 0,
            name=name,
            num_bytes=sum(found.files.values()),
            written=datetime.fromtimestamp(found.mtime_s).astimezone(),
            trouble=judged[name][0],
            world_size=judged[name][1].get("world_size"),
            loss=losses.get(step_of(name)),
            kept=kept.get(step_of(name) or 0, ""),
            is_latest=name == latest,
        )
        for name, found in sorted(listed.items(), key=lambda item: step_of(item[0]) or 0, reverse=True)
    ]


def judge(store: Store, name: str, listed: Listed) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with a checkpoint, as far as manifest and sizes tell; and the manifest."""
    try:
        manifest = store.manifest(name)
    except CheckpointError as error:
        return str(error).removeprefix(store.address(name)).strip(), {}
    for file, facts in manifest["files"].items():
        size = listed.files.get(file)
        if size is None:
            return f"{file} is missing", manifest
        if size != facts["bytes"]:
            return f"{file} has {size:,} bytes of {facts['bytes']:,}", manifest
    return None, manifest


def rule_of(manifest: dict[str, Any]) -> Retention:
    train = RunConfig.model_validate(manifest["config"]).train
    healthy = sound_until(manifest)
    return Retention(train.keep_checkpoints, train.keep_every, train.keep_best, healthy)


def verify_checkpoints(address: str, step: int | None, progress: Progress) -> tuple[int, list[str]]:
    """Read and hash every file of all checkpoints, or of one: how many are whole, and what is wrong.

    Raises: UsageError when there is none, or not that one.
    """
    store, _ = open_place(address)
    listed = store.listed()
    names = sorted(listed, key=lambda name: step_of(name) or 0)
    if step is not None:
        if step_name(step) not in listed:
            have = ", ".join(str(step_of(name)) for name in names) or "none"
            raise UsageError(f"{address} has no checkpoint at step {step}; it has: {have}")
        names = [step_name(step)]
    if not names:
        raise UsageError(f"{address} holds no checkpoints yet")
    total = sum(size for name in names for size in listed[name].files.values())
    done, problems, num_whole = 0, [], 0
    for name in names:
        found: list[str] = []
        try:
            files = store.manifest(name)["files"]
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for file, facts in files.items():
            seen = 0

            def moved(count: int, name: str = name) -> None:
                nonlocal done, seen
                done, seen = done + count, seen + count
                progress("verify", done >> 20, max(total, done) >> 20, f"MiB, {name}")

            try:
                store.check(name, file, facts, moved)
            except CheckpointError as error:
                found.append(str(error))
                done += max(0, listed[name].files.get(file, 0) - seen)
        problems += found
        num_whole += not found
    return num_whole, problems


def prune_checkpoints(
    address: str, keep: int, keep_every: int | None, *, dry_run: bool
) -> tuple[list[tuple[str, int]], list[str]]:
    """Remove all but the newest `keep` and multiples of `keep_every`: (name, bytes) of each, and what stays.

    The newest that is whole, by manifest and sizes, always stays; what is not whole goes.
    Raises: UsageError when there is none, or the run is being trained.
    """
    store, run = open_place(address)
    with lock_run(run) if run is not None and not dry_run else nullcontext():
        rows = list_checkpoints(address)
        whole = [row.step for row in rows if row.trouble is None]
        if not whole:
            raise UsageError(f"{address} has no whole checkpoint: nothing is removed")
        kept = Retention(keep, keep_every).kept(whole, {})
        gone = [row for row in rows if row.trouble is not None or row.step not in kept]
        if not dry_run and run is not None:
            for row in gone:
                folder = run / FOLDER / row.name
                os.replace(folder, folder.with_name(f"{row.name}.old.part"))
                shutil.rmtree(folder.with_name(f"{row.name}.old.part"))
        elif not dry_run:
            store.remove(row.name for row in gone)
        stays = [row.name for row in rows if row not in gone]
        if not dry_run:
            store.point_to(stays[0])
    return [(row.name, row.num_bytes) for row in gone], stays
