"""Batches on a GPU: the clips that a worker would make, whatever slots they came through."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pretrain.config import plan
from pretrain.data.augment import STD
from pretrain.data.slots import Layout, Slots
from pretrain.data.stream import Batches
from tests.small_dataset import tiny_config


def test_what_was_locked_for_a_gpu_is_unlocked_when_it_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver counts places: memory of the next slots may come to lie where these lay."""
    locked: set[int] = set()
    waited: list[int] = []

    class Driver:
        def cudaHostRegister(self, place: int, _: int, __: int) -> int:
            locked.add(place)
            return 0

        def cudaHostUnregister(self, place: int) -> int:
            assert waited, "a copy may be under way"
            locked.remove(place)
            return 0

    monkeypatch.setattr(torch.cuda, "cudart", Driver)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(1))
    slots = Slots(Layout(1, 2, 8, 4, True), 2, is_shared=False)
    slots.pin()
    assert len(locked) == 2 and not waited
    del slots
    assert not locked


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_sees_the_batches_that_a_cpu_sees(workers: int, small_dataset: Path) -> None:
    config = tiny_config(small_dataset, Path("runs"), data={"workers": workers, "prefetch": 1})
    laid_out = plan(config, 1)
    on_gpu, on_cpu = (Batches(laid_out, 0, torch.device(kind)) for kind in ("cuda", "cpu"))
    step = 1.01 / 255 / torch.tensor(STD).view(3, 1, 1, 1)
    for _ in range(12):
        for theirs, ours in zip(on_cpu.take(2), on_gpu.take(2), strict=True):
            torch.cuda._sleep(10_000_000)  # what it computes takes longer than the next copy
            assert (ours.keys, ours.positions) == (theirs.keys, theirs.positions)
            assert ours.clips.device.type == ours.masks.kept_M.device.type == "cuda"
            assert ((ours.clips.cpu() - theirs.clips).abs() <= step).all()
            assert torch.equal(ours.masks.kept_M.cpu(), theirs.masks.kept_M)
            assert torch.equal(ours.masks.hidden_P.cpu(), theirs.masks.hidden_P)
            assert ours.states is not None
            assert theirs.states is not None
            assert torch.equal(ours.states.cpu(), theirs.states)
    on_gpu.close()
    on_cpu.close()
