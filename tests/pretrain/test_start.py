"""What a run starts from: another run, its optimizer too, or weights from elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import CheckpointError, ConfigError
from launch.train import run_train
from pretrain.build import build_engine
from pretrain.checkpoint import load_encoder
from pretrain.config import RunConfig, plan
from pretrain.strategy.base import Engine, World
from pretrain.tracking.jsonl import read_metrics
from pretrain.weights.folder import write_folder
from pretrain.weights.run import run_weights
from tests.distributed.test_ranks import cut_back
from tests.small_dataset import tiny_config


@pytest.fixture(scope="module")
def first_run(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of masked latent prediction; read only."""
    out = tmp_path_factory.mktemp("first")
    return run_train(tiny_config(small_dataset, out, train={"steps": 4}), quiet=True).run


def follow(dataset: Path, out: Path, init: dict[str, Any], **sections: Any) -> RunConfig:
    return tiny_config(dataset, out, name="second", init=init, **sections)


def engine_of(config: RunConfig) -> Engine:
    return build_engine(plan(config, 1), World(0, 1, torch.device("cpu")))


def weights_of(module: torch.nn.Module | None) -> dict[str, torch.Tensor]:
    assert module is not None
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_run_goes_on_from_another_with_all_its_parts(
    first_run: Path, small_dataset: Path, tmp_path: Path
) -> None:
    engine = engine_of(follow(small_dataset, tmp_path, {"weights": str(first_run)}))
    target, context = (run_weights(first_run, of=of) for of in ("target", "context"))  # type: ignore[arg-type]
    assert same(weights_of(engine.target), target.part("encoder"))
    assert same(weights_of(engine.objective.encoder), context.part("encoder"))
    assert same(weights_of(engine.objective.predictor), context.part("predictor"))  # type: ignore[arg-type]
    assert not same(target.part("encoder"), context.part("encoder"))
    assert engine.optimizer_step() == 0


def test_the_optimizers_averages_are_taken_when_asked_for(
    first_run: Path, small_dataset: Path, tmp_path: Path
) -> None:
    """With them, the second run's first step is what the first run's fifth would have been."""
    constant = {"lr": 1e-3, "warmup_steps": 0}
    init = {"weights": str(first_run), "optimizer": True}
    engine = engine_of(follow(small_dataset, tmp_path, init, optim=constant))
    assert engine.optimizer_step() == 4
    assert any(key.startswith("exp_avg_sq/") for key in engine.tensors())
    run = run_train(follow(small_dataset, tmp_path, init, train={"steps": 2}), quiet=True).run
    without = follow(small_dataset, tmp_path / "without", {"weights": str(first_run)}, train={"steps": 2})
    losses = [[line["loss"] for line in read_metrics(r)] for r in (run, run_train(without, quiet=True).run)]
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]


@pytest.mark.distributed
@pytest.mark.slow
def test_a_run_of_two_ranks_takes_the_optimizer_of_one(
    first_run: Path, small_dataset: Path, tmp_path: Path
) -> None:
    init = {"weights": str(first_run), "optimizer": True}
    train = {"steps": 2, "micro_batch": 2}
    single = run_train(follow(small_dataset, tmp_path / "one", init, train=train), quiet=True).run
    zero = {"kind": "deepspeed", "zero_stage": 1, "timeout_s": 60}
    both = follow(small_dataset, tmp_path / "two", init, train=train, strategy=zero)
    losses = [
        [line["loss"] for line in read_metrics(r)] for r in (run_train(both, nproc=2, quiet=True).run, single)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-5)


def test_longer_and_larger_clips_go_on_from_shorter_ones(
    first_run: Path, small_dataset: Path, tmp_path: Path
) -> None:
    """A cooldown: rotary positions need no weights, so another number of tokens takes the same ones."""
    engine = engine_of(follow(small_dataset, tmp_path, {"weights": str(first_run)}, data={"size": 64}))
    assert engine.target is not None and engine.target.grid == (4, 8, 8)
    assert same(weights_of(engine.target), run_weights(first_run).part("encoder"))


def test_exported_weights_start_context_and_target_alike(
    first_run: Path, small_dataset: Path, tmp_path: Path
) -> None:
    write_folder(run_weights(first_run), tmp_path / "exported")
    engine = engine_of(follow(small_dataset, tmp_path, {"weights": str(tmp_path / "exported")}))
    wanted = run_weights(first_run).part("encoder")
    assert same(weights_of(engine.target), wanted) and same(weights_of(engine.objective.encoder), wanted)


def test_v_jepa_2_ac_trains_on_a_pretrained_encoder(
    first_run: Path, small_dataset: Path, tmp_path: Path
) -> None:
    config = follow(
        small_dataset,
        tmp_path,
        {"weights": str(first_run), "parts": "encoder"},
        objective={"kind": "action_latent", "action_size": 2, "state_size": 9},
        target={"kind": "frozen"},
        augment={"hflip": False},
        train={"steps": 2},
    )
    run = run_train(config, quiet=True).run
    assert same(weights_of(load_encoder(run)[0]), run_weights(first_run).part("encoder"))


def test_a_resumed_run_does_not_start_anew(first_run: Path, small_dataset: Path, tmp_path: Path) -> None:
    """Its own checkpoint counts, and what it once started from may be gone."""
    moved = tmp_path / "moved"
    write_folder(run_weights(first_run), moved)
    train = {"steps": 4, "checkpoint_every": 2}
    config = follow(small_dataset, tmp_path / "a", {"weights": str(moved)}, train=train)
    run = run_train(config, quiet=True).run
    cut_back(run, tmp_path / "b", 2)
    again = config.model_copy(update={"out": str(tmp_path / "b")})
    shutil.rmtree(moved)
    found = run_train(again, quiet=True).run
    assert [line["loss"] for line in read_metrics(found)] == [line["loss"] for line in read_metrics(run)]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"model": {"encoder": {"preset": "vit_tiny", "width": 96, "depth": 2, "heads": 2, "patch": 8}}},
            r"here \[96",
        ),
        (
            {"model": {"encoder": {"preset": "vit_tiny", "width": 48, "depth": 3, "heads": 2, "patch": 8}}},
            "encoder.blocks.2.norm1.weight is missing",
        ),
        ({"objective": {"kind": "pixel"}}, "init.parts=encoder takes the encoder alone"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    first_run: Path, small_dataset: Path, tmp_path: Path, sections: dict[str, Any], words: str
) -> None:
    config = follow(small_dataset, tmp_path, {"weights": str(first_run)}, **sections)
    with pytest.raises(CheckpointError, match=words):
        run_train(config, quiet=True)


def test_weights_that_are_not_there_are_told_before_a_start(small_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"init\.weights"):
        run_train(follow(small_dataset, tmp_path, {"weights": str(tmp_path / "nothing")}), quiet=True)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("rope", "interleaved"), ("heads", 4), ("rope_span", 7), ("rope", "none")]
)
def test_what_shapes_do_not_tell_is_compared_too(
    first_run: Path, small_dataset: Path, tmp_path: Path, key: str, value: Any
) -> None:
    encoder = {"preset": "vit_tiny", "width": 48, "depth": 2, "heads": 2, "patch": 8, key: value}
    config = follow(small_dataset, tmp_path, {"weights": str(first_run)}, model={"encoder": encoder})
    with pytest.raises(CheckpointError, match=rf"of another model: model\.encoder\.{key} is .* there and"):
        run_train(config, quiet=True)


@pytest.mark.parametrize("change", [{"size": 64}, {"frames": 4}])
def test_a_fixed_table_of_positions_is_not_taken_to_other_clips(
    small_dataset: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    """Sines and cosines of another grid are other features: a rope of none has no cooldown."""
    shape = {"preset": "vit_tiny", "width": 48, "depth": 2, "heads": 2, "patch": 8, "rope": "none"}
    model = {"model": {"encoder": shape}}
    run = run_train(tiny_config(small_dataset, tmp_path, train={"steps": 2}, **model), quiet=True).run
    init = {"weights": str(run)}
    engine = engine_of(follow(small_dataset, tmp_path, init, **model))
    assert same(weights_of(engine.target), run_weights(run).part("encoder"))
    words = r"8 frames of 32 pixels a side.*; set data\.frames=8 data\.size=32, or start from"
    with pytest.raises(CheckpointError, match=words):
        engine_of(follow(small_dataset, tmp_path, init, data=change, **model))


@pytest.mark.distributed
def test_given_weights_are_exact_under_bf16(first_run: Path, small_dataset: Path, tmp_path: Path) -> None:
    """DeepSpeed makes its masters of bf16 weights: they are put right afterwards."""
    config = follow(
        small_dataset,
        tmp_path,
        {"weights": str(first_run)},
        train={"steps": 1, "precision": "bf16"},
        optim={"lr": 1e-30, "warmup_steps": 0, "weight_decay": 0.0},
        target={"momentum": {"start": 1.0, "end": 1.0}},
        strategy={"kind": "deepspeed", "zero_stage": 1, "timeout_s": 60},
    )
    run = run_train(config, quiet=True).run
    for of in ("context", "target"):
        assert same(run_weights(run, of=of).tensors, run_weights(first_run, of=of).tensors), of  # type: ignore[arg-type]
