"""`foreframe train --profile N`: N steps recorded by PyTorch's profiler, as a trace and as a table by part.

The ranks of the first machine record, so that none of them waits for another that does; each writes its own
trace, and the first rank a table of all of them. Encoder and predictor are marked by hooks for that long, so
that models know nothing of it.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, record_function, schedule
from torch.utils.hooks import RemovableHandle

from data_pipeline.errors import why
from data_pipeline.storage import Moved
from pretrain import flops, parts
from pretrain.checkpoint import patiently
from pretrain.peaks import peak_tflops
from pretrain.profile_table import table_text
from pretrain.progress import Progress
from pretrain.strategy.base import Engine
from pretrain.trace import Profiled, profiled

FOLDER = "profile"
TABLE, TEXT = "table.json", "table.txt"
MOST_RANKS = 8  # that record, of the first machine


class Profile:
    """Of one start of a run, on every rank; all methods are called by all ranks together.

    num_steps: to record, after the first `parts.WARM_UP`; None: none.
    """

    def __init__(
        self, run: Path, num_steps: int | None, engine: Engine, progress: Progress, say: Callable[[str], None]
    ) -> None:
        self._folder, self._num_steps, self._engine, self._say = run / FOLDER, num_steps, engine, say
        self._taken = 0
        self._profiler: torch.profiler.profile | None = None
        self._hooks: list[RemovableHandle] = []
        self._open: list[AbstractContextManager[object]] = []
        self._done: flops.Parts = {}
        self._first = progress.step + parts.WARM_UP + 1
        left = engine.plan.steps - progress.step
        if num_steps is not None and left < parts.WARM_UP + num_steps:
            say(
                f"--profile {num_steps}: steps are recorded after the first {parts.WARM_UP}, and {left} are "
                f"left; a larger train.steps records all {num_steps}"
            )

    def begin_step(self) -> None:
        """The loop begins with a step; the last one is over."""
        if self._num_steps is None:
            return
        if self._taken == 0:
            self._start(self._num_steps)
        elif self._profiler is not None:
            self._profiler.step()
        self._taken += 1
        if self._taken > parts.WARM_UP + self._num_steps:
            self.end()

    def end(self) -> None:
        """Write what was recorded; nothing where that has been done."""
        if self._num_steps is None:
            return
        num_recorded, self._num_steps = max(0, self._taken - parts.WARM_UP), None
        profiler = self._profiler
        self.drop()
        if num_recorded:
            found = patiently(self._engine.world, lambda moved: self._told(profiler, moved))
            patiently(self._engine.world, lambda _: self._write(found))

    def drop(self) -> None:
        """Record no more, on this rank."""
        parts.record_with(None)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()

    def _start(self, num_steps: int) -> None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
        if self._engine.world.rank >= min(here, MOST_RANKS):
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints two lines of its own
        activities = [ProfilerActivity.CPU]
        if self._engine.world.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities,
            schedule=schedule(wait=parts.WARM_UP - 1, warmup=1, active=num_steps, repeat=1),
        )
        self._profiler.start()
        parts.record_with(record_function)
        objective = self._engine.objective
        self._hooks.append(objective.register_forward_pre_hook(self._count))
        for name, part in (("encoder", parts.CONTEXT), ("predictor", parts.PREDICTOR)):
            module = getattr(objective, name, None)
            if isinstance(module, nn.Module):
                self._mark(module, part)

    def _mark(self, module: nn.Module, part: str) -> None:
        def enter(*_: object) -> None:
            record = record_function(part)
            record.__enter__()
            self._open.append(record)

        def leave(*_: object) -> None:
            self._open.pop().__exit__(None, None, None)

        self._hooks.append(module.register_forward_pre_hook(enter))
        self._hooks.append(module.register_forward_hook(leave, always_call=True))

    def _count(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        if self._taken > parts.WARM_UP:
            counted = flops.parts_of(self._engine.plan.config, arguments[0].masks)
            self._done = flops.together(self._done, counted)

    def _told(self, profiler: torch.profiler.profile | None, moved: Moved) -> dict[str, Any] | str | None:
        """This rank's trace on disk, and what it says; a sentence where it could not be written."""
        if profiler is None:
            return None
        rank = self._engine.world.rank
        path = self._folder / f"trace-rank{rank:05d}.json.gz"
        part = self._folder / f".part-{path.name}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(part))
            moved(1)
            with gzip.open(part, "rt") as file:
                events = json.load(file)["traceEvents"]
            os.replace(part, path)
        except (
            OSError,
            EOFError,
            ValueError,
        ) as error:  # the profiler cuts a trace short where a disk is full
            with suppress(OSError):
                part.unlink(missing_ok=True)
            said = why(error) if isinstance(error, OSError) else f"the trace is cut short, {error}"
            return f"the profile could not be written to {path}: {said}"
        moved(1)
        found = profiled(events)
        if found is None:
            return f"{path} holds no whole step"
        return {"rank": rank, "trace": path.name, **asdict(self._with_flops(found))}

    def _with_flops(self, found: Profiled) -> Profiled:
        """Matrix products of the transformers' blocks by part; of the whole step all that are counted."""
        each = {name: done.model / found.num_steps / 1e9 for name, done in self._done.items()}
        again = sum(done.recomputed for done in self._done.values()) / found.num_steps / 1e9
        trained = each.get(flops.CONTEXT, 0.0) + each.get(flops.PREDICTOR, 0.0)
        known = {
            parts.TARGET: each.get(flops.TARGET, 0.0),
            parts.CONTEXT: each.get(flops.CONTEXT, 0.0) / flops.TRAINED,
            parts.PREDICTOR: each.get(flops.PREDICTOR, 0.0) / flops.TRAINED,
            parts.BACKWARD: trained * (1 - 1 / flops.TRAINED) + again,
        }
        rows = tuple(replace(part, gflop=known.get(part.name) or None) for part in found.parts)
        return replace(found, parts=rows, step_gflop=sum(each.values()))

    def _write(self, each_rank: list[dict[str, Any] | str | None]) -> None:
        if not self._engine.world.is_first:
            return
        for told in each_rank:
            if isinstance(told, str):
                self._say(told)
        found = [told for told in each_rank if isinstance(told, dict)]
        if not found:
            return
        device, precision = self._engine.world.device, self._engine.plan.config.train.precision
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        facts = {
            "first_step": self._first,
            "device": name,
            "precision": precision,
            "peak_tflops": peak_tflops(name, precision),
            "world_size": self._engine.world.size,
            "clips_a_rank": self._engine.plan.rank_batch,
            "ranks": found,
        }
        text = table_text(facts)
        try:
            (self._folder / TABLE).write_text(json.dumps(facts, indent=1) + "\n")
            (self._folder / TEXT).write_text(text + "\n")
        except OSError as error:
            self._say(f"the profile's table could not be written to {self._folder}: {why(error)}")
        self._say(f"{text}\n\n  open in https://ui.perfetto.dev: {self._folder / found[0]['trace']}")
