"""The batches of one rank: the global order, cut into ranks and micro-batches, loaded by workers.

The global batch of step k is the samples at positions k G to (k + 1) G of the stream, whatever the world
size; rank r of W takes the r-th part of it.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from data_pipeline.errors import DataError, WorkerError, why
from pretrain import pulse
from pretrain.config import Plan
from pretrain.data.copies import Ahead, Copies
from pretrain.data.corpus import Corpus
from pretrain.data.load import STAGES, Loaded, Loader, Request
from pretrain.data.slots import Layout, Slots
from pretrain.masks import Masks, most_numbers
from pretrain.objective.base import Batch
from pretrain.parts import WAIT, marked

WORKER_WORDS = "DataLoader worker (pid"  # so torch begins a sentence, raised wherever the rank is at the time
TIMEOUT_WORDS = "DataLoader timed out"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
GONE = (
    "a loader worker was killed, most often for want of memory: set data.workers, data.prefetch or "
    "data.keep_decoded lower; the same command goes on from the last checkpoint"
)


def num_outstanding(plan: Plan) -> int:
    """Micro-batches that workers hold or work on; without workers, none."""
    return plan.config.data.workers * plan.config.data.prefetch


class RankRequests(Sampler[Request]):
    """One rank's micro-batches from a position of the stream on, without end; slots in turn."""

    def __init__(self, plan: Plan, rank: int, step: int, samples: int, num_slots: int) -> None:
        self._plan, self._rank, self._step, self._samples = plan, rank, step, samples
        self._num_slots = num_slots

    def __iter__(self) -> Iterator[Request]:
        plan, micro = self._plan, self._plan.config.train.micro_batch
        step, samples, count = self._step, self._samples, 0
        while True:
            first = samples + self._rank * plan.rank_batch
            for start in range(first, first + plan.rank_batch, micro):
                yield Request(step, tuple(range(start, start + micro)), count % self._num_slots)
                count += 1
            step, samples = step + 1, samples + plan.config.train.global_batch


def _end_with_rank() -> None:
    """Torch's workers look for their parent every 5 s, not while a decoder hangs, and never if it was gone
    before they had started."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _begin_worker(pulse_file: Path | None, worker: int) -> None:
    """One thread; and signals to the run's whole group are the rank's to answer, which saves and ends it."""
    pulse.join(pulse_file, 1 + worker)
    threading.Thread(target=_end_with_rank, name="end-with-rank", daemon=True).start()
    # Without the interpreter's teardown, as ranks end: a library's thread that is still running then aborts
    # the worker now and then, and torch would tell a run that is done that one was killed.
    atexit.register(os._exit, 0)
    torch.set_num_threads(1)
    keep_freed_memory()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def keep_freed_memory() -> None:
    """Clips of 20 MB come and go: malloc would hand each back to the kernel and have it zeroed anew."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # macOS has none
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)  # older: at most
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def gone(error: RuntimeError) -> DataError | None:
    """What torch raises of a worker that was killed, as one of our errors; None of another error."""
    return WorkerError(GONE) if str(error).startswith(WORKER_WORDS) else None


def _as_it_is(found: Loaded | DataError) -> Loaded | DataError:
    return found


class Batches:
    """This rank's micro-batches on its device, resumable from the number of samples consumed.

    On a GPU the next micro-batch is copied and resized on a stream of its own while the last is computed.
    Raises: DataError, ConfigError, as Corpus and Slots do.
    """

    def __init__(self, plan: Plan, rank: int, device: torch.device) -> None:
        config = plan.config
        self._plan, self._rank, self._device = plan, rank, device
        self.corpus = Corpus(config.data, config.seed)
        self._state_names = self.corpus.state_names
        frames, rows, columns = config.grid
        kinds = max(len(config.objective.masks), len(config.objective.picture_masks))
        self._layout = Layout(
            clips=config.train.micro_batch,
            frames=config.data.frames,
            size=config.data.size,
            numbers=most_numbers(config.train.micro_batch, frames * rows * columns, kinds),
            on_gpu=device.type == "cuda",
        )
        self._num_slots = num_outstanding(plan) + 2  # the one in use, and one that may still be copied
        self._slots = Slots(self._layout, self._num_slots, is_shared=config.data.workers > 0)
        self._copies = Copies(device) if device.type == "cuda" else None
        if self._copies is not None:
            self._slots.pin()
        self._step = self._samples = 0
        self._iterator: Iterator[Loaded | DataError] | None = None
        self._ahead: deque[Ahead | DataError] = deque()
        self._wait_s = 0.0
        self._seconds = np.zeros(len(STAGES))
        self._clips = 0

    def seek(self, step: int, samples: int) -> None:
        """Go on as after `step` steps that consumed `samples` samples."""
        self.close()
        self._step, self._samples = step, samples

    def take(self, count: int) -> Iterator[Batch]:
        """The next `count` micro-batches; each is valid until the next is taken.

        Raises: DataError when no worker delivers, or past what can be replaced; StorageError and RefusedError
        when a store is away.
        """
        for _ in range(count):
            if self._copies is None:
                yield self._batch(self._next())
                continue
            ahead = self._ahead.popleft() if self._ahead else self._copy(self._copies)
            if isinstance(ahead, DataError):
                raise ahead
            self._copies.hand_over(ahead)
            yield self._with(ahead.found, ahead.clips, ahead.masks, ahead.tables)
            self._ahead.append(self._copy(self._copies))  # while the GPU computes what was taken

    def epochs(self, samples: int) -> dict[str, float]:
        """How often the data was gone through by then; in a mixture, each data set, as `/name`."""
        return self.corpus.epochs(samples)

    def take_wait_s(self) -> float:
        """Seconds spent waiting for batches since the last call."""
        waited_s, self._wait_s = self._wait_s, 0.0
        return waited_s

    def take_stage_ms(self) -> dict[str, float]:
        """Milliseconds that a clip took in each stage of a worker, mean since the last call."""
        means = 1000 * self._seconds / max(1, self._clips)
        self._seconds, self._clips = np.zeros(len(STAGES)), 0
        return dict(zip(STAGES, means.tolist(), strict=True))

    def close(self) -> None:
        """End the workers, also one that hangs."""
        iterator, self._iterator = self._iterator, None
        self._ahead.clear()
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            workers = list(getattr(iterator, "_workers", ()))
            iterator._shutdown_workers()
            for worker in workers:
                worker.kill()  # SIGTERM, which torch sends, they leave to the rank
                worker.join()
                _started.discard(worker)

    def _start(self) -> Iterator[Loaded | DataError]:
        data = self._plan.config.data
        # Spawned: forked ones inherit gloo's threads; a fork server and its workers outlive a killed rank
        requests = RankRequests(self._plan, self._rank, self._step, self._samples, self._num_slots)
        self._asked = iter(requests)
        with warnings.catch_warnings():  # of more workers than cores, which is right for a remote store
            warnings.simplefilter("ignore", UserWarning)
            loader: DataLoader[Loaded | DataError] = DataLoader(
                Loader(self._plan.config, self.corpus, self._slots),
                sampler=requests,
                batch_size=None,
                collate_fn=_as_it_is,  # type: ignore[arg-type]  # of single elements, with batch_size None
                num_workers=data.workers,
                multiprocessing_context="spawn" if data.workers else None,
                worker_init_fn=partial(_begin_worker, pulse.file()) if data.workers else None,
                prefetch_factor=data.prefetch if data.workers else None,
                timeout=self._plan.config.batch_timeout_s if data.workers else 0,
            )
            try:
                iterator = iter(loader)
            except OSError as error:
                raise DataError(
                    f"the loader's {data.workers} workers could not be started: {why(error)}; room in "
                    f"/dev/shm, processes or open files are short: lower data.workers, or raise that limit"
                ) from error
        _started.update(getattr(iterator, "_workers", ()))
        return iterator

    @marked(WAIT)
    def _next(self) -> Loaded:
        """What a worker put into the next slot."""
        if self._iterator is None:
            self._iterator = self._start()
        begin_s, asked = time.perf_counter(), next(self._asked)
        pulse.beat("waiting for a batch", asked.step + 1)
        try:
            found = next(self._iterator)
        except RuntimeError as error:
            raise self._named(error, asked) from error
        self._wait_s += time.perf_counter() - begin_s
        if isinstance(found, DataError):
            raise found
        self._seconds += found.seconds
        self._clips += len(found.keys)
        pulse.beat("forward", asked.step + 1)
        return found

    def _named(self, error: RuntimeError, asked: Request) -> Exception:
        """What DataLoader says of its workers, as one of our errors."""
        if str(error).startswith(TIMEOUT_WORDS):
            names = ", ".join(self.corpus.names(asked.positions))
            return WorkerError(
                f"no batch came for {self._plan.config.batch_timeout_s:g} s (data.timeout_s); awaited are "
                f"the samples {names}: a slow store wants a larger data.timeout_s; one that hangs the "
                f"decoder each time can be named in data.exclude"
            )
        return gone(error) or error

    def _batch(self, found: Loaded) -> Batch:
        """The slot's own memory as a batch."""
        slot, tables = found.request.slot, [_tensor(found.states), _tensor(found.actions)]
        return self._with(found, self._slots.floats(slot), self._slots.masks(slot, found.masks), tables)

    def _copy(self, copies: Copies) -> Ahead | DataError:
        """The next batch on its way to the GPU, or why there is none: said when it is its turn."""
        copies.settle()
        try:
            found = self._next()
        except DataError as error:
            return error
        slot = found.request.slot
        views = [self._slots.crop(slot, row, crop) for row, crop in enumerate(found.crops)]
        mirrored = [crop.is_mirrored for crop in found.crops]
        masks = self._slots.masks(slot, found.masks)
        tables = [_tensor(found.states), _tensor(found.actions)]
        return copies.begin(found, views, mirrored, self._layout.size, masks, tables)

    def _with(self, found: Loaded, clips: Tensor, masks: Masks, tables: Sequence[Tensor | None]) -> Batch:
        return Batch(
            step=found.request.step,
            positions=found.request.positions,
            keys=found.keys,
            clips=clips,
            masks=masks,
            states=tables[0],
            actions=tables[1],
            bad=found.bad,
            state_names=self._state_names,
        )


def _tensor(rows: np.ndarray | None) -> Tensor | None:
    return None if rows is None else torch.from_numpy(rows)


_started: set[Any] = set()


@atexit.register
def _kill_workers() -> None:
    """Those of batches that nobody closed: multiprocessing would send SIGTERM and wait for them for ever."""
    if _started and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise that one was killed
    for worker in _started:
        worker.kill()
