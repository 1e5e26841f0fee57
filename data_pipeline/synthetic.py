"""Rendered physics videos whose true state and actions are known.

A disc, square or triangle moves, bounces off the walls and is pushed by an action on every frame.
Behind it a noise texture ("leaves") drifts on a random walk of its own, which says nothing of the object.

Shape legend: F frames, H height, W width, S state size, A action size.
Positions are shares of the frame (0..1, x to the right, y down), velocities frame widths a second,
accelerations (the actions) frame widths a second squared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import WorkerError
from data_pipeline.progress import Progress

Floats = NDArray[np.float32]
STATE_NAMES = ("x", "y", "vx", "vy", "bx", "by", "radius", "shape", "colour")
ACTION_NAMES = ("ax", "ay")
SHAPES = ("disc", "square", "triangle")
COLOURS = np.array(
    [[230, 40, 40], [40, 200, 60], [50, 90, 240], [245, 200, 30], [220, 50, 210], [30, 210, 220]], np.float32
)

MAX_SPEED = 1.2  # frame widths a second
START_SPEED = (0.35, 0.8)
PUSH = 1.6  # standard deviation of an action
PUSH_HOLD_S = 0.4  # an action is drawn anew about this often
DRIFT_STEP = 0.5  # random walk of the background's velocity, per square root of a second
MAX_DRIFT = 0.35
TEXTURE_SCALE = 2  # the texture repeats after this many frame sizes


@dataclass(frozen=True)
class Look:
    """Size and clock of a rendered video."""

    size: int = 96
    fps: float = 16.0
    duration_s: float = 6.0

    @property
    def num_frames(self) -> int:
        return round(self.duration_s * self.fps)


def generator(seed: int, index: int) -> np.random.Generator:
    """The random stream of video `index`: a function of (seed, index) alone."""
    return np.random.Generator(np.random.PCG64([seed, index, 0x5EED]))


def _bounce(position: float, velocity: float, low: float, high: float) -> tuple[float, float]:
    """Reflect at the walls; a step never crosses both."""
    if position < low:
        return 2 * low - position, abs(velocity)
    if position > high:
        return 2 * high - position, -abs(velocity)
    return position, velocity


def simulate(rng: np.random.Generator, num_frames: int, fps: float = 16.0) -> tuple[Floats, Floats]:
    """One object's motion and its background's drift.

    Returns: states (F, S) float32 in the order of STATE_NAMES, actions (F, A) float32:
    actions[k] is the acceleration held from frame k to frame k + 1.
    """
    dt = 1.0 / fps
    shape, colour = int(rng.integers(len(SHAPES))), int(rng.integers(len(COLOURS)))
    radius = float(rng.uniform(0.10, 0.16))
    low, high = radius, 1.0 - radius
    position = rng.uniform(low, high, 2)
    heading = rng.uniform(0, 2 * np.pi)
    velocity = rng.uniform(*START_SPEED) * np.array([np.cos(heading), np.sin(heading)])
    hold = max(1, round(PUSH_HOLD_S * fps))
    pushes = rng.normal(0, PUSH, (num_frames // hold + 2, 2))
    actions = np.repeat(pushes, hold, axis=0)[int(rng.integers(hold)) :][:num_frames]
    wind = rng.normal(0, DRIFT_STEP * np.sqrt(dt), (num_frames, 2))
    drift, offset = rng.uniform(-0.15, 0.15, 2), rng.uniform(0, 1, 2)

    states = np.empty((num_frames, len(STATE_NAMES)), np.float32)
    for frame in range(num_frames):
        states[frame] = (*position, *velocity, *offset, radius, shape, colour)
        velocity = velocity + actions[frame] * dt
        speed = float(np.hypot(*velocity))
        if speed > MAX_SPEED:
            velocity *= MAX_SPEED / speed
        moved = [_bounce(p + v * dt, v, low, high) for p, v in zip(position, velocity, strict=True)]
        position, velocity = np.array([m[0] for m in moved]), np.array([m[1] for m in moved])
        drift = np.clip(0.98 * drift + wind[frame], -MAX_DRIFT, MAX_DRIFT)
        offset = offset + drift * dt
    return states, actions.astype(np.float32)


def render_texture(rng: np.random.Generator, size: int) -> Floats:
    """Smooth noise of mid contrast that tiles without seams: (size, size, 3) float32 in 0..255."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]) * size
    envelope = np.where(frequency < 6.0, 0.0, 1.0 / (12.0 + frequency) ** 1.5)
    noise = rng.normal(size=(4, size, size))
    smooth = np.fft.irfft2(np.fft.rfft2(noise) * envelope, s=(size, size))
    smooth /= smooth.std(axis=(1, 2), keepdims=True)
    grey, tint = smooth[0], smooth[1:]
    texture = 115.0 + 26.0 * grey[..., None] + 12.0 * np.moveaxis(tint, 0, -1)
    return np.clip(texture, 20, 215).astype(np.float32)


def _lerp_rows(image: Floats, start: float, length: int, axis: int) -> Floats:
    """`length` rows from a fractional, wrapping start, along one axis of a texture."""
    whole = int(np.floor(start))
    share = np.float32(start - whole)
    rows = (whole + np.arange(length + 1)) % image.shape[axis]
    taken = image.take(rows, axis=axis)
    first, second = (taken[:-1], taken[1:]) if axis == 0 else (taken[:, :-1], taken[:, 1:])
    return first + share * (second - first)


def coverage(shape: int, x: Floats, y: Floats, radius: float) -> Floats:
    """Share of each pixel under a shape, edges softened over one pixel.

    x, y: offsets from the shape's centre in pixels. radius: of the disc of about the same area, in pixels.
    """
    if SHAPES[shape] == "disc":
        distance = np.hypot(x, y) - radius
    elif SHAPES[shape] == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.89 * radius
    else:
        half = np.float32(np.sqrt(3) / 2)
        distance = np.maximum(y, np.abs(x) * half - y * np.float32(0.5)) - 0.68 * radius
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def render_frames(states: Floats, texture: Floats, size: int) -> NDArray[np.uint8]:
    """Draw each state over its background.

    states: (F, S). texture: (N, N, 3) float32, tiling. Returns: (F, size, size, 3) uint8 RGB.
    """
    frames = np.empty((len(states), size, size, 3), np.uint8)
    centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
    for frame, (x, y, _, _, bx, by, radius, shape, colour) in enumerate(states.astype(np.float64)):
        rows = _lerp_rows(texture, by * size, size, axis=0)
        image = _lerp_rows(rows, bx * size, size, axis=1)
        cover = coverage(
            int(shape), (centres - x * size)[None, :], (centres - y * size)[:, None], radius * size
        )[..., None]
        image += cover * (COLOURS[int(colour)] - image)
        frames[frame] = image + np.float32(0.5)
    return frames


def video_name(index: int) -> str:
    return f"video-{index:06d}.mp4"


def render_video(folder: str | Path, index: int, seed: int, look: Look | None = None) -> Path:
    """Write video `index` and its sidecar `.npz` (t, state, actions, names); returns the video's path."""
    look = look or Look()
    rng = generator(seed, index)
    states, actions = simulate(rng, look.num_frames, look.fps)
    frames = render_frames(states, render_texture(rng, look.size * TEXTURE_SCALE), look.size)
    return write_video(folder, index, frames, states, actions, look.fps, STATE_NAMES)


def write_video(
    folder: str | Path,
    index: int,
    frames: NDArray[np.uint8],
    states: Floats,
    actions: Floats,
    fps: float,
    state_names: tuple[str, ...],
) -> Path:
    """Write frames (F, size, size, 3) as a video, and beside it states and actions as its sidecar `.npz`.

    The sidecar comes first and the video is renamed into place, so a video found there is whole.
    """
    from data_pipeline.encode import encode_frames

    path, size = Path(folder) / video_name(index), frames.shape[1]
    np.savez(
        path.with_suffix(".npz"),
        t=np.arange(len(frames)) / fps,
        state=states,
        actions=actions,
        state_names=np.array(state_names),
        action_names=np.array(ACTION_NAMES),
    )
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(encode_frames([frames], size, size, fps, gop=48, crf=15, preset="veryfast"))
    partial.replace(path)
    return path


def _render_range(folder: str, seed: int, look: Look, indices: range) -> int:
    for index in indices:
        render_video(folder, index, seed, look)
    return len(indices)


def render_videos(
    folder: str | Path,
    num_videos: int,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
    look: Look | None = None,
) -> None:
    """Render videos 0..num_videos-1 into `folder`, in `workers` processes (None: one for each core).

    Equal (seed, num_videos, look) give equal bytes whatever the number of workers.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    in_processes(_render_range, (str(folder), seed, look or Look()), num_videos, workers, progress)


def in_processes(
    job: Callable[..., int],
    given: tuple[object, ...],
    num_videos: int,
    workers: int | None,
    progress: Progress | None,
) -> None:
    """Call job(*given, indices), which says how many it did, for ranges of 0..num_videos-1.

    job: a function that another process can import. workers: processes; None: one for each core. What ends
    this call ends them, after the few videos that they are at; they do not outlive this process.
    Raises: WorkerError when one is killed; what the job raises.
    """
    import multiprocessing
    import os
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    workers = workers or len(os.sched_getaffinity(0))
    batches = [range(start, min(start + 4, num_videos)) for start in range(0, num_videos, 4)]
    done = 0
    report = progress or (lambda stage, done, total, note: None)
    report("render", 0, num_videos, "")
    if workers == 1:
        for batch in batches:
            done += job(*given, batch)
            report("render", done, num_videos, "")
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin_worker, initargs=(os.getpid(),)
    ) as pool:
        try:
            jobs = [pool.submit(job, *given, batch) for batch in batches]
            for finished in as_completed(jobs):
                done += finished.result()
                report("render", done, num_videos, "")
        except BrokenProcessPool as error:
            where = (
                '; in a script of your own, the call belongs under `if __name__ == "__main__":`'
                if not done
                else ""
            )
            raise WorkerError(
                f"a process that renders was killed, {done} of {num_videos} are done (out of memory?): "
                f"the same command goes on{where}"
            ) from error
        except BaseException:  # Ctrl-C too: without this all that was asked for would be rendered first
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin_worker(parent: int) -> None:
    """End with the process that asked, however that ends (Linux only), and leave Ctrl-C to it."""
    import os
    import signal
    import sys

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it was gone before the call
        os._exit(1)
