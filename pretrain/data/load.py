"""What a loader worker does: read, decode, crop and mask the clips of one micro-batch, into its slot.

A sample that cannot be read is replaced by one that seed and position name, the same on every run, and
reported; a batch is never a sample short.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data_pipeline.errors import DataError
from pretrain import pulse
from pretrain.config import RunConfig
from pretrain.data.augment import draw_view
from pretrain.data.corpus import Corpus, Spot
from pretrain.data.reader import Clip, Sample
from pretrain.data.slots import Crop, Slots
from pretrain.masks import Masks, sample_masks
from pretrain.rng import stream

MAX_REPLACEMENTS = 20
STAGES = ("read", "decode", "crop", "mask")


@dataclass(frozen=True)
class Request:
    """One micro-batch: samples at `positions` of the stream for optimizer step `step`, wanted in `slot`."""

    step: int
    positions: tuple[int, ...]
    slot: int


@dataclass(frozen=True)
class Loaded:
    """What is in the slot of a request.

    masks: without their tensors. seconds: that each of STAGES took in the worker.
    """

    request: Request
    keys: tuple[str, ...]
    crops: tuple[Crop, ...]
    masks: Masks
    states: NDArray[np.float32] | None
    actions: NDArray[np.float32] | None
    bad: tuple[tuple[str, str], ...]
    seconds: tuple[float, ...]


class Laps:
    """Adds up the seconds of each stage, by the wall's clock."""

    clock = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._mark = self.clock()

    def lap(self, stage: str) -> None:
        now = self.clock()
        self.seconds[stage] += now - self._mark
        self._mark = now
        pulse.beat()


class Loader(Dataset[Loaded | DataError]):
    """Answers requests. Errors that end the run are answers too, to be raised in the training process."""

    def __init__(self, config: RunConfig, corpus: Corpus, slots: Slots) -> None:
        self._config, self._corpus, self._slots = config, corpus, slots
        self._excluded = frozenset(config.data.exclude)

    def __getitem__(self, request: Request) -> Loaded | DataError:
        try:
            return self._load(request)
        except DataError as error:
            return error

    def _load(self, request: Request) -> Loaded:
        config, corpus, laps = self._config, self._corpus, Laps()
        corpus.prefetch(request.positions[-1])
        spots = [corpus.spot(position) for position in request.positions]
        fetched = self._fetch(spots)
        laps.lap("read")
        clips, crops, bad = [], [], []
        for row, (position, spot, sample) in enumerate(zip(request.positions, spots, fetched, strict=True)):
            clip, spot, passed = self._decode(position, spot, sample)
            bad += passed
            laps.lap("decode")
            height, width = clip.frames_THWC.shape[1:3]
            view = draw_view(height, width, config.augment, stream(config.seed, "crop", spot.epoch, clip.key))
            crops.append(self._slots.write_clip(request.slot, row, clip.frames_THWC, view))
            clips.append(replace(clip, frames_THWC=clip.frames_THWC[:0]))
            laps.lap("crop")
        has_stills = config.model.encoder.pictures == "own"
        masks = sample_masks(
            config.objective.masks,
            config.grid,
            config.seed,
            request.step,
            request.positions,
            truncate=config.objective.truncate,
            pictures=[has_stills and clip.meta.num_frames == 1 for clip in clips],
            picture_configs=config.objective.picture_masks if has_stills else (),
        )
        self._slots.write_masks(request.slot, masks)
        laps.lap("mask")
        return Loaded(
            request,
            tuple(clip.key for clip in clips),
            tuple(crops),
            masks.shape,
            _stack([clip.state for clip in clips]),
            _stack([clip.actions for clip in clips]),
            tuple(bad),
            tuple(laps.seconds.values()),
        )

    def _fetch(self, spots: Sequence[Spot]) -> list[Sample | DataError]:
        found: dict[Spot, Sample | DataError] = {}
        for source, reader in enumerate(self._corpus.readers):
            own = [spot for spot in dict.fromkeys(spots) if spot.source == source]
            found |= zip(own, reader.fetch([spot.number for spot in own]), strict=True)
        return [found[spot] for spot in spots]

    def _decode(
        self, position: int, spot: Spot, sample: Sample | DataError
    ) -> tuple[Clip, Spot, list[tuple[str, str]]]:
        """The clip of a position or what stands in for it, and ids and reasons of the unreadable."""
        bad: list[tuple[str, str]] = []
        for attempt in range(1, MAX_REPLACEMENTS + 1):
            name, why = self._corpus.name(spot), "data.exclude names it"
            if name not in self._excluded:
                try:
                    return self._clip(spot, sample), spot, bad
                except DataError as error:
                    why = str(error)
                    bad.append((name, why))
            spot = self._corpus.another(position, attempt)
            sample = self._fetch([spot])[0]
        raise DataError(f"{MAX_REPLACEMENTS} samples in a row cannot be read; the last, {name}: {why}")

    def _clip(self, spot: Spot, sample: Sample | DataError) -> Clip:
        if isinstance(sample, DataError):
            raise sample
        config = self._config
        rng = stream(config.seed, "start", spot.epoch, sample.key)
        return self._corpus.readers[spot.source].decode(
            sample,
            config.data.frames,
            config.data.fps,
            start=lambda spare_s: rng.uniform(0.0, spare_s),
            holds=config.data.short_clips == "hold",
        )


def _stack(rows: list[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    """One array, or None where a clip has none or another width, as in a mixture."""
    present = [row for row in rows if row is not None]
    if len(present) < len(rows) or len({row.shape for row in present}) > 1:
        return None
    return np.stack(present)
