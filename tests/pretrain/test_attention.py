"""Which attention is used: what is asked for, what works here, and what is said where the two differ."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import UsageError
from pretrain.build import build_engine
from pretrain.config import plan
from pretrain.model import attention
from pretrain.model.attention import attend, choose_backend, probe_xformers
from pretrain.strategy.base import World
from tests.small_dataset import tiny_config

BF16 = torch.bfloat16
REASON = "No operator found for `memory_efficient_attention_forward`"


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """What is found out is kept for the process: not from or for other tests."""
    choose_backend.cache_clear()
    yield
    choose_backend.cache_clear()


def probing(monkeypatch: pytest.MonkeyPatch, reason: str | None) -> list[tuple[object, ...]]:
    """What the probe is asked, while it answers with `reason`."""
    asked: list[tuple[object, ...]] = []

    def probe(*given: object) -> str | None:
        asked.append(given)
        return reason

    monkeypatch.setattr(attention, "probe_xformers", probe)
    return asked


def test_xformers_by_name_that_does_not_work_is_refused_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probing(monkeypatch, REASON)
    with pytest.raises(UsageError, match=rf"does not work here: {REASON}; set model\.attention=auto"):
        choose_backend("xformers", "cuda", BF16, 64)


def test_auto_falls_back_and_says_why_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = probing(monkeypatch, REASON)
    with caplog.at_level(logging.INFO, logger=attention.__name__):
        assert [choose_backend("auto", "cuda", BF16, 64) for _ in range(2)] == ["sdpa", "sdpa"]
    assert caplog.messages == [f"attention: SDPA, because xformers does not work here: {REASON}"]
    assert caplog.records[0].levelno == logging.WARNING
    assert asked == [("cuda", BF16, 64)]


@pytest.mark.parametrize("wanted", ["auto", "xformers"])
def test_xformers_is_taken_where_the_probe_passes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wanted: str
) -> None:
    probing(monkeypatch, None)
    with caplog.at_level(logging.INFO, logger=attention.__name__):
        assert choose_backend(wanted, "cuda", BF16, 64) == "xformers"
    assert caplog.messages == ["attention: xformers (forward and backward probed on cuda, torch.bfloat16)"]


@pytest.mark.parametrize(("wanted", "device"), [("sdpa", "cuda"), ("auto", "cpu"), ("sdpa", "cpu")])
def test_nothing_is_probed_where_nothing_is_to_choose(
    monkeypatch: pytest.MonkeyPatch, wanted: str, device: str
) -> None:
    asked = probing(monkeypatch, None)
    assert choose_backend(wanted, device, BF16, 64) == "sdpa"
    assert asked == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("No module named 'xformers'"), "No module named 'xformers'"),
        (NotImplementedError(f"\n{REASON} with inputs:\n  query"), f"{REASON} with inputs:"),
        (RuntimeError("CUDA error: no kernel image\nCompile with"), "CUDA error: no kernel image"),
        (ValueError(), "ValueError"),
    ],
)
def test_the_probe_says_in_a_line_what_kept_xformers_from_working(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(attention, "attend", fail)
    assert probe_xformers("cpu", torch.float32, 8) == said


class _Forward(torch.autograd.Function):
    """Works forward only, as xformers does for some head widths."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, *__: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("no operator backward")


def test_the_probe_goes_backward_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "attend", lambda q, k, v, packing, _: attend(q, k, v, packing, "sdpa"))
    assert probe_xformers("cpu", torch.float32, 8) is None
    monkeypatch.setattr(attention, "attend", lambda q, *_: _Forward.apply(q))
    assert probe_xformers("cpu", torch.float32, 8) == "no operator backward"


def test_a_run_ends_with_the_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    probing(monkeypatch, REASON)
    config = tiny_config(Path("nowhere"), tmp_path, model={"attention": "xformers"})
    with pytest.raises(UsageError, match=r"model\.attention is xformers"):
        build_engine(plan(config, 1), World(0, 1, torch.device("cpu")))
