"""Which attention is used: what is asked for, what works here, what is fastest, what a run goes on with."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from data_pipeline.errors import ConfigError, UsageError
from launch.fitting import check_device
from pretrain.build import build_engine
from pretrain.config import ModelConfig, plan
from pretrain.kernels import ATTENTION_FILE, kept, kernels_for, stack_rows
from pretrain.model import attention
from pretrain.model import choose as choosing
from pretrain.model.attention import Backend, Packing, attend
from pretrain.model.choose import Chosen, Rows, choose, milliseconds, why_not
from pretrain.strategy.base import World
from tests.pretrain.small_objective import KINDS, config_of, small_batch
from tests.small_dataset import tiny_config

BF16, CPU, CUDA = torch.bfloat16, torch.device("cpu"), torch.device("cuda")
REASON = "No operator found for `memory_efficient_attention_forward`"
ROWS = Rows((5, 3, 8), 2, 8)
STACKS = {
    "encoder": Rows((30, 70, 41), 6, 64),
    "predictor": Rows((98, 98, 98), 12, 32),
    "target": Rows((98, 98), 6, 64, goes_backward=False),
}
MS = {"varlen": 2.0, "xformers": 3.0, "sdpa": 5.0, "sdpa_cudnn": 1.0, "sdpa_flash": 4.0}


class Asked:
    """A device on which some attention works, and takes so long."""

    def __init__(self, ms: dict[str, float]) -> None:
        self.ms = ms
        self.probed: list[tuple[str, int]] = []
        self.timed: list[tuple[str, bool]] = []

    def probe(self, backend: Backend, _: torch.device, __: torch.dtype, rows: Rows) -> str | None:
        self.probed.append((backend, rows.head_width))
        return None if backend in self.ms else REASON

    def clock(self, backend: Backend, _: torch.device, __: torch.dtype, rows: Rows) -> float:
        self.timed.append((backend, rows.goes_backward))
        return self.ms[backend]

    def choose(self, wanted: str, kept: dict[str, Backend] | None = None) -> dict[str, Chosen]:
        return choose(wanted, STACKS, CUDA, BF16, kept, probe=self.probe, clock=self.clock)


def test_each_stack_takes_the_fastest_of_those_that_work_on_its_rows() -> None:
    asked = Asked(MS)
    found = asked.choose("auto")
    assert {name: each.backend for name, each in found.items()} == {
        "encoder": "varlen",  # the kernels of equal lengths are none of its candidates
        "predictor": "sdpa_cudnn",
        "target": "sdpa_cudnn",
    }
    assert found["encoder"].ms == {"varlen": 2.0, "xformers": 3.0, "sdpa": 5.0}
    assert set(found["encoder"].refused) == {"xformers_flash", "xformers_efficient"}
    assert {goes for name, goes in asked.timed[-5:]} == {False}, "a target goes forward only"
    assert found["encoder"].sentence("encoder") == "attention of encoder: varlen, 2 ms (xformers 3, sdpa 5)"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried 20 GiB\nSee"),
            "CUDA out of memory. Tried 20 GiB",
        ),
        (ValueError("too many sequences"), "too many sequences"),
    ],
)
def test_what_fails_on_the_run_s_own_rows_is_none_of_the_choice(error: Exception, said: str) -> None:
    asked = Asked(MS)

    def clock(backend: Backend, *given: Any) -> float:
        if backend == "varlen":
            raise error
        return asked.clock(backend, *given)

    found = choose("auto", {"encoder": STACKS["encoder"]}, CUDA, BF16, probe=asked.probe, clock=clock)
    assert found["encoder"].backend == "xformers"
    assert found["encoder"].refused["varlen"] == said


def test_what_torch_warns_of_while_kernels_are_tried_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Asked for one kernel that it does not take, SDPA warns of each, and why; the error is what is kept."""

    def attend(*_: object) -> None:
        warnings.warn("Flash attention kernel not used because: ...", stacklevel=1)
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr(choosing, "attend", attend)
    assert why_not("sdpa_flash", CPU, torch.float32, ROWS) == "No available kernel. Aborting execution."
    assert not recwarn.list


def test_sdpa_alone_is_taken_with_a_warning_that_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger=choosing.__name__):
        found = Asked({"sdpa": 5.0}).choose("auto")
    assert {each.backend for each in found.values()} == {"sdpa"}
    assert len(caplog.messages) == len(STACKS)
    assert f"xformers: {REASON}" in caplog.messages[0]


def test_nothing_that_works_is_an_error_that_names_all() -> None:
    with pytest.raises(UsageError, match=r"no attention works for encoder on cuda: varlen: No operator"):
        Asked({}).choose("auto")


def test_a_run_that_goes_on_keeps_its_attention_though_another_is_faster() -> None:
    asked = Asked(MS)
    found = asked.choose("auto", {"encoder": "xformers", "predictor": "sdpa", "target": "sdpa_flash"})
    assert [each.backend for each in found.values()] == ["xformers", "sdpa", "sdpa_flash"]
    assert asked.timed == []
    assert all(not each.ms for each in found.values())


def test_what_it_had_and_does_not_work_here_is_chosen_anew_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger=choosing.__name__):
        found = Asked(MS).choose("auto", {"encoder": "xformers_flash"})
    assert found["encoder"].backend == "varlen"
    assert caplog.messages[0].startswith("attention of encoder was xformers_flash, which does not work here")


def test_whatever_auto_may_take_can_be_asked_for_by_name() -> None:
    """So that what it gains can be measured, and a run be held to it."""
    wanted = get_args(ModelConfig.model_fields["attention"].annotation)
    assert sorted(wanted) == sorted(("auto", *get_args(Backend)))


@pytest.mark.parametrize("wanted", ["auto", *get_args(Backend)])
def test_what_runs_on_cuda_only_is_refused_without_a_gpu(
    wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    config = tiny_config(Path("nowhere"), Path("nowhere"), model={"attention": wanted})
    if wanted in ("auto", "sdpa", "segments"):
        check_device(config, 1)
    else:
        with pytest.raises(ConfigError, match=rf"{wanted} runs on CUDA only"):
            check_device(config, 1)


@pytest.mark.parametrize("wanted", ["xformers", "varlen", "sdpa_cudnn"])
def test_one_by_name_is_probed_for_the_heads_of_each_stack_and_not_timed(wanted: str) -> None:
    asked = Asked(MS)
    assert {each.backend for each in asked.choose(wanted).values()} == {wanted}
    assert asked.probed == [(wanted, 64), (wanted, 32), (wanted, 64)]
    assert asked.timed == []


@pytest.mark.parametrize("wanted", ["xformers", "varlen"])
def test_one_by_name_that_does_not_work_is_refused_with_what_to_set(wanted: str) -> None:
    with pytest.raises(
        UsageError, match=rf"model\.attention is {wanted}.*here: {REASON}; set model\.attention=auto"
    ):
        Asked({"sdpa": 1.0}).choose(wanted)


@pytest.mark.parametrize(
    ("wanted", "device", "taken"),
    [
        ("sdpa", CUDA, "sdpa"),
        ("segments", CUDA, "segments"),
        ("auto", CPU, "segments"),
        ("sdpa", CPU, "sdpa"),
    ],
)
def test_nothing_is_probed_where_nothing_is_to_choose(
    wanted: str, device: torch.device, taken: Backend
) -> None:
    asked = Asked(MS)
    found = choose(wanted, STACKS, device, BF16, probe=asked.probe, clock=asked.clock)
    assert {each.backend for each in found.values()} == {taken}
    assert asked.probed == [] and asked.timed == []


def test_moments_that_must_not_see_later_ones_take_sdpa() -> None:
    asked = Asked(MS)
    rows = {"predictor": Rows((34, 34), 2, 12, True, 17)}
    for wanted in ("auto", "xformers"):
        found = choose(wanted, rows, CUDA, BF16, probe=asked.probe, clock=asked.clock)
        assert found["predictor"].backend == "sdpa"
    assert asked.probed == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("No module named 'xformers'"), "No module named 'xformers'"),
        (NotImplementedError(f"\n{REASON} with inputs:\n  query"), f"{REASON} with inputs:"),
        (RuntimeError("CUDA error: no kernel image\nCompile with"), "CUDA error: no kernel image"),
        (ValueError(), "ValueError"),
    ],
)
def test_the_probe_says_in_a_line_what_kept_it_from_working(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(choosing, "attend", fail)
    assert why_not("xformers", CPU, torch.float32, ROWS) == said


class _Forward(torch.autograd.Function):
    """Works forward only, as xformers does for some head widths."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, *__: Tensor) -> Tensor:
        raise NotImplementedError("no operator backward")


def test_the_probe_goes_backward_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not("sdpa", CPU, torch.float32, ROWS) is None
    monkeypatch.setattr(choosing, "attend", lambda q, *_: _Forward.apply(q))
    assert why_not("sdpa", CPU, torch.float32, ROWS) == "no operator backward"


def test_on_cpu_the_probe_takes_what_runs_there_and_no_other() -> None:
    works = {each for each in get_args(Backend) if why_not(each, CPU, torch.float32, ROWS) is None}
    assert {"sdpa", "segments"} <= works
    assert not works & {"varlen", "sdpa_cudnn", "sdpa_efficient", "xformers_flash", "xformers_efficient"}


@pytest.mark.parametrize("goes_backward", [True, False])
def test_what_is_timed_goes_backward_where_the_stack_does(
    monkeypatch: pytest.MonkeyPatch, goes_backward: bool
) -> None:
    seen: list[bool] = []

    def noting(q: Tensor, k: Tensor, v: Tensor, packing: Packing, backend: Backend) -> Tensor:
        assert packing.lengths == (5, 3, 8) and q.shape == (16, 2, 8)
        seen.append(q.requires_grad and torch.is_grad_enabled())
        return attend(q, k, v, packing, backend)

    monkeypatch.setattr(choosing, "attend", noting)
    assert milliseconds("sdpa", CPU, torch.float32, ROWS._replace(goes_backward=goes_backward)) > 0
    assert set(seen) == {goes_backward}


def test_every_stack_of_every_objective_has_the_rows_that_it_attends_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against what blocks are given, whatever is drawn: equal or not, heads, moments, gradient."""
    given: list[tuple[bool, int, int, int | None, bool]] = []

    def noting(q: Tensor, k: Tensor, v: Tensor, packing: Packing, backend: Backend) -> Tensor:
        given.append((packing.is_uniform, *q.shape[1:], packing.frame, torch.is_grad_enabled()))
        return attend(q, k, v, packing, backend)

    monkeypatch.setattr("pretrain.model.vit.attend", noting)
    for name in KINDS:
        config = config_of(name, train={"global_batch": 3, "micro_batch": 3, "precision": "fp32"})
        config = config.model_validate(config.model_dump() | {"strategy": {"kind": "single"}, "name": "rows"})
        engine = build_engine(plan(config, 1), World(0, 1, CPU))
        given.clear()
        batch = small_batch(config)
        engine.loss(batch, engine.targets(batch))
        rows = stack_rows(config).values()
        lengths_differ = {len(set(each.lengths)) > 1 for each in rows}
        told = {(each.heads, each.head_width, each.frame, each.goes_backward) for each in rows}
        if name in ("pixel", "states"):  # have a target for their probes alone
            told = {each for each in told if each[-1]}
        assert {each[1:] for each in given} == told, name
        assert any(not is_uniform for is_uniform, *_ in given) <= (True in lengths_differ), name


def test_what_was_timed_is_written_down_and_read_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = Asked(MS)
    monkeypatch.setattr(
        "pretrain.kernels.choose",
        lambda wanted, rows, _, dtype, kept: choose(
            wanted, rows, CUDA, dtype, kept, probe=asked.probe, clock=asked.clock
        ),
    )
    config, world = tiny_config(Path("nowhere"), tmp_path), World(0, 1, CPU)
    first = kernels_for(config, world, tmp_path)
    assert len(first.sentences) == len(asked.timed[0]) + 1 == 3
    plain = json.loads((tmp_path / ATTENTION_FILE).read_text())
    assert plain["stacks"]["encoder"]["ms"] == {"varlen": 2.0, "xformers": 3.0, "sdpa": 5.0}
    assert kept(tmp_path) == first.attention
    asked.ms = {**MS, "xformers": 0.1}
    again = kernels_for(config, world, tmp_path)
    assert again.attention == first.attention and again.sentences == ()
    assert json.loads((tmp_path / ATTENTION_FILE).read_text()) == plain


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"stacks": 3}', '{"stacks": {"encoder": {"backend": "magic"}}}', "\x00"]
)
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / ATTENTION_FILE).write_text(text)
    assert kept(tmp_path) == {}


def test_a_run_ends_with_the_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise NotImplementedError(REASON)

    monkeypatch.setattr(attention, "_by_xformers", fail)
    config = tiny_config(Path("nowhere"), tmp_path, model={"attention": "xformers"})
    with pytest.raises(UsageError, match=rf"model\.attention is xformers.*{REASON}"):
        build_engine(plan(config, 1), World(0, 1, CPU))
