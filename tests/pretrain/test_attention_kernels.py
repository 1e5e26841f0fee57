"""Ways to attend over packed sequences: each gives what a softmax of each gives, and says why it cannot."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, PackagePath
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pretrain.model import attention
from pretrain.model.attention import LONG_ENOUGH, Backend, Packing, attend
from pretrain.model.choose import Rows, why_not

CPU, CUDA, BF16 = torch.device("cpu"), torch.device("cuda"), torch.bfloat16
ROWS = Rows((5, 3, 8), 2, 8)


@pytest.mark.parametrize(
    "lengths", [(70, 9, 64), (40, 40, 40, 33, 33, 40), (LONG_ENOUGH - 1, 9), (80, 80), (65,)]
)
def test_sequence_by_sequence_gives_what_a_softmax_of_each_gives(lengths: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), 2, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    q.requires_grad_()
    out = attend(q, k, v, Packing(lengths), "segments")
    wanted, begin = [], 0
    for length in lengths:
        each = slice(begin, begin + length)
        scores = torch.einsum("qhd,khd->hqk", q[each], k[each]) / 8**0.5
        wanted.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[each]))
        begin += length
    torch.testing.assert_close(out, torch.cat(wanted))
    (own,) = torch.autograd.grad(out.square().sum(), q)
    (reference,) = torch.autograd.grad(torch.cat(wanted).square().sum(), q)
    torch.testing.assert_close(own, reference)


def test_varlen_is_told_where_sequences_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel runs on CUDA only: this one reads what it is given and answers by SDPA."""
    from torch.nn.attention import varlen

    lengths = (5, 3, 8)

    def varlen_attn(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
    ) -> Tensor:
        assert cu_q.dtype == torch.int32 and cu_q.tolist() == [0, 5, 8, 16]
        assert torch.equal(cu_q, cu_k) and max_q == max_k == 8
        return attend(q, k, v, Packing(cu_q.diff().tolist()), "sdpa")

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    q, k, v = (torch.randn(16, 2, 8) for _ in range(3))
    found = attend(q, k, v, Packing(lengths), "varlen")
    torch.testing.assert_close(found, attend(q, k, v, Packing(lengths), "sdpa"))


@pytest.mark.gpu
@pytest.mark.parametrize("head_width", [32, 64])
@pytest.mark.parametrize("lengths", [(300, 17, 1, 1024, 511), (256, 256)])
def test_all_that_work_on_a_gpu_agree_in_bf16_within_its_precision(
    head_width: int, lengths: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, sum(lengths), 4, head_width, generator=generator).cuda()
    packing, rows = Packing(lengths, "cuda"), Rows(lengths, 4, head_width)

    def passed(backend: Backend, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        own = qkv.to(dtype).requires_grad_()
        out = attend(*own.unbind(0), packing, backend)
        (gradient,) = torch.autograd.grad(out.float().square().mean(), own)
        return out.float(), gradient.float()

    wanted = passed("sdpa", torch.float32)
    works = [each for each in rows.candidates if why_not(each, CUDA, BF16, rows) is None]
    assert len(works) > 2, works
    for backend in works:
        for own, reference in zip(passed(backend, BF16), wanted, strict=True):
            assert (own - reference).abs().max() < 0.02 * reference.abs().max(), backend


def test_an_xformers_that_is_installed_and_does_not_load_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = pytest.importorskip("xformers._cpp_lib")
    outer = RuntimeError("cannot load")
    outer.__cause__ = OSError("Could not load this library")
    outer.__cause__.__cause__ = OSError("libcudart.so.12: cannot open shared object file")
    monkeypatch.setattr(library, "_cpp_library_load_exception", outer)
    said = "its kernels do not load: libcudart.so.12: cannot open shared object file"
    assert attention.why_xformers_does_not_load() == said
    assert why_not("xformers", CPU, torch.float32, ROWS) == said
    monkeypatch.setattr(library, "_cpp_library_load_exception", None)
    assert attention.why_xformers_does_not_load() is None


@pytest.mark.parametrize("is_there", [True, False])
def test_cuda_12_s_runtime_is_loaded_from_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_there: bool
) -> None:
    loaded: list[str] = []
    found = [PackagePath("nvidia/cuda_runtime/lib", name) for name in ("libcudart.so.12", "libcudadevrt.a")]
    for each in found:
        each.dist = SimpleNamespace(locate_file=lambda path: tmp_path / path)  # type: ignore[assignment]

    def files(name: str) -> list[PackagePath]:
        if not is_there:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(attention, "files", files)
    monkeypatch.setattr(attention.ctypes, "CDLL", loaded.append)
    attention.with_cuda_12.__wrapped__()
    assert loaded == [str(tmp_path / "nvidia/cuda_runtime/lib/libcudart.so.12")] * is_there
