"""Blocks through torch.compile: the same numbers, nothing compiled anew, and what is said where it fails."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipeline.errors import UsageError
from launch.train import run_train
from pretrain import kernels
from pretrain.build import build_engine
from pretrain.config import RunConfig, plan
from pretrain.flops import Again
from pretrain.kernels import kernels_for, stack_rows
from pretrain.model.attention import Packing
from pretrain.model.compiling import BlockForm, Recompiles, graphs_compiled, why_not_compiled
from pretrain.model.vit import AS_WRITTEN, GRAPHS_A_PART, Parts, Transformer, _compiled, compiled
from pretrain.objective.make import first_encoder
from pretrain.strategy.base import World
from pretrain.tracking.jsonl import read_metrics
from tests.pretrain.small_objective import KINDS, config_of, make, small_batch
from tests.small_dataset import tiny_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FORM = BlockForm(48, 2, 4.0, torch.float32, (30, 18))  # as many tokens as it is wide: chance, not a rule
GOLDEN = Path(__file__).parents[1] / "golden" / "loss_20_steps.json"
# Traced and differentiated as for any compiler, and run by torch's own kernels: no C++ is compiled.
TRACED = "aot_eager"


@pytest.fixture
def anew() -> Iterator[None]:
    """What is compiled is kept for the process: for this test nothing is there yet."""
    _compiled.cache_clear()
    torch._dynamo.reset()
    yield
    _compiled.cache_clear()
    torch._dynamo.reset()


def steps_of(
    config: RunConfig, compiler: str | None, *, recomputes: bool = False, steps: int = 4
) -> tuple[list[float], list[list[Tensor]], list[int]]:
    """Loss and gradients of each of some batches of different lengths; graphs compiled by the end of each."""
    objective = make(config)
    target = first_encoder(objective, config)
    if recomputes:
        objective.recompute_blocks(Again(config.model.encoder.shape[1]), Again(config.model.predictor.depth))
    for stack in (*objective.stacks().values(), target):
        stack.compile_blocks(compiler)
    losses, gradients, graphs = [], [], []
    for step in range(steps):
        batch = small_batch(config, clips=3 + step % 2, first=step % 2, step=step)
        objective.zero_grad()
        output = objective(batch, objective.targets(target, batch))
        output.loss.backward()
        losses.append(float(output.loss.detach()))
        gradients.append([p.grad.clone() for p in objective.parameters() if p.grad is not None])
        graphs.append(graphs_compiled())
    return losses, gradients, graphs


def same(config: RunConfig, compiler: str, *, recomputes: bool) -> int:
    """Graphs that were compiled for the first batch; none are for others of other lengths."""
    before = graphs_compiled()
    losses, gradients, graphs = steps_of(config, compiler, recomputes=recomputes)
    plain_losses, plain_gradients, _ = steps_of(config, None)
    assert losses == pytest.approx(plain_losses, rel=1e-5)
    for own, reference in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(own, reference, atol=1e-5, rtol=1e-4)
    # Attention over equal lengths gives a view, for which there is a graph beside that for other rows.
    settled = 1 if "raster" in str(config.objective.truncate) else 0
    assert graphs[settled:] == [graphs[settled]] * (len(graphs) - settled), "nothing after the first batch"
    return graphs[0] - before


@pytest.mark.usefixtures("anew")
def test_traced_blocks_give_the_same_on_every_batch_and_are_traced_once() -> None:
    """Encoder, predictor and target are two graphs each, before attention and after, with no break in them,
    which would call Python between kernels; the target's first block is given a view, and has two of its own.
    Blocks that are computed again need no others.
    """
    from torch._dynamo.utils import counters

    config = config_of("masked")
    breaks = sum(counters["graph_break"].values())
    assert same(config, TRACED, recomputes=False) == 8
    assert same(config, TRACED, recomputes=True) == 0
    assert sum(counters["graph_break"].values()) == breaks


@pytest.mark.usefixtures("anew")
def test_a_backward_in_a_thread_of_its_own_computes_again_what_was_traced() -> None:
    """As on CUDA, where autograd has a thread a device, in which none of torch's settings are as they were
    made; here the caller's own thread goes backward.
    """
    stack = Transformer(24, 2, 2, 2.0, (2, 2, 2), "interleaved", "sdpa")
    stack.initialise(torch.Generator().manual_seed(0))
    stack.recompute(1, 1)  # the first block as a whole, of the second the MLP
    packing, gradients = Packing((5, 3)), []
    for compiler in (None, "eager"):
        stack.compile_blocks(compiler)
        x_MD = torch.randn(8, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = stack.run(x_MD * 1.0, torch.arange(8), packing).square().mean()
        graphs = graphs_compiled()
        beside = threading.Thread(target=loss.backward)
        beside.start()
        beside.join()
        assert graphs_compiled() == graphs
        gradients.append(x_MD.grad)
    torch.testing.assert_close(*gradients)


def test_every_thread_that_computes_a_compiled_block_has_the_settings_for_it() -> None:
    from torch.fx.experimental import _config as symbols

    found: list[tuple[int, bool]] = []

    def look() -> None:
        compiled("eager")
        found.append((torch._dynamo.config.recompile_limit, symbols.use_duck_shape))

    beside = threading.Thread(target=look)
    beside.start()
    beside.join()
    assert found == [(GRAPHS_A_PART, False)]


@pytest.mark.slow
@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_blocks_that_are_compiled_for_this_processor_do_so_for_every_objective(
    name: str, recomputes: bool
) -> None:
    assert same(config_of(name), "inductor", recomputes=recomputes) > 0


def test_a_copy_of_a_compiled_encoder_computes_with_its_own_weights() -> None:
    config = config_of("masked")
    encoder = make(config).encoder
    assert encoder is not None
    encoder.compile_blocks("eager")
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        x = torch.randn(2, 3, 4, 32, 32)
        first = other(x)
        for parameter in encoder.parameters():
            parameter.zero_()
        torch.testing.assert_close(other(x), first)


def test_weights_that_are_written_in_place_are_read_anew() -> None:
    """As the moving average is, into the target's own storage."""
    config = config_of("masked")
    objective = make(config)
    plain, traced = first_encoder(objective, config), first_encoder(objective, config)
    traced.compile_blocks("eager")
    batch = small_batch(config)
    for factor in (1.0, 0.5):
        with torch.no_grad():
            for encoder in (plain, traced):
                for parameter in encoder.parameters():
                    parameter.view(-1)[:] = parameter.view(-1) * factor
        given = [objective.targets(each, batch) for each in (plain, traced)]
        torch.testing.assert_close(*given)


Given = list[Tensor]


def _breaks(graph: torch.fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
    raise RuntimeError("no such processor\nin detail")


def _is_off(graph: torch.fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
    def run(*given: Any) -> Any:
        return tuple(1.1 * each if isinstance(each, Tensor) else each for each in graph(*given))

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_works_is_found_to_work(dtype: torch.dtype) -> None:
    assert why_not_compiled(replace(FORM, dtype=dtype), CPU, "eager") is None


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [(_breaks, "no such processor"), (_is_off, "its output is 0."), ("no such one", "Invalid backend")],
)
def test_what_does_not_work_is_said_in_a_line(compiler: Any, reason: str) -> None:
    found = why_not_compiled(FORM, CPU, compiler)
    assert found is not None and reason in found and "\n" not in found


def test_a_compiler_that_takes_one_length_only_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def for_one_length(part: Any, **how: Any) -> Any:
        return torch.compile(part, backend="eager", dynamic=False)

    parts = Parts(*map(for_one_length, AS_WRITTEN))
    monkeypatch.setattr("pretrain.model.vit.compiled", lambda _: parts)
    assert why_not_compiled(FORM, CPU, "eager") == "it compiles anew for another number of tokens"


def test_a_machine_without_a_compiler_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as settings

    monkeypatch.setattr(settings.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setattr(settings, "force_disable_caches", True)
    found = why_not_compiled(FORM, CPU)
    assert found is not None and "no-such-compiler" in found


def config_for(tmp_path: Path, compile: str, **sections: Any) -> RunConfig:
    return tiny_config(Path("nowhere"), tmp_path, train={"compile": compile}, **sections)


def asked(monkeypatch: pytest.MonkeyPatch, reason: str | None) -> list[BlockForm]:
    """Blocks that are tried, while the answer is `reason`."""
    forms: list[BlockForm] = []

    def try_it(form: BlockForm, *_: object) -> str | None:
        forms.append(form)
        return reason

    monkeypatch.setattr(kernels, "why_not_compiled", try_it)
    monkeypatch.setattr(
        kernels, "choose", lambda _, rows, *__: dict.fromkeys(rows, kernels.Chosen("segments"))
    )
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return forms


@pytest.mark.parametrize(("wanted", "device"), [("none", CUDA), ("none", CPU), ("auto", CPU)])
def test_nothing_is_tried_where_nothing_is_to_be_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: str, device: torch.device
) -> None:
    forms = asked(monkeypatch, None)
    found = kernels_for(config_for(tmp_path, wanted), World(0, 1, device))
    assert (found.compiler, found.sentences, forms) == (None, (), [])


@pytest.mark.parametrize(("wanted", "device"), [("auto", CUDA), ("blocks", CPU)])
def test_blocks_are_compiled_once_the_encoder_s_has_been_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: str, device: torch.device
) -> None:
    forms = asked(monkeypatch, None)
    config = config_for(tmp_path, wanted)
    assert kernels_for(config, World(0, 1, device)).compiler == "inductor"
    width, _, heads, ratio = config.model.encoder.shape
    (form,) = forms
    assert (form.width, form.heads, form.mlp_ratio, form.dtype) == (width, heads, ratio, torch.float32)
    assert form.lengths == stack_rows(config)["encoder"].lengths and form.backend == "segments"


def test_auto_goes_on_without_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked(monkeypatch, "Cannot find a working triton installation")
    found = kernels_for(config_for(tmp_path, "auto"), World(0, 1, CUDA))
    assert found.compiler is None
    (sentence,) = found.sentences
    assert sentence.endswith("does not work here: Cannot find a working triton installation")


def test_by_name_it_is_refused_before_any_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked(monkeypatch, "no C++ compiler")
    with pytest.raises(
        UsageError, match=r"train\.compile is blocks.*here: no C\+\+ compiler; set train\.compile=auto"
    ):
        build_engine(plan(config_for(tmp_path, "blocks"), 1), World(0, 1, CPU))


def test_zero_3_is_left_as_it_is_and_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forms = asked(monkeypatch, None)
    strategy = {"kind": "deepspeed", "zero_stage": 3}
    found = kernels_for(config_for(tmp_path, "auto", strategy=strategy), World(0, 1, CUDA))
    assert found.compiler is None and forms == []
    assert "ZeRO-3" in found.sentences[0]
    config = config_for(tmp_path, "blocks", strategy=strategy)
    (problem,) = [each for each in config.problems() if each[0] == "train.compile"]
    assert "zero_stage 3" in problem[2]
    assert not config_for(tmp_path, "blocks", strategy={**strategy, "zero_stage": 2}).problems()


def test_a_run_with_compiled_blocks_follows_the_golden_curve_through_a_stop(
    monkeypatch: pytest.MonkeyPatch, small_dataset: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernels, "COMPILER", "eager")
    for steps in (8, 12):
        limit = {"time_limit_s": 1e-3} if steps == 8 else {}
        config = tiny_config(
            small_dataset, tmp_path, train={"compile": "blocks", "checkpoint_every": 4, **limit}
        )
        run = run_train(config, quiet=True).run
    golden, found = json.loads(GOLDEN.read_text()), read_metrics(run)
    assert [line["loss"] for line in found] == pytest.approx(golden["loss"], rel=golden["rel"])
    assert {line["step"] for line in found if line["perf/recompiles"]} <= {1}
    plain = run_train(tiny_config(small_dataset, tmp_path / "plain", train={"steps": 1}), quiet=True).run
    assert "perf/recompiles" not in read_metrics(plain)[0]


class Graphs:
    """So many graphs, compiled one by one."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> int:
        return self.count


def test_compiling_that_goes_on_is_said_once() -> None:
    graphs = Graphs()
    recompiles = Recompiles(graphs, settled=3, patience=3)
    said: list[str] = []
    taken = []
    for step in range(101, 121):
        graphs.count += step % 2
        if (sentence := recompiles.after_step(step)) is not None:
            said.append(sentence)
        if step % 10 == 0:
            taken.append(recompiles.take())
    assert taken == [5, 5]
    (sentence,) = said
    assert sentence.startswith("step 109: torch.compile still compiles: 3 more graphs since step 103;")


def test_what_is_compiled_at_first_and_for_a_late_probe_is_nothing_to_tell() -> None:
    graphs = Graphs()
    recompiles = Recompiles(graphs, settled=3, patience=3)
    for step in range(1, 1001):
        graphs.count += {1: 6, 2: 3, 500: 2, 501: 1}.get(step, 0)
        assert recompiles.after_step(step) is None
    assert recompiles.take() == 12 and recompiles.take() == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_compiled_for_a_gpu(dtype: torch.dtype) -> None:
    for lengths in ((300, 212), (256, 256)):
        assert why_not_compiled(BlockForm(384, 6, 4.0, dtype, lengths), CUDA) is None
