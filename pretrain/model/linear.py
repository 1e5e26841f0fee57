"""Linear layers, by whichever of torch's libraries has the faster float32 matrix product on this CPU.

torch asks MKL, which gives processors of other makers than its own its kernels for AVX2, whatever they have.
oneDNN, which torch brings too, takes AVX-512 wherever it is: twice the rate on a Zen 5 core
(benchmarks/train_step.py). The rule looks at the processor and at shapes, and at no clock, so that every rank
and every resume has the same rounding.

Shapes: M tokens, K features in, N features out.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from data_pipeline.errors import UsageError

Library = Literal["torch", "onednn"]
SMALLEST = 1 << 22  # multiplications below which the call itself costs more than is won
ATOL = 1e-3  # of the probe's products of 64 numbers near 1
_chosen: Library | None = None


def use(wanted: Literal["auto", "torch", "onednn"]) -> Library:
    """Set for this process what multiplies float32 on CPU; auto: the rule above.

    Raises: UsageError when oneDNN was asked for by name and does not work here.
    """
    global _chosen
    if wanted == "onednn" and (reason := probe_onednn()) is not None:
        raise UsageError(
            f"model.products is onednn, which does not work here: {reason}; set model.products=auto, which "
            f"then takes what torch takes"
        )
    _chosen = by_rule() if wanted == "auto" else wanted
    return _chosen


def chosen() -> Library:
    """What multiplies float32 on CPU in this process: what was set, else by the rule."""
    return by_rule() if _chosen is None else _chosen


@cache
def by_rule() -> Library:
    """oneDNN where the processor has AVX-512 and MKL would not take it; else torch's own choice."""
    if not has_idle_avx512(_processor()):
        return "torch"
    return "onednn" if probe_onednn() is None else "torch"


def has_idle_avx512(cpuinfo: str) -> bool:
    """Whether the first processor of /proc/cpuinfo has AVX-512, and another maker than MKL's."""
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    return "avx512f" in facts.get("flags", "").split() and facts.get("vendor_id") != "GenuineIntel"


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:  # not Linux
        return ""


@cache
def probe_onednn() -> str | None:
    """None when oneDNN gives the products that torch gives; else why not."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, slope = (
        torch.randn(shape, generator=generator) for shape in ((96, 64), (48, 64), (48,), (96, 48))
    )
    try:
        found = _product(x, weight, bias), _product(slope, weight.t()), _gradient(slope, x)
    except (AttributeError, NotImplementedError, RuntimeError) as error:  # no such operation, or not built in
        return str(error).strip().splitlines()[0]
    wanted = F.linear(x, weight, bias), slope @ weight, slope.t() @ x
    close = all(torch.allclose(a, b, atol=ATOL) for a, b in zip(found, wanted, strict=True))
    return None if close else "its products differ from torch's"


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """x (..., K) to (..., N), as `F.linear`."""
    is_host_float = x.dtype == weight_NK.dtype == torch.float32 and x.device.type == "cpu"
    if not is_host_float or torch.compiler.is_compiling():
        return F.linear(x, weight_NK, bias_N)
    if x.numel() * weight_NK.shape[0] < SMALLEST or chosen() == "torch":
        return F.linear(x, weight_NK, bias_N)
    out: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight_NK, bias_N)
    return out.unflatten(0, x.shape[:-1])


class Linear(nn.Linear):
    """torch's, multiplied by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    """x (M, K), weight (N, K), bias (N,) to (M, N), by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return _product(x_MK, weight_NK, bias_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_MN: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_MK, weight_NK = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        slope_MN = slope_MN.contiguous()
        return (
            _product(slope_MN, weight_NK.t()) if needs_x else None,
            _gradient(slope_MN, x_MK) if needs_weight else None,
            slope_MN.sum(0) if needs_bias else None,
        )


def _product(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x_MK, weight_NK, bias_N, "none", [], "")
    return found


def _gradient(slope_MN: Tensor, x_MK: Tensor) -> Tensor:
    """slopeᵀ x (N, K); the wider of the two is the one that is read across, which is faster."""
    if slope_MN.shape[1] > x_MK.shape[1]:
        return _product(x_MK.t(), slope_MN.t()).t()
    return _product(slope_MN.t(), x_MK.t())
