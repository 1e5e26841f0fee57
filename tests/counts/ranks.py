"""What DeepSpeed reads back in a step, of one rank: `python -m tests.counts.ranks FILE` writes where.

On the CPU, over gloo, as it has no device that is none. Counted are numbers that are read of a tensor, which
on a GPU is where the host waits; but for those of AdamW, whose counters lie on the host there too.
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

STAGES = (0, 1, 2, 3)


class Reads(Counts, TorchDispatchMode):
    """Numbers read between `start` and `stop`, by the innermost function of DeepSpeed or of the project."""

    def __init__(self) -> None:
        Counts.__init__(self)
        TorchDispatchMode.__init__(self)
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.is_counting and func is torch.ops.aten._local_scalar_dense.default:
            frames = [(each.filename, each.name) for each in traceback.extract_stack()]
            own = [(f, name) for f, name in frames if "/deepspeed/" in f or "/pretrain/" in f]
            if not any("/torch/optim/" in f for f, _ in frames) and own:
                path, name = own[-1]
                self.reads[f"{self.phase}: {'/'.join(Path(path).parts[-2:])} {name}"] += 1
        return func(*args, **(kwargs or {}))


def main(out: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    world = join_world(torch.device("cpu"), 60.0)
    found = {}
    for precision in ("fp32", "bf16"):
        for stage in STAGES:
            if stage == 0 and precision == "bf16":
                continue
            strategy = {"kind": "deepspeed", "zero_stage": stage}
            case = CASES["masked_latent"] | {
                "strategy": strategy,
                "train": {"precision": precision, "global_batch": CLIPS},
                "optim": {"clip_norm": 1.0},
            }
            reads = Reads()
            with without_streams(), reads:
                run(config_for(case), world, case, reads)
            found[f"ZeRO-{stage}, {precision}"] = dict(sorted(reads.reads.items()))
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
