"""What feeding the ranks takes: cores that decode, and bytes that are read.

Measured: CPU of a clip in benchmarks/results/loader.json (16 frames of 256² at 4 a second, out of 4 s), its
bytes in shard.json (4 s, short side 256). Another clip's are taken to grow with its seconds and its pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config import RunConfig

SECONDS, SIZE = 4.0, 256  # of the clips that were measured
CPU_MS = {"mp4": 11.41, "jpeg": 6.61}  # loader.json: as for a GPU, CPU by stage, all
CPU_MS_FLOATS = {"mp4": 17.05, "jpeg": 11.28}  # loader.json: ready floats, as for a CPU rank
BYTES = {"mp4": 123_564.0, "jpeg": 1_323_140.0}  # shard.json: size


@dataclass(frozen=True)
class Loading:
    """Of one encoding. cores: that all ranks together keep busy. clips_per_s: that a rank's workers, as
    configured, deliver at most; bytes_per_s: read by all.
    """

    encoding: str
    cpu_ms: float
    bytes_a_clip: float
    cores: float
    clips_per_s: float
    bytes_per_s: float


def clip_cost(config: RunConfig, encoding: str, device: str) -> tuple[float, float]:
    """CPU seconds and bytes of a clip."""
    data = config.data
    size = (data.frames / data.fps / SECONDS) * (data.size / SIZE) ** 2
    cpu_ms = (CPU_MS if device == "cuda" else CPU_MS_FLOATS)[encoding]
    return cpu_ms / 1000 * size, BYTES[encoding] * size


def loading(config: RunConfig, encoding: str, device: str, clips_per_s: float) -> Loading:
    """For a run that takes so many clips a second, all ranks together."""
    cpu_s, size = clip_cost(config, encoding, device)
    return Loading(
        encoding=encoding,
        cpu_ms=1000 * cpu_s,
        bytes_a_clip=size,
        cores=clips_per_s * cpu_s,
        clips_per_s=max(1, config.data.workers) / cpu_s,
        bytes_per_s=clips_per_s * size,
    )
