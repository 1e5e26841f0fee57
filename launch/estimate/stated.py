"""What a person states of a cluster, and what is assumed where nothing is stated."""

from __future__ import annotations

import math
from dataclasses import dataclass

from data_pipeline.errors import UsageError
from launch.estimate.gpus import Gpu

# A ViT-g's forward and backward of 8 clips on one H100, nothing computed again: benchmarks/results/gpu.json.
# Without optimizer and moving average, which are of a step, however many clips it has.
MFU = 0.38
LINE_SHARE = 0.8  # of a link's rate that a collective gets
HIDDEN_SHARE = 1.0  # of what streams allow to go on beside computing: that NCCL slows kernels is not in it
FREE_SHARE = 0.1  # of a GPU's memory left to CUDA, NCCL and what an allocator cannot use
HOST_COPY = 15e9  # bytes a second of a rank's copy to host memory: measured on CPU, docs/decisions/0012
AGREE_S = 0.1  # that a save holds ranks up besides: metrics out, all agreed
STORAGE = 10e9  # bytes a second of the shared storage, all nodes together
MOST = 1_000_000_000  # of any figure that is stated: one beyond is a slip, and sums would overflow
RESTART_S = 300.0  # from a failure until the run trains again: seen, met, started, a checkpoint read
# Llama 3 (arXiv:2407.21783, sec. 3.3.4, table 5): 419 unexpected interruptions in 54 days of 16,384 H100s in
# nodes of 8.
FAILURES = 419 / (54 * 16_384 / 8)


@dataclass(frozen=True)
class Stated:
    """The cluster: nodes of gpus_per_node devices, a rank each.

    mfu: share of the peak that the model's own FLOPs get. failures: of a node, a day. storage: bytes a
    second. price: of a GPU an hour, None where it is not stated.
    """

    gpu: Gpu
    nodes: int = 1
    gpus_per_node: int = 1
    mfu: float = MFU
    failures: float = FAILURES
    storage: float = STORAGE
    price: float | None = None

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def usable(self) -> float:
        """Bytes of a GPU that tensors may take; of a CPU rank all that was stated."""
        return self.gpu.memory * (1 - FREE_SHARE if self.gpu.device == "cuda" else 1)

    @property
    def bandwidth(self) -> float:
        """Bytes a second that a rank sends in a collective over all ranks."""
        slowest = self.gpu.link if self.nodes == 1 else min(self.gpu.link, self.gpu.network)
        return LINE_SHARE * slowest


def check(
    mfu: float, failures: float, storage_gb: float, price: float | None, **positive: float | None
) -> None:
    """Raises: UsageError for a figure that cannot be, by the name of its option."""
    if not 0 < mfu <= 1:
        raise UsageError(f"--mfu is {mfu:g}: need a share of the peak, above 0 and at most 1, such as {MFU}")
    if not 0 <= failures < 24:
        raise UsageError(
            f"--failures is {failures:g}: need failures of a node a day, such as {FAILURES:.4f} (0: none)"
        )
    if price is not None and not 0 <= price < math.inf:
        raise UsageError(f"--price is {price:g}: need what a GPU costs an hour, 0 or more")
    for option, value in {"storage": storage_gb, **positive}.items():
        if value is not None and not 0 < value <= MOST:
            raise UsageError(f"--{option} is {value:g}: need a number above 0, and at most {MOST:,}")
