"""Linear layers on CPU, by oneDNN where MKL leaves AVX-512 unused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.errors import UsageError
from pretrain.build import build_engine
from pretrain.config import plan
from pretrain.model import linear as products
from pretrain.model.linear import Linear, by_rule, has_idle_avx512, linear, probe_onednn, use
from pretrain.strategy.base import World
from tests.small_dataset import tiny_config

onednn = pytest.mark.skipif(probe_onednn() is not None, reason=f"no oneDNN: {probe_onednn()}")
ZEN5 = "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse2 avx2 avx512f avx512bw\n"


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_chosen", None)


@pytest.mark.parametrize(
    ("cpuinfo", "is_idle"),
    [
        (ZEN5, True),
        (ZEN5.replace("AuthenticAMD", "GenuineIntel"), False),
        (ZEN5.replace(" avx512f avx512bw", ""), False),
        ("processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n", False),
        ("", False),
    ],
    ids=["Zen 5", "Intel", "Zen 3", "ARM", "not Linux"],
)
def test_the_rule_takes_onednn_only_where_mkl_leaves_avx512_unused(cpuinfo: str, is_idle: bool) -> None:
    assert has_idle_avx512(cpuinfo) is is_idle


def test_the_rule_takes_torch_where_onednn_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_processor", lambda: ZEN5)
    for reason, library in (("no such operation", "torch"), (None, "onednn")):
        monkeypatch.setattr(products, "probe_onednn", lambda reason=reason: reason)
        by_rule.cache_clear()
        assert use("auto") == library
    by_rule.cache_clear()


def test_onednn_by_name_is_refused_where_it_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "probe_onednn", lambda: "no such operation")
    with pytest.raises(UsageError, match="products is onednn, which does not work here: no such operation"):
        use("onednn")
    assert products.chosen() == by_rule()  # nothing was set


def passed(x: Tensor, weight: Tensor, bias: Tensor | None, slope: Tensor) -> list[Tensor]:
    """Output and gradients of `linear`."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias) if t is not None]
    out = linear(leaves[0], leaves[1], leaves[2] if bias is not None else None)
    return [out.detach(), *torch.autograd.grad(out, leaves, slope)]


@onednn
@pytest.mark.parametrize(
    "sizes", [((70,), 48, 96), ((70,), 96, 48), ((2, 35), 64, 64), ((70,), 48, 1)], ids=str
)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_onednn_gives_products_and_gradients_to_float32(
    sizes: tuple[tuple[int, ...], int, int], has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "SMALLEST", 0)
    rows, width, out_width = sizes
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, slope = (
        torch.randn(shape, generator=generator)
        for shape in ((*rows, width), (out_width, width), (out_width,), (*rows, out_width))
    )
    slope = slope.transpose(0, 1).contiguous().transpose(0, 1)  # as autograd may hand it over
    given = x, weight, bias if has_bias else None
    calls: list[int] = []
    real = products._product
    monkeypatch.setattr(products, "_product", lambda *a: calls.append(1) or real(*a))
    use("onednn")
    found = passed(*given, slope)
    assert len(calls) == 3
    doubles = [None if t is None else t.double() for t in (*given, slope)]
    for one, exact in zip(found, passed(*doubles), strict=True):  # type: ignore[arg-type]
        assert one.shape == exact.shape
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), exact, rtol=1e-5, atol=1e-4)
    for one, again in zip(found, passed(*given, slope), strict=True):
        assert torch.equal(one, again)


@onednn
def test_other_precisions_and_small_products_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_product", lambda *_: pytest.fail("asked"))
    use("onednn")
    for dtype, rows in ((torch.bfloat16, 2048), (torch.float64, 2048), (torch.float32, 2)):
        layer = Linear(64, 64).to(dtype)
        x = torch.randn(rows, 64, dtype=dtype)
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@onednn
def test_an_engine_takes_the_library_that_its_config_names(tmp_path: Path) -> None:
    def loss_with(library: str) -> str:
        config = tiny_config(Path("nowhere"), tmp_path, model={"products": library})
        build_engine(plan(config, 1), World(0, 1, torch.device("cpu")))
        return products.chosen()

    assert [loss_with(name) for name in ("onednn", "torch", "auto")] == ["onednn", "torch", by_rule()]
