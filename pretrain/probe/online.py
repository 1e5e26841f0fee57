"""Probes while training: fixed clips through the moving average, their small features fitted beside training.

A probing stops training for the forwards alone: every rank runs the encoder over its part of the clips and
pools their tokens; what is pooled is gathered, and a thread of the first rank fits on it what the offline
probe fits on more. Nothing random is drawn, so a run is the same with and without. The same clips through the
untrained encoder are the baseline, computed once a run.

Shapes: R clips of a rank, t tubelets a clip, P places a tubelet, N tokens, D width.
"""

from __future__ import annotations

import hashlib
import json
import math
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import DataError
from data_pipeline.storage import write_whole
from pretrain import pulse
from pretrain.checkpoint import patiently, untrained_encoder
from pretrain.checkpoint.retention import PROBES_FILE
from pretrain.config import Plan
from pretrain.data.augment import normalise
from pretrain.model.vit import Encoder
from pretrain.probe.clips import place_features, places_grid
from pretrain.probe.held import Fixed, HeldClips, fixed_clips
from pretrain.probe.result import add_line, read_json
from pretrain.probe.ridge import Halves
from pretrain.probe.scores import Scores, Truth, score_pooled
from pretrain.strategy.base import Engine
from pretrain.tracking.base import Value

BASELINE_FILE = "probe_baseline.json"
UNREADABLE_ONE_IN = 10
BASELINE = -1  # the step of the untrained encoder, among the fits


class OnlineProbe:
    """Of one run, on every rank. `take` and `go_back` are called by all ranks together.

    say: takes a sentence for the user, on rank 0. resumed_at: results of later steps will come again.
    """

    def __init__(
        self, run: Path, plan: Plan, engine: Engine, say: Callable[[str], None], resumed_at: int = 0
    ) -> None:
        self._run, self._plan, self._engine, self._say = run, plan, engine, say
        self._config, self._world = plan.config, engine.world
        self._is_off = self._config.probe.every is None
        self._fixed: Fixed | None = None
        self._held: HeldClips | None = None
        self._truths: list[Truth | None] = []
        self._baseline: Scores | None = None
        self._fits: _Fits | None = None
        self._troubles: set[str] = set()
        if self._world.is_first:
            _forget_lines(run, resumed_at)

    def take(self, step: int) -> float:
        """Probe the encoder as it stands after this step; the milliseconds that training was held up.

        What is found comes with `results`. Where the data do not allow it, that is said, and is all.
        """
        began_s = time.perf_counter()
        if self._held is None and not self._is_off:
            self._begin()
        if not self._is_off:
            self._submit(step, self._features(self._encoder()))
        return 1000 * (time.perf_counter() - began_s)

    def results(self) -> list[tuple[int, dict[str, Value]]]:
        """What was found since this was last asked, by step, on rank 0; by then it is in probes.jsonl."""
        if self._fits is None:
            return []
        found: list[tuple[int, dict[str, Value]]] = []
        for step, scores in self._fits.finished():
            if isinstance(scores, str):
                what = "of the untrained encoder" if step == BASELINE else f"of step {step}"
                if scores not in self._troubles:  # the same one would come again at each probing
                    self._say(f"the probing {what} failed, training goes on: {scores}")
                self._troubles.add(scores)
            elif step == BASELINE:
                self._keep_baseline(scores)
            else:
                found.append((step, self._told(step, scores)))
        return found

    def close(self) -> None:
        """Wait until what was taken is fitted; `results` has it then."""
        if self._fits is not None:
            self._fits.close()

    def go_back(self, step: int) -> None:
        """Forget what was found of later steps, which are taken again from other weights."""
        if self._fits is not None:
            self._fits.forget_after(step)
        if self._world.is_first:
            _forget_lines(self._run, step)

    def _begin(self) -> None:
        """Choose and read the clips, and run the untrained encoder over them where nobody has."""
        reason = ""
        try:
            chosen: list[Fixed] = []  # a rank's own: its readers cannot be sent to others
            patiently(self._world, lambda _: chosen.append(fixed_clips(self._config)))
            self._fixed = chosen[0]
            items = self._fixed.items[self._world.rank :: self._world.size]
            self._held = HeldClips(self._fixed, items, self._config)
            patiently(self._world, self._held.read)
            self._share()
        except DataError as error:
            reason = str(error)
        if self._world.any(bool(reason)):
            self._is_off, self._held = True, None
            self._say(f"no probes while training: {reason or 'another rank could not read its clips'}")
            return
        assert self._fixed is not None
        if self._world.is_first:
            self._fits = _Fits(
                self._fixed, self._truths, places_grid(self._config.grid, self._fixed.side(self._config))
            )
            self._baseline = self._known_baseline()
        if self._world.any(self._world.is_first and self._baseline is None):
            with torch.random.fork_rng(devices=[]):  # modules draw weights as they are made, before ours
                encoder = untrained_encoder(self._config)
            if self._config.train.precision == "bf16":  # before it is moved: half as large on the device
                encoder.to(torch.bfloat16)
            encoder.to(self._world.device)
            self._submit(BASELINE, self._features(encoder))

    def _share(self) -> None:
        """Bring the truths of all clips to every rank. Raises: DataError when too many are unreadable."""
        assert self._held is not None and self._fixed is not None
        everybody = self._world.gather_objects((self._held.truths, self._held.unreadable))
        self._truths = [
            everybody[place % self._world.size][0][place // self._world.size]
            for place in range(len(self._fixed.items))
        ]
        unreadable = [sentence for _, sentences in everybody for sentence in sentences]
        if len(unreadable) * UNREADABLE_ONE_IN > len(self._fixed.items):
            count = f"{len(unreadable)} of {len(self._fixed.items)}"
            raise DataError(f"{count} clips of {self._fixed.root} are unreadable, the first: {unreadable[0]}")
        if unreadable:
            self._say(
                f"{len(unreadable)} clips cannot be read and are not probed, the first: {unreadable[0]}"
            )

    def _encoder(self) -> Encoder:
        """The moving average; the context encoder where that is what learns, or is asked for."""
        engine, context = self._engine, self._engine.objective.encoder
        wants_context = self._config.learns_in_context or self._config.probe.encoder == "context"
        if engine.ema is None or engine.target is None or (wants_context and context is not None):
            assert context is not None, "without a target it is trained"
            return context
        engine.ema.ready()
        return engine.target

    @torch.no_grad()
    def _features(self, encoder: Encoder) -> Tensor:
        """Features of this rank's clips (R, t, P, D), float16, zero where there is none.

        Every rank goes forward equally often, with a black clip where it has none left: under ZeRO-3 the
        weights of each block are gathered from all.
        """
        assert self._held is not None and self._fixed is not None
        world, config = self._world, self._config
        rows_each = -(-len(self._fixed.items) // world.size)
        data, grid, batch = config.data, config.grid, config.probe.batch
        if world.device.type == "cuda":  # its memory is full of training: no more than a target's forward
            batch = min(batch, config.train.micro_batch)
        side = self._fixed.side(config)
        shape = rows_each, grid[0], math.prod(places_grid(grid, side)), encoder.width
        out = torch.zeros(shape, dtype=torch.float16, device=world.device)
        nothing = torch.zeros(1, data.frames, data.size, data.size, 3, dtype=torch.uint8)
        was_training = encoder.training
        encoder.eval()
        try:
            for rows, views in self._held.batches(batch, -(-rows_each // batch)):
                tokens = encoder(normalise((nothing if views is None else views).to(world.device)))
                if rows:
                    out[rows] = place_features(tokens, grid, side)
                pulse.beat()
        finally:
            encoder.train(was_training)
        return out

    def _submit(self, step: int, own_RtPD: Tensor) -> None:
        everybody = self._world.gather(own_RtPD.flatten())()
        if self._fits is not None and self._fixed is not None:
            # rank k's row r is clip r * size + k
            whole = everybody.view(self._world.size, *own_RtPD.shape).transpose(0, 1).flatten(0, 1)
            self._fits.put(step, whole[: len(self._fixed.items)].cpu().numpy())

    def _told(self, step: int, scores: Scores) -> dict[str, Value]:
        """The scores as metrics; also a line of probes.jsonl, by which checkpoints may be kept."""
        assert self._fixed is not None
        untrained = self._baseline or {}
        line = {"step": step, "kind": "online", "scores": scores, "untrained": untrained}
        about = {"data": self._fixed.info.name, "clips": sum(truth is not None for truth in self._truths)}
        add_line(
            self._run / PROBES_FILE, line | about | {"time": datetime.now(UTC).isoformat(timespec="seconds")}
        )
        return {
            f"probe/{encoder}/{name.replace(' ', '_')}": score
            for encoder, each in (("trained", scores), ("untrained", untrained))
            for name, score in each.items()
            if score is not None
        }

    def _key(self) -> str:
        """A hash of all that the baseline depends on."""
        assert self._fixed is not None
        config, data = self._config, self._config.data
        about: list[Any] = [
            config.model.model_dump(mode="json"),
            [config.seed, config.objective.kind, config.train.precision],
            [data.frames, data.fps, data.size, data.short_clips, config.probe.places],
            [self._fixed.info.fingerprint, self._fixed.kinds],
            [(item.split, item.index) for item in self._fixed.items],
        ]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    def _known_baseline(self) -> Scores | None:
        remedy = "it is made anew"
        try:
            found = read_json(self._run / BASELINE_FILE, remedy) or {}
        except DataError:
            return None
        scores = found.get("scores")
        return scores if found.get("key") == self._key() and isinstance(scores, dict) else None

    def _keep_baseline(self, scores: Scores) -> None:
        self._baseline = scores
        told = {"key": self._key(), "scores": scores}
        write_whole(self._run / BASELINE_FILE, (json.dumps(told, indent=1) + "\n").encode())


def _forget_lines(run: Path, step: int) -> None:
    """Take online probings of later steps out of probes.jsonl: their steps are taken again."""
    path = run / PROBES_FILE
    if not path.exists():
        return

    def is_kept(line: str) -> bool:
        try:
            plain = json.loads(line)
            return plain.get("kind") != "online" or int(plain["step"]) <= step
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            # half a line, as a crash leaves it
            return False

    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if is_kept(line)]
    if len(kept) < len(lines):
        write_whole(path, "".join(f"{line}\n" for line in kept).encode())


class _Fits:
    """A thread that fits, one probing after the other."""

    def __init__(self, fixed: Fixed, truths: list[Truth | None], places: tuple[int, int]) -> None:
        self._fixed, self._truths, self._places = fixed, truths, places
        self._jobs: queue.SimpleQueue[tuple[int, Halves] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, Scores | str]] = queue.SimpleQueue()
        self._num_put = self._num_taken = 0
        # A daemon, so that a fit does not keep a process that wants to end.
        self._thread = threading.Thread(target=self._work, name="foreframe-online-probe", daemon=True)
        self._thread.start()

    def put(self, step: int, features_CtPD: Halves) -> None:
        self._num_put += 1
        self._jobs.put((step, features_CtPD))

    def finished(self) -> list[tuple[int, Scores | str]]:
        found = [self._done.get() for _ in range(self._done.qsize())]
        self._num_taken += len(found)
        return found

    def forget_after(self, step: int) -> None:
        """Wait for all that is under way; what is not of later steps is still to be taken."""
        kept = []
        while self._num_taken < self._num_put:
            self._num_taken += 1
            kept.append(self._done.get())
            pulse.beat()
        for each in kept:
            if each[0] <= step:
                self._num_taken -= 1
                self._done.put(each)

    def close(self) -> None:
        self._jobs.put(None)
        while self._thread.is_alive():
            self._thread.join(1.0)
            pulse.beat()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            step, features = job
            try:
                self._done.put((step, self._score(features)))
            except Exception as error:  # whatever a fit stumbles over, it ends no training: it is told
                self._done.put((step, f"{type(error).__name__}: {error}"))

    def _score(self, features_CtPD: Halves) -> Scores:
        if not np.isfinite(features_CtPD).all():
            raise DataError("features are not finite")
        splits = []
        for split in ("train", "eval"):
            rows = [
                row
                for row, (item, truth) in enumerate(zip(self._fixed.items, self._truths, strict=True))
                if item.split == split and truth is not None and features_CtPD[row].any()
            ]
            truths = [truth for row in rows if (truth := self._truths[row]) is not None]
            splits.append((features_CtPD[rows], truths))
        fixed = self._fixed
        return score_pooled(
            splits[0], splits[1], fixed.kinds, fixed.info.state_names, self._places, fixed.root
        )
