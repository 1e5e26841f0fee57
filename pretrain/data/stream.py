"""The batches of one rank: the global order, cut into ranks and micro-batches, decoded by workers.

The global batch of step k is the samples at positions k G to (k + 1) G of the stream, whatever the world
size; rank r of W takes the r-th part of it. A sample that cannot be read is replaced by one that seed and
position name, the same on every run, and reported; a rank is never a sample short.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data_pipeline.errors import DataError
from pretrain.config import Plan, RunConfig
from pretrain.data.augment import normalise, train_view
from pretrain.data.order import Order, batch_digest
from pretrain.data.reader import Clip, ClipReader
from pretrain.masks import sample_masks
from pretrain.objective.base import Batch
from pretrain.rng import stream

MAX_REPLACEMENTS = 20

Place = tuple[int, int]
"""(optimizer step, position in the stream)."""


@dataclass(frozen=True)
class Item:
    """One clip as it leaves a worker, before it is collated."""

    place: Place
    key: str
    view_THWC: torch.Tensor
    state: torch.Tensor | None
    actions: torch.Tensor | None
    bad: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Unreadable:
    """Why there is no batch; told by a worker, raised in the training process."""

    reason: str


class Clips(Dataset[Item | Unreadable]):
    """Decoded, cropped clips at places of the stream."""

    def __init__(self, config: RunConfig, reader: ClipReader, order: Order) -> None:
        self.config, self._reader, self._order = config, reader, order

    def __getitem__(self, place: Place) -> Item | Unreadable:
        _, position = place
        config, number = self.config, self._order.at(place[1])
        bad: list[tuple[str, str]] = []
        for attempt in range(MAX_REPLACEMENTS):
            try:
                clip = self._read(number, position)
            except DataError as error:
                bad.append((self._reader.keys[number], str(error)))
                number = int(stream(config.seed, "replace", position, attempt).integers(len(self._reader)))
                continue
            rng = stream(config.seed, "crop", position)
            view = train_view(clip.frames_THWC, config.data.size, config.augment, rng)
            return Item(place, clip.key, view, _tensor(clip.state), _tensor(clip.actions), tuple(bad))
        return Unreadable(f"{len(bad)} samples in a row cannot be read; the last, {bad[-1][0]}: {bad[-1][1]}")

    def _read(self, number: int, position: int) -> Clip:
        rng = stream(self.config.seed, "start", position)
        data = self.config.data
        return self._reader.read(number, data.frames, data.fps, start=lambda spare: rng.uniform(0.0, spare))


def _tensor(rows: Any) -> torch.Tensor | None:
    return None if rows is None else torch.from_numpy(rows)


class Collate:
    """Items of one micro-batch to a Batch with its masks; runs in the workers."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def __call__(self, found: Sequence[Item | Unreadable]) -> Batch | Unreadable:
        def stack(rows: list[torch.Tensor | None]) -> torch.Tensor | None:
            present = [row for row in rows if row is not None]
            return torch.stack(present) if len(present) == len(rows) else None

        items = [item for item in found if isinstance(item, Item)]
        for item in found:
            if isinstance(item, Unreadable):
                return item
        config, step = self._config, items[0].place[0]
        positions = [item.place[1] for item in items]
        return Batch(
            step=step,
            keys=tuple(item.key for item in items),
            clips=torch.stack([item.view_THWC for item in items]),
            masks=sample_masks(config.objective.masks, config.grid, config.seed, step, positions),
            states=stack([item.state for item in items]),
            actions=stack([item.actions for item in items]),
            bad=tuple(found for item in items for found in item.bad),
        )


class RankPlaces(Sampler[list[Place]]):
    """Places of one rank's micro-batches from a position of the stream on, without end."""

    def __init__(self, plan: Plan, rank: int, step: int, samples: int) -> None:
        self._plan, self._rank, self._step, self._samples = plan, rank, step, samples

    def __iter__(self) -> Iterator[list[Place]]:
        plan, micro = self._plan, self._plan.config.train.micro_batch
        step, samples = self._step, self._samples
        while True:
            first = samples + self._rank * plan.rank_batch
            for start in range(first, first + plan.rank_batch, micro):
                yield [(step, position) for position in range(start, start + micro)]
            step, samples = step + 1, samples + plan.config.train.global_batch


def _begin_worker(_: int) -> None:
    """One thread; and signals to the run's whole group are the rank's to answer, which saves and ends it."""
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class Batches:
    """This rank's micro-batches on its device, resumable from the number of samples consumed."""

    def __init__(self, plan: Plan, rank: int, device: torch.device) -> None:
        config = plan.config
        self._plan, self._rank, self._device = plan, rank, device
        self._reader = ClipReader(config.data.shards, config.data.split)
        self._order = Order(config.seed, self._reader.shard_sizes, config.data.shuffle_window)
        self._clips = Clips(config, self._reader, self._order)
        self._step = self._samples = 0
        self._iterator: Iterator[Batch | Unreadable] | None = None
        self._wait_s = 0.0

    @property
    def reader(self) -> ClipReader:
        return self._reader

    @property
    def num_samples(self) -> int:
        return self._order.num_samples

    def seek(self, step: int, samples: int) -> None:
        """Go on as after `step` steps that consumed `samples` samples."""
        self.close()
        self._step, self._samples = step, samples

    def take(self, count: int) -> Iterator[Batch]:
        """The next `count` micro-batches, clips normalised on the device."""
        if self._iterator is None:
            self._iterator = self._start()
        for _ in range(count):
            begin_s = time.perf_counter()
            batch = self._next(self._iterator)
            self._wait_s += time.perf_counter() - begin_s
            clips = normalise(batch.clips.to(self._device, non_blocking=True))
            yield batch.with_clips(clips, self._device)

    def _next(self, iterator: Iterator[Batch | Unreadable]) -> Batch:
        try:
            batch = next(iterator)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                "a loader worker was killed, most often for want of memory: "
                "set data.workers lower; the same command goes on from the last checkpoint"
            ) from error
        if isinstance(batch, Unreadable):
            raise DataError(batch.reason)
        return batch

    def take_wait_s(self) -> float:
        """Seconds spent waiting for batches since the last call."""
        waited_s, self._wait_s = self._wait_s, 0.0
        return waited_s

    def digest(self, samples: int) -> str:
        """Digest of the global batch that begins at a position of the stream, over all ranks."""
        positions = range(samples, samples + self._plan.config.train.global_batch)
        return batch_digest([self._reader.keys[self._order.at(p)] for p in positions])

    def close(self) -> None:
        """End the workers."""
        self._iterator = None

    def _start(self) -> Iterator[Batch | Unreadable]:
        workers = self._plan.config.data.workers
        # spawned: forked ones inherit gloo's threads; a fork server and its workers outlive a killed rank
        loader: DataLoader[Batch | Unreadable] = DataLoader(
            self._clips,  # type: ignore[arg-type]
            batch_sampler=RankPlaces(self._plan, self._rank, self._step, self._samples),
            collate_fn=Collate(self._plan.config),
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            worker_init_fn=_begin_worker if workers else None,
            prefetch_factor=4 if workers else None,
            pin_memory=self._device.type == "cuda",
        )
        return iter(loader)


def check_first_clip(config: RunConfig, reader: ClipReader) -> None:
    """Read one clip as training will, so that a wrong length or a missing decoder is said before any start.

    Raises: DataError.
    """
    reader.read(0, config.data.frames, config.data.fps)
