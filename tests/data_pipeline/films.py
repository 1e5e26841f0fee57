"""Videos drawn for tests of the whole pipeline, and a job's progress that nobody looks at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipeline.encode import encode_frames


def quiet(stage: str, done: int, total: int, note: str) -> None:
    pass


def write_video(path: Path, frames: np.ndarray, fps: float = 16.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    path.write_bytes(encode_frames([frames], width, height, fps, gop=16, crf=12, preset="veryfast"))
    return path


def noise(num_frames: int, seed: int = 0, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    """Frames of moving blobs: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 220, (num_frames // 4 + 2, 6, 9, 3)).astype(np.float32)
    steps = np.linspace(0, len(coarse) - 1.01, num_frames)
    low, part = steps.astype(int), (steps % 1)[:, None, None, None]
    mixed = coarse[low] * (1 - part) + coarse[low + 1] * part
    return np.kron(mixed, np.ones((1, size[0] // 6 + 1, size[1] // 9 + 1, 1)))[
        :, : size[0], : size[1]
    ].astype(np.uint8)


def write_list(folder: Path, rows: list[str]) -> Path:
    (folder / "list.csv").write_text("\n".join(["uri,start_s,end_s,label,actions", *rows]) + "\n")
    return folder / "list.csv"
