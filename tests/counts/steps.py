"""A step of the loop on the device that is none: `python -m tests.counts.steps` prints counts of every case."""

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

from pretrain.build import build_engine
from pretrain.config import Plan, RunConfig, plan
from pretrain.data.copies import Copies
from pretrain.loop import train
from pretrain.objective.base import Batch
from pretrain.progress import Progress
from pretrain.strategy.base import World
from pretrain.watch import Watch
from tests.counts.count import Counts
from tests.counts.device import set_up, telling
from tests.pretrain.small_objective import MASKS, config_of, small_batch

COUNTED = 2  # the third step: what is made once has been made
CLIPS = 3
PICTURES = [{"blocks": 2, "spatial_scale": 0.2}]
CASES: dict[str, dict[str, Any]] = {
    "masked_latent": {"name": "masked"},
    "masked_latent, several forwards, clipped by module": {
        "name": "masked",
        "train": {"global_batch": 2 * CLIPS},
        "optim": {"clip_norm": 1.0, "clip_per": "module"},
    },
    "masked_latent with pictures, levels, a context loss and a regulariser": {
        "name": "masked, 2.1",
        "pictures": (False, True, False),
        "objective": {
            "picture_masks": PICTURES,
            "regularisers": [{"kind": "sigreg", "directions": 8}],
        },
    },
    "masked_latent, raster": {"name": "masked, raster"},
    "future_latent": {"name": "future"},
    "action_latent": {"name": "action"},
    "pixel": {"name": "pixel"},
    "contrastive": {"name": "contrastive"},
}


class Enough(Exception):
    """The step that is counted is over."""


def config_for(case: dict[str, Any]) -> RunConfig:
    """Nothing is logged, looked at or saved at the step that is counted."""
    sections = {key: value for key, value in case.items() if key not in ("name", "pictures", "train")}
    train = {
        "steps": 50, "global_batch": CLIPS, "micro_batch": CLIPS, "precision": "fp32", "log_every": 40,
        "checkpoint_every": 40,
    }  # fmt: skip
    return config_of(
        case["name"],
        train=train | case.get("train", {}),
        strategy={"kind": "single"},
        health={"every": 40},
        tracker={"kind": "jsonl"},
        optim={"warmup_steps": 1} | sections.pop("optim", {}),
        **sections,
    )


class Given:
    """Batches as the loader hands them over, copied as a GPU's are; the counted step ends with the next."""

    def __init__(self, laid_out: Plan, device: torch.device, counts: Counts, case: dict[str, Any]) -> None:
        self._plan, self._counts, self._case = laid_out, counts, case
        self._copies, self._step = Copies(device), 0

    def seek(self, step: int, samples: int) -> None:
        """There is one way through."""

    def take(self, count: int) -> Iterator[Batch]:
        if self._step > COUNTED:
            raise Enough
        self._counts.is_counting = self._step == COUNTED
        for number in range(count):
            with self._counts.during("copies"):
                batch = self._copied(number)
            yield batch
        self._step += 1

    def _copied(self, number: int) -> Batch:
        pictures = self._case.get("pictures", ())
        host = small_batch(self._plan.config, CLIPS, number * CLIPS, step=self._step, pictures=pictures)
        return copied(host, self._copies, self._plan.config.data.size)


def copied(host: Batch, copies: Copies, size: int) -> Batch:
    """A batch of the host on the device, through what copies the loader's: clips of gray for its crops."""
    views = [torch.zeros(4, size, size, 3, dtype=torch.uint8).pin_memory() for _ in host.keys]
    tables = [host.states, host.actions]
    masks = host.masks.over(host.masks.laid_out.pin_memory())  # as they lie in a slot
    ahead = copies.begin(None, views, [False] * len(views), size, masks, tables)  # type: ignore[arg-type]
    copies.hand_over(ahead)
    states, actions = ahead.tables
    return dataclasses.replace(host, clips=ahead.clips, masks=ahead.masks, states=states, actions=actions)


def count(config: RunConfig, device: torch.device, case: dict[str, Any]) -> dict[str, Any]:
    """The counts of the third step of a run as the loop takes it, with Watch beside it."""
    counts, laid_out = Counts(), plan(config, 1)
    world = World(0, 1, device)
    with tempfile.TemporaryDirectory() as folder, telling(counts.told), _streams():
        engine: Any = build_engine(laid_out, world)
        for phase, name in PHASES:
            setattr(engine, name, counts.of(phase, getattr(engine, name)))
        if engine.ema is not None:
            engine.ema.ready = counts.of("average", engine.ema.ready)
        batches: Any = Given(laid_out, device, counts, case)
        silent: Any = mock.MagicMock()
        begin = Progress(step=1)  # the first step is always logged
        watch = Watch(Path(folder), laid_out, engine, batches, silent, begin, silent, silent)
        for name in ("after_batch", "after_step"):
            setattr(watch, name, counts.of("watch", getattr(watch, name)))
        try:
            train(laid_out, engine, batches, silent, watch, SimpleNamespace(reason=None), begin)
        except Enough:
            return counts.as_json()
    raise AssertionError("the run ended before the step that was to be counted")


PHASES = (
    ("target", "targets"),
    ("forward", "loss"),
    ("backward", "backward"),
    ("step", "step"),
    ("average", "update_target"),
)


def _streams() -> Any:
    """CUDA's streams and events, of which this device has one that is always done."""
    return mock.patch.multiple(
        torch.cuda,
        Stream=mock.MagicMock(),
        Event=mock.MagicMock(),
        current_stream=mock.MagicMock(),
        stream=lambda _: nullcontext(),
    )


def main(out: Path) -> None:
    device = set_up()
    found = {name: count(config_for(case), device, case) for name, case in CASES.items()}
    out.write_text(
        json.dumps({"torch": torch.__version__.partition("+")[0], "cases": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
