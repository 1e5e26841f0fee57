"""What DeepSpeed waits for in a step, of one rank: `python -m tests.counts.ranks FILE` writes where.

On the CPU, over gloo, as it has no device that is none. Counted are numbers that are read of a tensor, which
on a GPU is where the host waits, and waits for events, streams and the device (streams.py); but for numbers
that AdamW reads, whose counters lie on the host there too.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.strategy.deepspeed import join_world
from tests.counts.count import Counts
from tests.counts.steps import CASES, CLIPS, config_for, run, without_streams
from tests.counts.streams import give_streams

# ZeRO's stage, precision, strategy.overlap_comm, forwards a step
STEPS = (
    (0, "fp32", None, 1),
    *((stage, "fp32", False, 1) for stage in (1, 2, 3)),
    *((stage, "bf16", False, 2) for stage in (1, 2, 3)),
    (2, "bf16", True, 1),
)


class Reads(Counts, TorchDispatchMode):
    """Numbers read and other waits from `start` to `stop`, by the innermost function of DeepSpeed or ours."""

    def __init__(self) -> None:
        Counts.__init__(self)
        TorchDispatchMode.__init__(self)
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.waited("a number")
        return func(*args, **(kwargs or {}))

    def waited(self, what: str) -> None:
        if not self.is_counting:
            return
        frames = [(each.filename, each.name) for each in traceback.extract_stack()]
        own = [(f, name) for f, name in frames if "/deepspeed/" in f or "/pretrain/" in f]
        if not any("/torch/optim/" in f for f, _ in frames) and own:
            path, name = own[-1]
            self.reads[f"{self.phase}: {what}, {'/'.join(Path(path).parts[-2:])} {name}"] += 1


def main(out: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    world = join_world(torch.device("cpu"), 60.0)
    found = {}
    counting = [Reads()]
    give_streams(lambda what: counting[-1].waited(what))
    for stage, precision, overlaps, forwards in STEPS:
        strategy = {"kind": "deepspeed", "zero_stage": stage, "overlap_comm": overlaps}
        case = CASES["masked_latent"] | {
            "strategy": strategy,
            "train": {"precision": precision, "global_batch": forwards * CLIPS},
            "optim": {"clip_norm": 1.0},
        }
        counting.append(Reads())
        with without_streams(), counting[-1]:
            run(config_for(case), world, case, counting[-1])
        more = f", {forwards} forwards" * (forwards > 1) + ", overlapped" * bool(overlaps)
        found[f"ZeRO-{stage}, {precision}{more}"] = dict(sorted(counting[-1].reads.items()))
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
