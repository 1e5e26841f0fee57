"""Runs of every kind of objective and target: they train, are saved and resumed, and load as an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import ConfigError
from launch.train import run_train
from pretrain.checkpoint import load_encoder, untrained_encoder
from pretrain.config import RunConfig
from pretrain.report import judge_health
from pretrain.tracking.jsonl import read_metrics
from tests.distributed.test_ranks import cut_back
from tests.small_dataset import tiny_config, write_dataset

KINDS: dict[str, dict[str, Any]] = {
    "masked, no stop-gradient": {"target": {"kind": "online", "stop_gradient": False}},
    "masked, frozen target": {"target": {"kind": "frozen"}},
    "pixel": {"objective": {"kind": "pixel"}},
    "contrastive, sigreg": {"objective": {"kind": "contrastive", "regularisers": [{"kind": "sigreg"}]}},
    "future": {
        "objective": {"kind": "future_latent", "action_size": 2, "past": [0.3, 0.7]},
        "augment": {"hflip": False},
    },
    "action": {
        "objective": {"kind": "action_latent", "action_size": 2, "state_size": 9},
        "target": {"kind": "frozen"},
        "augment": {"hflip": False},
    },
    "states": {
        "objective": {"kind": "states", "classes": {"shape": 3}},
        "augment": {"hflip": False},
    },
}


def config_of(name: str, dataset: Path, out: Path, **more: Any) -> RunConfig:
    sections = {"train": {"steps": 4, "checkpoint_every": 2}, "health": {"every": 2}} | KINDS[name] | more
    return tiny_config(dataset, out, **sections)


def curve(run: Path) -> list[tuple[Any, ...]]:
    lines = read_metrics(run)
    parts = sorted(key for key in lines[0] if key.startswith("loss"))
    assert len(parts) >= 2, "the loss and what it is made of"
    return [tuple(line[key] for key in ("step", "batch_digest", *parts)) for line in lines]


@pytest.mark.parametrize("name", KINDS)
def test_a_run_is_saved_and_goes_on_as_if_it_had_not_stopped(
    small_dataset: Path, tmp_path: Path, name: str
) -> None:
    run = run_train(config_of(name, small_dataset, tmp_path / "whole"), quiet=True).run
    cut_back(run, tmp_path / "again", 2)
    again = run_train(config_of(name, small_dataset, tmp_path / "again"), quiet=True).run
    assert curve(again) == curve(run)
    assert judge_health(read_metrics(run), 0.01).word == "healthy", "by the context where no target is read"
    encoder, config, step = load_encoder(run)
    assert step == 4
    start = untrained_encoder(config)
    moved = any(not torch.equal(a, b) for a, b in zip(encoder.parameters(), start.parameters(), strict=True))
    assert moved == (name != "action"), "what is measured is what was learned"


def test_pictures_of_a_mixture_have_tokens_of_their_own(small_dataset: Path, tmp_path: Path) -> None:
    stills = write_dataset(
        tmp_path / "stills", {"train": [6]}, num_frames=1, encoding="jpeg", first_number=900
    )
    sources = [{"shards": str(small_dataset)}, {"shards": str(stills)}]
    encoder = {"preset": "vit_tiny", "width": 48, "depth": 2, "heads": 2, "patch": 8}
    config = tiny_config(
        small_dataset,
        tmp_path / "runs",
        data={"shards": sources},
        model={
            "encoder": encoder | {"levels": [1, 2], "pictures": "own", "rope": "interleaved", "rope_span": 4}
        },
        objective={"kind": "masked_latent", "context_loss": {"warmup": [0, 2], "picture_weight": 0.7}},
        train={"steps": 6, "checkpoint_every": 3, "micro_batch": 1},
        health={"every": 2},
    )
    run = run_train(config, quiet=True).run
    seen = set().union(*read_metrics(run))
    assert {"loss/mask0", "loss/mask1", "loss/mask2", "loss/context", "health/target_std"} <= seen
    assert all(line["loss/mask2"] == line["loss/mask2"] for line in read_metrics(run) if "loss/mask2" in line)
    cut_back(run, tmp_path / "again", 3)
    again = config.model_copy(update={"out": str(tmp_path / "again")})
    assert [line["loss"] for line in read_metrics(run_train(again, quiet=True).run)] == [
        line["loss"] for line in read_metrics(run)
    ]


@pytest.mark.distributed
@pytest.mark.parametrize(
    "name",
    [
        "action",
        pytest.param("masked, no stop-gradient", marks=pytest.mark.slow),
        pytest.param("pixel", marks=pytest.mark.slow),
        pytest.param("future", marks=pytest.mark.slow),
        pytest.param("states", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_lose_what_one_process_loses(small_dataset: Path, tmp_path: Path, name: str) -> None:
    train = {"steps": 3, "global_batch": 4, "micro_batch": 1, "precision": "fp32"}
    strategy = {"kind": "deepspeed", "zero_stage": 1, "timeout_s": 60}
    single = run_train(config_of(name, small_dataset, tmp_path / "one", train=train), quiet=True).run
    both = config_of(name, small_dataset, tmp_path / "two", train=train, strategy=strategy)
    run = run_train(both, nproc=2, quiet=True).run
    losses = [[line["loss"] for line in read_metrics(folder)] for folder in (run, single)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-5)


@pytest.mark.parametrize(
    ("key", "got", "words"),
    [("action_size", 3, r"which is 2 a frame: ax, ay"), ("state_size", 4, r"which is 9 a frame: x, y, vx")],
)
def test_actions_of_another_size_are_told_before_a_start(
    small_dataset: Path, tmp_path: Path, key: str, got: int, words: str
) -> None:
    sizes = {"action_size": 2, "state_size": 9} | {key: got}
    config = config_of("action", small_dataset, tmp_path, objective={"kind": "action_latent", **sizes})
    with pytest.raises(ConfigError, match=words) as caught:
        run_train(config, quiet=True)
    assert caught.value.problems[0].key == f"objective.{key}"
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("key", "objective", "words"),
    [
        ("targets", {"targets": {"x": [0, 1], "height": [0, 1]}}, r"height.*x, y, vx, vy, bx, by"),
        ("classes", {"classes": {"form": 3}}, r"form.*shape, colour"),
        ("classes.bx", {"classes": {"bx": 3}}, r"classes from 0 to 2"),
    ],
)
def test_states_that_the_data_lack_are_told_before_a_start(
    small_dataset: Path, tmp_path: Path, key: str, objective: dict[str, Any], words: str
) -> None:
    config = config_of("states", small_dataset, tmp_path, objective={"kind": "states"} | objective)
    with pytest.raises(ConfigError, match=words) as caught:
        run_train(config, quiet=True)
    assert caught.value.problems[0].key == f"objective.{key}"
    assert not (tmp_path / "tiny").exists()
