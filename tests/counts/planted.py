"""Operations that are known to have the host wait for a GPU, and such that do not: what the counter says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.strategy.base import World
from tests.counts.count import Counts
from tests.counts.device import telling

Work = Callable[[Tensor, torch.device], Any]
# Of a tensor (4,) of the device. Each line's truth is in torch's documentation of CUDA semantics, or in what
# torch.cuda.set_sync_debug_mode warns of.
WAITS: dict[str, Work] = {
    "item": lambda x, d: x.sum().item(),
    "float": lambda x, d: float(x.sum()),
    "if": lambda x, d: 1 if x.sum() > 0 else 0,
    "tolist": lambda x, d: x.tolist(),
    "cpu": lambda x, d: x.cpu(),
    "numpy": lambda x, d: x.cpu().numpy(),
    "a copy into memory that is not pinned": lambda x, d: torch.empty(4).copy_(x, non_blocking=True),
    "nonzero": lambda x, d: x.nonzero(),
    "a mask as an index": lambda x, d: x[x > 1],
    "a mask as an index to write to": lambda x, d: x.clone().index_put_((x > 1,), x[:2]),
    "masked_select": lambda x, d: x.masked_select(x > 1),
    "unique": lambda x, d: x.unique(),
    "repeat_interleave by a tensor": lambda x, d: x.repeat_interleave(x.long()),
    "a tensor of a list": lambda x, d: torch.tensor([1, 2], device=d),
    "a tensor of a number": lambda x, d: torch.tensor(1.0, device=d),
    "new_tensor": lambda x, d: x.new_tensor([1.0, 2.0]),
    "from memory that is not pinned": lambda x, d: torch.ones(3).to(d, non_blocking=True),
    "from pinned memory, blocking": lambda x, d: torch.ones(3).pin_memory().to(d),
    "an index of the host": lambda x, d: x[torch.tensor([0, 1])],
    "equal": lambda x, d: torch.equal(x, x),
}
NO_WAITS: dict[str, Work] = {
    "full": lambda x, d: torch.full((3,), 2.0, device=d),
    "arange": lambda x, d: torch.arange(3, device=d),
    "an index of the device": lambda x, d: x[torch.arange(2, device=d)],
    "a slice": lambda x, d: x[1:3] * 2.0,
    "where with numbers": lambda x, d: torch.where(x > 1, x, 0.0),
    "masked_fill": lambda x, d: x.masked_fill(x > 1, 0.0),
    "a number of the host times a tensor": lambda x, d: x * torch.tensor(2.0),
    "repeat_interleave of known size": lambda x, d: x.repeat_interleave(x.long(), output_size=6),
    "index_add": lambda x, d: x.new_zeros(2).index_add(0, x.long() % 2, x),
    "from pinned memory": lambda x, d: torch.ones(3).pin_memory().to(d, non_blocking=True),
    "to the host beside other work": lambda x, d: x.to("cpu", non_blocking=True),
    "a number of the host": lambda x, d: torch.ones(()).item(),
    "nothing to copy": lambda x, d: torch.empty(0).to(d),
}


def planted(device: torch.device) -> dict[str, dict[str, int]]:
    """How often the counter saw the host wait in each."""
    return {
        "waits": {name: _count(work, device) for name, work in WAITS.items()},
        "no waits": {name: _count(work, device) for name, work in NO_WAITS.items()},
    }


def asked(device: torch.device) -> dict[str, Any]:
    """What rank 0 of two is told when the other one says yes, and how often its host waited for the GPU."""
    counts, event = Counts(), mock.MagicMock()

    def other_says_yes(tensor: Tensor, *, op: Any, async_op: bool) -> Any:
        assert op == dist.ReduceOp.MAX and async_op
        tensor.fill_(1.0)
        return mock.MagicMock()

    with (
        telling(counts.told),
        mock.patch.object(dist, "all_reduce", other_says_yes),
        mock.patch.object(torch.cuda, "Event", return_value=event),
    ):
        counts.start()
        answer = World(0, 2, device).ask(False)
        assert event.record.called and not event.synchronize.called
        said = answer()
        counts.stop()
    return {"said": said, "waited for": event.synchronize.call_count, "waits": sum(counts.syncs.values())}


def _count(work: Work, device: torch.device) -> int:
    counts = Counts()
    with telling(counts.told):
        x = torch.arange(4.0, device=device)
        counts.start()
        work(x, device)
        counts.stop()
    return sum(counts.syncs.values())
