"""Whether torch.compile can be trusted with blocks on this machine, and how often it compiles.

Shapes: M packed tokens, H heads, d width a head, D width.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.model.attention import Backend, Packing
from pretrain.model.positions import rope_table
from pretrain.model.vit import Block

COMPILER = "inductor"
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 2**-5}  # of the largest number; TF32 has ten bits


@dataclass(frozen=True)
class BlockForm:
    """What a graph of a block is compiled for, beside the device.

    lengths: of the sequences of a forward, as compilers lay out their work for the first that they see.
    """

    width: int
    heads: int
    mlp_ratio: float
    dtype: torch.dtype
    lengths: tuple[int, ...]
    backend: Backend = "sdpa"
    rotates: bool = True


def graphs_compiled() -> int:
    """Graphs that torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def why_not_compiled(form: BlockForm, device: torch.device, compiler: str = COMPILER) -> str | None:
    """None when a compiled block gives what it gives otherwise, forward and backward, in any length.

    Else why not, in a line. What it compiles is what a run's encoder of this form then uses.
    """
    block = Block(form.width, form.heads, form.mlp_ratio).to(device, form.dtype)
    found = []
    try:
        for more in range(3):  # equal lengths stay equal, which they are compiled for
            packing = Packing([length + more for length in form.lengths], device)
            ours = _passed(block, None, packing, form, device)
            compiled = _passed(block, compiler, packing, form, device)
            found.append(graphs_compiled())
            for name, a, b in zip(("output", "gradient"), ours, compiled, strict=True):
                off = float((a - b).abs().max() / a.abs().max())
                if not off <= CLOSE[form.dtype]:
                    return f"its {name} is {off:.2g} off what a block gives that is not compiled"
    except (RuntimeError, ImportError, OSError, subprocess.SubprocessError) as error:
        return _line(error)
    if found[1] != found[2]:
        return "it compiles anew for another number of tokens"
    return None


def _passed(
    block: Block, compiler: str | None, packing: Packing, form: BlockForm, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What the block gives, and the gradient of what went in, float32."""
    generator = torch.Generator().manual_seed(0)
    x_MD = torch.randn(packing.total, form.width, generator=generator).to(device, form.dtype)
    x_MD.requires_grad_()
    table = None
    if form.rotates:
        whole = rope_table((packing.total, 1, 1), form.width // form.heads, "interleaved")
        table = whole.to(device, form.dtype)
    block.compiler = compiler
    out_MD = block(x_MD, table, packing, form.backend)
    out_MD.float().square().mean().backward()
    assert x_MD.grad is not None
    return out_MD.detach().float(), x_MD.grad.float()


def _line(error: BaseException) -> str:
    """The first line that says something: torch puts the name of the compiler before what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("backend=")]
    return (said or [type(error).__name__])[0]


class Recompiles:
    """Counts the graphs compiled from step to step, and says once that it does not end.

    settled: steps in which everything is met for the first time. patience: later steps with a compilation
    before it is said; a probe that comes late is met once.
    """

    def __init__(
        self, count: Callable[[], int] = graphs_compiled, *, settled: int = 3, patience: int = 3
    ) -> None:
        self._count, self._settled, self._left = count, settled, patience
        self._seen = self._taken = count()
        self._steps, self._late = 0, 0

    def after_step(self, step: int) -> str | None:
        """The sentence, the one time that there is reason for it."""
        self._steps += 1
        new, self._seen = self._count() - self._seen, self._count()
        if not new or self._steps <= self._settled or self._left <= 0:
            return None
        self._late += new
        self._left -= 1
        if self._left:
            return None
        return (
            f"step {step}: torch.compile still compiles: {self._late} more graphs since step "
            f"{step - self._steps + self._settled}; TORCH_LOGS=recompiles says why, train.compile=none is "
            f"without"
        )

    def take(self) -> int:
        """Graphs compiled since the last call."""
        new, self._taken = self._count() - self._taken, self._count()
        return new
