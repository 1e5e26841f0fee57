"""Videos of a world in a folder: each with its sidecar, and a list with their labels and splits."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.progress import Progress
from data_pipeline.synthetic import ACTION_NAMES, SHAPES, in_processes, video_name, write_video
from data_pipeline.worlds.motion import actions_of, start
from data_pipeline.worlds.scene import begin, render, state_names, state_row, step
from data_pipeline.worlds.settings import World

LIST_FILE = "videos.csv"
SHUFFLE = 0x5117F


def simulated(
    world: World, seed: int, index: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Frames (F, S, S, 3), states (F, N) and the true actions (F, 2) of video `index`."""
    actions = actions_of(world, seed, index)
    state, scene = begin(world, seed, index)
    frames, states = [], []
    for action in actions:
        frames.append(render(state, scene))
        states.append(state_row(state, scene))
        state = step(world, state, action)
    return np.stack(frames), np.stack(states), actions


def partner_of(index: int, num_videos: int, seed: int) -> int:
    """Another video, whose actions a shuffled set records for `index`; a different one for each.

    The videos stand in a random ring, and each takes what the next one has.
    """
    ring = np.random.Generator(np.random.PCG64([seed, num_videos, SHUFFLE])).permutation(num_videos)
    place = int(np.nonzero(ring == index)[0][0])
    return int(ring[(place + 1) % num_videos])


def recorded_actions(world: World, seed: int, index: int, num_videos: int) -> NDArray[np.float32]:
    """What the sidecar of video `index` of `num_videos` says its actions were: (F, 2)."""
    if world.actions == "zero":
        return np.zeros((world.num_frames, len(ACTION_NAMES)), np.float32)
    told = partner_of(index, num_videos, seed) if world.actions == "shuffled" else index
    return actions_of(world, seed, told)


def render_world_video(folder: str | Path, world: World, index: int, num_videos: int, seed: int) -> Path:
    """Write video `index` of `num_videos` and its sidecar; returns the video's path."""
    frames, states, _ = simulated(world, seed, index)
    actions = recorded_actions(world, seed, index, num_videos)
    return write_video(folder, index, frames, states, actions, world.fps, state_names(world))


def world_list(num_videos: int, seed: int, eval_fraction: float) -> str:
    """The list's text: `uri,label,split`; the label is the shape's name, and the last videos are for eval."""
    sink = io.StringIO()
    rows = csv.writer(sink, lineterminator="\n")
    rows.writerow(("uri", "label", "split"))
    first_eval = num_videos - round(num_videos * eval_fraction)
    for index in range(num_videos):
        label = SHAPES[start(seed, index)[3]]
        rows.writerow((video_name(index), label, "eval" if index >= first_eval else "train"))
    return sink.getvalue()


def _render_range(
    folder: str, world: World, num_videos: int, seed: int, indices: range
) -> int:  # positional: it goes to another process
    for index in indices:
        render_world_video(folder, world, index, num_videos, seed)
    return len(indices)


def render_world(
    folder: str | Path,
    world: World,
    num_videos: int,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
    eval_fraction: float = 0.25,
) -> Path:
    """Render videos 0..num_videos-1 of a world, in `workers` processes (None: one for each core).

    Returns: the list to shard (`sources: [folder/videos.csv]`), which is written last, so where it is the
    videos are whole. Equal (world, num_videos, seed) give equal bytes whatever the number of workers.
    Raises: ValueError for one video whose actions are to be shuffled.
    """
    if world.actions == "shuffled" and num_videos < 2:
        raise ValueError(f"actions are shuffled among {num_videos} video: need two at least")
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    in_processes(_render_range, (str(where), world, num_videos, seed), num_videos, workers, progress)
    found = where / LIST_FILE
    partial = found.with_name(f".{LIST_FILE}.part")
    partial.write_text(world_list(num_videos, seed, eval_fraction))
    partial.replace(found)
    return found
