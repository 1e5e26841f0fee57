"""The encoder of a run, out of its checkpoint: what probes, pictures and features start from."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from pretrain.checkpoint.fragments import StoredFragments
from pretrain.checkpoint.whole import chosen_checkpoint, newest_whole
from pretrain.config import RunConfig
from pretrain.ema import Fragment
from pretrain.model.vit import Encoder
from pretrain.objective.make import first_encoder, make_objective
from pretrain.strategy.base import TARGET
from pretrain.strategy.shards import MASTER


def read_run_config(run: Path) -> RunConfig:
    """The config that a run's newest whole checkpoint was trained with."""
    return RunConfig.model_validate(newest_whole(run)[1]["config"])


def untrained_encoder(config: RunConfig) -> Encoder:
    """The run's encoder before its first step: the baseline of every claim. On CPU, eval mode."""
    return first_encoder(make_objective(config), config)


def load_encoder(run: Path, step: int | None = None) -> tuple[Encoder, RunConfig, int]:
    """The target encoder (moving average) of a checkpoint, float32 on CPU, with its config and step.

    Where there is none, or it never moved (target.kind online or frozen), the context encoder.
    step: None for the newest whole checkpoint. Raises: CheckpointError when there is no such one.
    """
    folder, manifest, passed = chosen_checkpoint(run, step)
    for sentence in passed:
        logging.getLogger("foreframe").warning("passed over a damaged checkpoint: %s", sentence)
    config = RunConfig.model_validate(manifest["config"])
    encoder = untrained_encoder(config)
    stored = StoredFragments(folder / name for name in manifest["files"])
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            kind, stored_as = (MASTER, f"encoder.{name}") if config.learns_in_context else (TARGET, name)
            whole = Fragment(stored_as, 0, parameter.numel())
            parameter.copy_(stored.read(kind, whole).view_as(parameter))
    return encoder, config, manifest["progress"]["step"]
