"""What `config show` tells of a run before any setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import ConfigError
from launch.outline import consequences, mean_kept_and_hidden, measured, num_parameters
from pretrain.config import RunConfig
from pretrain.objective.make import make_objective
from tests.small_dataset import tiny_config

KINDS: list[dict[str, Any]] = [
    {"objective": {"kind": "masked_latent"}},
    {"objective": {"kind": "masked_latent", "context_loss": {"weight": 0.5}}},
    {"objective": {"kind": "future_latent"}},
    {"objective": {"kind": "action_latent"}, "target": {"kind": "frozen"}},
    {"objective": {"kind": "pixel"}},
    {"objective": {"kind": "contrastive"}},
]


def run_of(**changes: Any) -> RunConfig:
    objective = changes.pop("objective", None)
    plain = tiny_config(Path("d"), Path("o"), **changes).model_dump()
    return RunConfig.model_validate(plain if objective is None else {**plain, "objective": objective})


def test_batch_steps_and_schedule_are_told() -> None:
    optim = {"lr": 1e-3, "start_lr": 0.0, "warmup_steps": 2, "decay": "linear", "final_lr": 0.0}
    config = run_of(optim={**optim, "schedule_steps": 27}, train={"steps": 22})
    told = "\n".join(consequences(config, 1))
    assert "4 clips a step = 1 rank × 2 forwards × 2 clips" in told
    assert "22 steps, 88 clips" in told
    assert "first 1   warmed up 2   last 22   (end 27)" in " ".join(
        told.split(" at step ")[1].split("\n")[0:1]
    )
    (lr,) = (line.split()[1:] for line in told.splitlines() if line.split()[0] == "lr")
    assert [float(value) for value in lr] == pytest.approx([5e-4, 1e-3, 2e-4, 0.0])


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.global_batch"):
        consequences(run_of(strategy={"kind": "deepspeed"}), 3)


@pytest.mark.parametrize("changes", KINDS)
def test_weights_are_counted_as_they_are_made(changes: dict[str, Any]) -> None:
    config = run_of(**changes)
    made = dict(make_objective(config).named_children())
    found = num_parameters(config)
    assert found["predictor"] == sum(p.numel() for p in made["predictor"].parameters())
    if "encoder" in made:
        assert found["encoder"] == sum(p.numel() for p in made["encoder"].parameters())
    assert f"{found['encoder'] / 1e6:,.1f} M" in "\n".join(measured(config))


def test_tubes_keep_the_share_they_are_told_to() -> None:
    masks = [{"kind": "tubes", "hidden": 0.75}, {"kind": "future", "past": 0.5}]
    config = run_of(objective={"kind": "masked_latent", "masks": masks})
    (_, tubes, _, tokens), (_, past, _, _) = mean_kept_and_hidden(config)
    assert (tubes, past) == (tokens / 4, tokens / 2)


def test_pictures_are_told_apart_where_they_have_masks_of_their_own() -> None:
    encoder = {"preset": "vit_tiny", "width": 48, "depth": 2, "heads": 2, "patch": 8, "pictures": "own"}
    config = run_of(model={"encoder": encoder, "predictor": {"depth": 1, "width": 24, "heads": 2}})
    assert [tokens for *_, tokens in mean_kept_and_hidden(config)] == [64, 64, 16]
    assert any("of a picture" in line for line in measured(config))
