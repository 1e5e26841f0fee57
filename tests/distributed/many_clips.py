"""A data set of many small parts, for tests that stop or lose something while it is made."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.config import DataConfig
from tests.data_pipeline.conftest import tiny_config
from tests.data_pipeline.films import noise, write_video


def write_films(folder: Path, number: int) -> Path:
    """So many videos of noise; the folder."""
    for seed in range(number):
        write_video(folder / f"{seed:03d}.mp4", noise(64, seed))
    return folder


def many_clips(films: Path, out: Path) -> DataConfig:
    """Clips of a second in many small parts, so that there is something to lose at every moment."""
    larger = {"cut": {"length_s": 1.0, "stride_s": 0.25}, "encode": {"short_side": 64, "fps": 16.0}}
    return tiny_config(films, out, **larger, ray={"workers": None}, filters={"max_frozen": None})
