"""What lies at the two ends of a job, in folders or on S3, and a progress that acts at one of its stages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from data_pipeline.config import DataConfig
from data_pipeline.format import SHARDS_FOLDER, sha256
from data_pipeline.manifest import Clip, Video, read_parquet
from data_pipeline.storage import Storage


def upload(folder: Path, prefix: str) -> str:
    storage = Storage(prefix)
    for path in sorted(folder.iterdir()):
        storage.publish(path.name, path.read_bytes())
    return prefix


def contents(root: str) -> dict[str, bytes]:
    """Every file below a data set's root, save the lock of local ones."""
    storage = Storage(root)
    names = [entry.name for entry in storage.walk() if entry.name != ".lock"]
    return dict(zip(names, storage.read_many(names), strict=True))


def shards(root: str) -> dict[str, bytes]:
    return {name: data for name, data in contents(root).items() if name.startswith(SHARDS_FOLDER)}


def is_whole(root: str) -> bool:
    """Whether each done record that is there has the very shard that it names."""
    found = shards(root)
    stems = [name.removesuffix(".done.json") for name in found if name.endswith(".done.json")]
    for stem in stems:
        done = json.loads(found[f"{stem}.done.json"])
        if sha256(found[f"{stem}.tar"]) != done["tar_sha256"]:
            return False
        if sha256(found[f"{stem}.index.parquet"]) != done["index_sha256"]:
            return False
    return True


def rows(config: DataConfig) -> tuple[list[Clip], list[Video]]:
    """The manifest and the index without what tells where the videos lie."""
    storage = Storage(config.out)
    clips, _ = read_parquet(storage, "manifest.parquet", Clip)
    videos, _ = read_parquet(storage, "videos.parquet", Video)
    placeless = [dataclasses.replace(clip, uri=clip.uri.rpartition("/")[2], etag="") for clip in clips]
    plain = [
        dataclasses.replace(video, uri=video.uri.rpartition("/")[2], etag="", listing="") for video in videos
    ]
    return placeless, [video for video in plain if video.status == "usable"]


def at_stage(wanted: str, act: Callable[[], None]) -> Callable[[str, int, int, str], None]:
    """A progress that calls `act` once, when that stage begins."""
    told: list[str] = []

    def progress(stage: str, done: int, total: int, note: str) -> None:
        is_there = (stage, done) == (wanted, 0) or (wanted == "finish" and stage == "pack" and done == total)
        if is_there and not told:
            told.append(stage)
            act()

    return progress
