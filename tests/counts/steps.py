"""A step of the loop, counted: `python -m tests.counts.steps FILE` writes what every case asks of a GPU.

On the device that is none (device.py) the whole loop runs: the copying of a batch, target, forward, backward,
step, average, and Watch at a step that is not logged. The third step counts: what is made once is there.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pretrain.build import build_engine
from pretrain.config import Plan, RunConfig, plan
from pretrain.data.copies import Copies
from pretrain.loop import train
from pretrain.objective.base import Batch, Output
from pretrain.progress import Progress
from pretrain.strategy.base import World
from pretrain.watch import Watch
from tests.counts.count import Counts
from tests.counts.device import NAME, set_up, telling
from tests.counts.planted import asked, planted
from tests.pretrain.small_objective import config_of, small_batch

COUNTED, CLIPS = 2, 3
PICTURES = [{"blocks": 2, "spatial_scale": 0.2}]
SIGREG = {"kind": "sigreg", "directions": 8}
VICREG = {"kind": "vicreg"}
# Of each: the kind of objective in small_objective.py, which clips are pictures, and what differs.
CASES: dict[str, dict[str, Any]] = {
    "masked_latent": {"kind": "masked"},
    "masked_latent, two forwards, clipped by module": {
        "kind": "masked",
        "train": {"global_batch": 2 * CLIPS},
        "optim": {"clip_norm": 1.0, "clip_per": "module"},
    },
    "masked_latent, pictures, levels, context loss, regularisers": {
        "kind": "masked, 2.1",
        "pictures": (False, True, False),
        "objective": {"picture_masks": PICTURES, "regularisers": [SIGREG, VICREG]},
    },
    "masked_latent, raster": {"kind": "masked, raster"},
    "future_latent": {"kind": "future"},
    "action_latent": {"kind": "action"},
    "pixel": {"kind": "pixel"},
    "contrastive": {"kind": "contrastive"},
}
PHASES = {
    "targets": "target",
    "loss": "forward",
    "backward": "backward",
    "step": "step",
    "update_target": "average",
}


class Counted(Exception):  # noqa: N818 - it is no error
    """The step that is counted is over."""


def config_for(case: dict[str, Any]) -> RunConfig:
    """Nothing is logged, looked at or saved at the step that is counted."""
    train = {
        "steps": 50,
        "global_batch": CLIPS,
        "micro_batch": CLIPS,
        "precision": "fp32",
        "log_every": 40,
        "checkpoint_every": 40,
        "compile": "none",  # as on the device that is none, also where a GPU takes the step
    }
    config = config_of(
        case["kind"],
        train=train | case.get("train", {}),
        optim={"warmup_steps": 1} | case.get("optim", {}),
        objective=case.get("objective", {}),
        strategy=case.get("strategy", {"kind": "single"}),
        health={"every": 40},
        tracker={"kind": "jsonl"},
    )
    model = config.model.model_copy(update={"attention": "sdpa"})  # whatever is best on the CPU
    return config.model_copy(update={"model": model})


class Given:
    """Batches as the loader hands them over, copied as a GPU's are, up to the step that is counted."""

    def __init__(self, laid_out: Plan, device: torch.device, counts: Counts, case: dict[str, Any]) -> None:
        self._plan, self._device, self._counts, self._case = laid_out, device, counts, case
        self._copies, self._step = Copies(device), 0

    def seek(self, step: int, samples: int) -> None:
        """There is one way through."""

    def take(self, count: int) -> Iterator[Batch]:
        if self._step > COUNTED:
            self._counts.stop()
            raise Counted
        if self._step == COUNTED:
            self._counts.start()
        for number in range(count):
            with self._counts.during("copies"):
                batch = self._copied(number)
            yield batch
        self._step += 1

    def _copied(self, number: int) -> Batch:
        """A batch of the host on the device, by what copies the loader's: gray crops in pinned slots."""
        config, pictures = self._plan.config, self._case.get("pictures", ())
        host = small_batch(config, CLIPS, number * CLIPS, step=self._step, pictures=pictures)
        frames, size = config.data.frames, config.data.size
        gray = [
            torch.full((frames, size + 8 * clip, size, 3), 99, dtype=torch.uint8) for clip in range(CLIPS)
        ]
        views, mirrored = [self._pinned(each) for each in gray], [clip == 1 for clip in range(CLIPS)]
        masks = host.masks.over(self._pinned(host.masks.laid_out))
        loaded: Any = None  # is handed through
        tables = [host.states, host.actions]
        ahead = self._copies.begin(loaded, views, mirrored, size, masks, tables)
        if self._device.type != "cpu":
            self._copies.hand_over(ahead)
        states, actions = ahead.tables
        return dataclasses.replace(host, clips=ahead.clips, masks=ahead.masks, states=states, actions=actions)

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor if self._device.type == "cpu" else tensor.pin_memory()


def run(config: RunConfig, world: World, case: dict[str, Any], counts: Counts) -> list[float]:
    """Three steps of a run as the loop takes them, Watch beside it; the losses of their forwards."""
    laid_out, losses = plan(config, world.size), []
    engine: Any = build_engine(laid_out, world)
    for name, phase in PHASES.items():
        setattr(engine, name, counts.of(phase, getattr(engine, name)))
    if engine.ema is not None:
        engine.ema.ready = counts.of("average", engine.ema.ready)
    batches: Any = Given(laid_out, world.device, counts, case)
    silent: Any = mock.MagicMock()
    begin = Progress(step=1)  # the first step of a run is always logged
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(Path(folder), laid_out, engine, batches, silent, begin, silent, silent)
        seen = counts.of("watch", watch.after_batch)

        def after_batch(batch: Batch, output: Output) -> None:
            seen(batch, output)
            losses.append(output.loss.detach())

        watch.after_batch = after_batch  # type: ignore[method-assign]
        watch.after_step = counts.of("watch", watch.after_step)  # type: ignore[method-assign]
        stops: Any = SimpleNamespace(reason=None)
        try:
            train(laid_out, engine, batches, silent, watch, stops, begin)
        except Counted:
            return [float(loss) for loss in losses]
    raise AssertionError("the run ended before the step that was to be counted")


def without_streams() -> Any:
    """CUDA's streams and events, of which the device has one that is always done."""
    return mock.patch.multiple(
        torch.cuda,
        Stream=mock.MagicMock(),
        Event=mock.MagicMock(),
        current_stream=mock.MagicMock(),
        stream=lambda _: nullcontext(),
    )


def counted(case: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The counts of a case, and its losses there and on the CPU."""
    config, counts = config_for(case), Counts()
    with telling(counts.told), without_streams():
        losses = run(config, World(0, 1, device), case, counts)
    with without_streams():
        plain = run(config, World(0, 1, torch.device("cpu")), case, Counts())
    return counts.as_json() | {"losses": losses, "plain_losses": plain}


def main(out: Path) -> None:
    set_up()
    device = torch.device(NAME, 0)
    found = {
        "torch": torch.__version__.partition("+")[0],
        "planted": planted(device),
        "asked": asked(device),
        "cases": {name: counted(case, device) for name, case in CASES.items()},
    }
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
