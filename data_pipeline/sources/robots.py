"""Folders of LeRobot, versions 2 and 3: which part of which file is an episode, and where its actions are.

Source: huggingface/lerobot, src/lerobot/datasets (utils.py, dataset_metadata.py, v30/). Whatever stands in
meta/ was written by others: a path is a name looked up in the listing, so that none leads out of the folder.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.sources.base import Ignored, SidecarFile, SourceFile, Span, printable
from data_pipeline.sources.match import Tree, is_video, source_file

INFO = "meta/info.json"
FIELD = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")


@dataclass(frozen=True)
class Dataset:
    """A folder of LeRobot. base: its name below the source with a slash, or empty. where: its address."""

    tree: Tree
    base: str
    where: str
    info: dict[str, Any]

    def text(self, key: str) -> str:
        value = self.info.get(key)
        if not isinstance(value, str):
            raise DataError(f"{self.where}/{INFO}: `{key}` is {value!r}; need a path with fields in braces")
        return value

    def whole(self, key: str, default: int) -> int:
        value = self.info.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(f"{self.where}/{INFO}: `{key}` is {value!r}; need a whole number above 0")
        return value


@dataclass(frozen=True)
class Part:
    """One camera's view of one episode."""

    episode: int
    video: str
    data: str
    start_s: float
    end_s: float | None
    label: str | None


def match_robots(tree: Tree) -> list[SourceFile]:
    """The videos of every LeRobot folder in a tree, a span for each episode.

    All that such a folder holds counts as used afterwards, but for videos that no episode names.
    Raises: DataError with the file and what is wrong in it.
    """
    files = []
    for name in sorted(tree.found):
        if name == INFO or name.endswith("/" + INFO):
            dataset = _open(tree, name[: -len(INFO)])
            if dataset is not None:
                files += _match(dataset)
    return files


def _open(tree: Tree, base: str) -> Dataset | None:
    where = tree.where.rstrip("/") + ("/" + base.rstrip("/") if base else "")
    is_sure = any(name.startswith((f"{base}meta/episodes", f"{base}meta/tasks")) for name in tree.found)
    try:
        info = json.loads(tree.read(base + INFO))
    except (ValueError, RecursionError) as error:
        if is_sure:
            raise DataError(f"{where}/{INFO} is cut short or damaged: {error}") from error
        return None  # another program's file of that name
    if not isinstance(info, dict) or "codebase_version" not in info:
        return None
    version = str(info["codebase_version"])
    if not re.match(r"v?[23]\.", version):
        raise DataError(
            f"{where} is a LeRobot data set of version {version}; versions 2 and 3 are read: "
            f"bring it to one of them with LeRobot's own converter"
        )
    return Dataset(tree, base, where, info)


def _match(dataset: Dataset) -> list[SourceFile]:
    tree, base = dataset.tree, dataset.base
    inside = [name for name in tree.found if name.startswith(base)]
    features = dataset.info.get("features")
    if not isinstance(features, dict):
        raise DataError(f"{dataset.where}/{INFO} has no `features`: it is cut short or damaged")
    cameras = sorted(
        key for key, about in features.items() if isinstance(about, dict) and about.get("dtype") == "video"
    )
    if not cameras:
        reason = "this LeRobot data set has no feature of dtype video; images within tables are not read"
        tree.ignored.append(Ignored(tree.found[base + INFO].uri, reason, is_wanted=True))
    is_newer = re.match(r"v?3", str(dataset.info["codebase_version"])) is not None
    parts = (_parts_v3 if is_newer else _parts_v2)(dataset, cameras) if cameras else iter(())
    state_names, action_names = (_names(features.get(key)) for key in ("observation.state", "action"))
    spans: dict[str, list[Span]] = {}
    for part in parts:
        lost = [name for name in (part.video, part.data) if base + name not in tree.found]
        if part.end_s is not None and not 0 <= part.start_s < part.end_s < math.inf:
            reason = f"its episode {part.episode} would go from {part.start_s} to {part.end_s} s"
        elif lost:
            reason = f"episode {part.episode} needs {lost[0]}, which does not exist"
        else:
            table = tree.found[base + part.data]
            sidecar = SidecarFile(
                table.address,
                table.mtime_ns,
                table.etag,
                part.episode if is_newer else None,
                part.start_s,
                state_names,
                action_names,
            )
            origin = f"episode {part.episode}"
            group = f"{dataset.base}{origin}"
            span = Span(part.start_s, part.end_s, part.label, None, sidecar, origin, group)
            spans.setdefault(part.video, []).append(span)
            continue
        tree.ignored.append(Ignored(f"{dataset.where}/{part.video}", reason, is_wanted=True))
    for name in inside:
        if is_video(name) and name[len(base) :] not in spans:
            tree.ignored.append(Ignored(tree.found[name].uri, "no episode of its LeRobot data set names it"))
    tree.is_used.update(inside)
    return [
        source_file(tree.found[base + name], tuple(sorted(found, key=lambda span: span.start_s)))
        for name, found in spans.items()
    ]


def _parts_v2(dataset: Dataset, cameras: list[str]) -> Iterator[Part]:
    """A file for each episode and camera."""
    chunk = dataset.whole("chunks_size", 1000)
    label_of = _labels(dataset)
    name = f"{dataset.base}meta/episodes.jsonl"
    for number, row in _json_lines(dataset, "meta/episodes.jsonl"):
        where = f"{dataset.tree.where.rstrip('/')}/{name} line {number}"
        episode = _index(row.get("episode_index"), where, "episode_index")
        fields = {"episode_index": episode, "episode_chunk": episode // chunk}
        data = fill(dataset, "data_path", fields)
        for camera in cameras:
            video = fill(dataset, "video_path", fields | {"video_key": camera})
            yield Part(episode, video, data, 0.0, None, label_of(row))


def _parts_v3(dataset: Dataset, cameras: list[str]) -> Iterator[Part]:
    """Several episodes one after the other in a file; the table of episodes says from when to when."""
    label_of = _labels(dataset)
    start = f"{dataset.base}meta/episodes/"
    tables = sorted(n for n in dataset.tree.found if n.startswith(start) and n.endswith(".parquet"))
    if not tables:
        raise DataError(f"{dataset.where} has no meta/episodes/*/*.parquet: its episodes are not known")
    place = ("chunk_index", "file_index")
    spans = ("from_timestamp", "to_timestamp")
    wanted = ["episode_index", *(f"data/{key}" for key in place)]
    wanted += [f"videos/{camera}/{key}" for camera in cameras for key in (*place, *spans)]
    for name in tables:
        where = f"{dataset.tree.where.rstrip('/')}/{name}"
        for number, row in enumerate(_rows(dataset.tree, name, where, wanted, ["tasks", "task_index"]), 1):
            spot = f"{where} row {number}"
            whole = {key: _index(row[key], spot, key) for key in wanted if key.endswith("_index")}
            episode = whole["episode_index"]
            data = fill(dataset, "data_path", {key: whole[f"data/{key}"] for key in place})
            for camera in cameras:
                fields = {key: whole[f"videos/{camera}/{key}"] for key in place}
                video = fill(dataset, "video_path", fields | {"video_key": camera})
                times = [row[f"videos/{camera}/{key}"] for key in spans]
                start_s, end_s = (float(t) if isinstance(t, (int, float)) else math.nan for t in times)
                yield Part(episode, video, data, start_s, end_s, label_of(row))


def fill(dataset: Dataset, key: str, fields: Mapping[str, int | str]) -> str:
    """A path template with its fields put in: plain names and widths, none of str.format's other powers.

    Raises: DataError for any other field, and for a path that leaves the folder.
    """
    template = dataset.text(key)

    def put(match: re.Match[str]) -> str:
        name, width = match.groups()
        if name not in fields:
            known = ", ".join(sorted(fields))
            raise DataError(f"{dataset.where}/{INFO}: `{key}` has a field {name!r}; known are {known}")
        value = fields[name]
        return f"{value:0{int(width)}d}" if width and isinstance(value, int) else str(value)

    if re.search(r"[{}]", FIELD.sub("", template)):
        raise DataError(f"{dataset.where}/{INFO}: `{key}` is {template!r}; fields look like {{name:03d}}")
    path = FIELD.sub(put, template)
    if path.startswith("/") or "://" in path or ".." in path.split("/"):
        raise DataError(f"{dataset.where}/{INFO}: `{key}` leads out of the data set, to {path!r}")
    return path


def _index(value: object, where: str, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(f"{where}: `{key}` is {value!r}; need a whole number")
    return value


def _labels(dataset: Dataset) -> Callable[[dict[str, Any]], str | None]:
    """From an episode's row to the text of its tasks, looked up by number where it names no text."""
    texts: dict[int, str] = {}

    def text_of(task: object) -> str:
        if isinstance(task, int):
            if not texts:
                texts.update(_tasks(dataset))
            return texts.get(task, f"task {task}")
        return printable(str(task))

    def label(row: dict[str, Any]) -> str | None:
        tasks = row.get("tasks") if row.get("tasks") is not None else row.get("task_index")
        found = tasks if isinstance(tasks, list) else [] if tasks is None else [tasks]
        return "; ".join(dict.fromkeys(map(text_of, found))) or None

    return label


def _tasks(dataset: Dataset) -> Iterator[tuple[int, str]]:
    tree, base = dataset.tree, dataset.base
    if f"{base}meta/tasks.jsonl" in tree.found:
        for number, row in _json_lines(dataset, "meta/tasks.jsonl"):
            where = f"{dataset.where}/meta/tasks.jsonl line {number}"
            yield _index(row.get("task_index"), where, "task_index"), str(row.get("task"))
    elif f"{base}meta/tasks.parquet" in tree.found:
        where = f"{dataset.where}/meta/tasks.parquet"
        texts = ["task", "__index_level_0__"]  # pandas' index, under its own name or none
        for row in _rows(tree, f"{base}meta/tasks.parquet", where, ["task_index"], texts):
            text = next((row[key] for key in texts if key in row), None)
            yield _index(row["task_index"], where, "task_index"), str(text)


def _json_lines(dataset: Dataset, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    where = f"{dataset.where}/{name}"
    if dataset.base + name not in dataset.tree.found:
        raise DataError(f"{where} does not exist: this LeRobot data set is not whole")
    for number, line in enumerate(dataset.tree.read(dataset.base + name).splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} line {number} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{where} line {number} is no JSON object")
            yield number, row


def _rows(
    tree: Tree, name: str, where: str, wanted: list[str], optional: list[str]
) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(tree.read(name)))
        here = set(file.schema_arrow.names)
        missing = [key for key in wanted if key not in here]
        if missing:
            raise DataError(f"{where} has no column {missing[0]}; it has {', '.join(sorted(here)[:20])}")
        for batch in file.iter_batches(columns=[*wanted, *(key for key in optional if key in here)]):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where} cannot be read: {error}") from error


def _names(feature: object) -> tuple[str, ...]:
    """The names of a feature's numbers: a list, or a list for each kind of joint, or nothing."""
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, dict):
        names = [name for group in names.values() if isinstance(group, list) for name in group]
    return tuple(printable(str(name)) for name in names) if isinstance(names, list) else ()
