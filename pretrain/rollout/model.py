"""A frozen encoder and the predictor that foresees its features, of a run of objective.kind action_latent.

Shapes: B clips, T frames, t moments known, h moments foreseen, P patches a frame, D width, A action size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.errors import CheckpointError, UsageError
from pretrain.checkpoint import FOLDER, chosen_checkpoint
from pretrain.config import RunConfig
from pretrain.config.objective import ActionLatentConfig
from pretrain.data.augment import normalise
from pretrain.model.actions import ActionPredictor
from pretrain.model.vit import Encoder
from pretrain.objective.base import normed
from pretrain.weights.base import build_encoder, build_predictor
from pretrain.weights.run import is_run, run_weights


@dataclass(frozen=True)
class Model:
    """What sees and what foresees. window: the most moments that the predictor saw at once in training.

    step: of the run's checkpoint that it is from.
    """

    encoder: Encoder
    predictor: ActionPredictor
    window: int
    action_size: int
    step: int

    @property
    def device(self) -> torch.device:
        return next(self.predictor.parameters()).device

    @property
    def places(self) -> tuple[int, int]:
        """Rows and columns of the patches of a frame."""
        return self.encoder.grid[1:]

    @torch.no_grad()
    def read(self, frames_BTHWC: Tensor) -> Tensor:
        """What there is to foresee: layer-normed features (B, T, P, D) of uint8 frames, each by itself."""
        single = normalise(frames_BTHWC.flatten(0, 1)[:, None].to(self.device))
        return normed(self.encoder(single)).unflatten(0, frames_BTHWC.shape[:2])

    @torch.no_grad()
    def roll(self, past_BtPD: Tensor, actions_BnA: Tensor) -> Tensor:
        """Features (B, h, P, D) of the moments after the past, each foreseen from what was foreseen before.

        actions: (B, t - 1 + h, A), each held from a moment to the next, those of the past included. Of more
        moments than the window the last ones are seen.
        """
        known, steps = past_BtPD, actions_BnA.shape[1] - past_BtPD.shape[1] + 1
        assert steps >= 0, "an action for each moment but the last of those foreseen"
        for _ in range(steps):
            last = known.shape[1]
            first = max(0, last - self.window)
            said = self.predictor(known[:, first:], actions_BnA[:, first:last])
            known = torch.cat([known, normed(said[:, -1:])], dim=1)
        return known[:, past_BtPD.shape[1] :]


def check_foresees(config: RunConfig, who: str) -> ActionLatentConfig:
    """The objective of a run that can be rolled out. who: the run, in words. Raises: UsageError."""
    objective = config.objective
    if not isinstance(objective, ActionLatentConfig):
        raise UsageError(
            f"{who} has objective.kind {objective.kind}: rollouts and plans need action_latent, which "
            f"foresees the next frame from frames and actions (docs/objectives.md)"
        )
    if objective.state_size:
        raise UsageError(
            f"{who} was told states of {objective.state_size} numbers: those of frames to come are not known "
            f"to a rollout; train it with objective.state_size=0"
        )
    return objective


def load_model(
    run: Path, step: int | None = None, device: str | torch.device = "cpu"
) -> tuple[Model, RunConfig]:
    """Encoder and predictor of a run's checkpoint, in float32; and the run's config.

    step: None for the newest whole one. Raises: CheckpointError when there is none; UsageError when it is no
    folder, or trains no such predictor, or one that wants to be told states.
    """
    if not is_run(run):
        lost = CheckpointError if run.is_dir() else UsageError
        raise lost(f"{run} is no run's folder: it has no {FOLDER}")
    manifest = chosen_checkpoint(run, step)[1]
    config = RunConfig.model_validate(manifest["config"])
    objective = check_foresees(config, str(run))
    at_step: int = manifest["progress"]["step"]
    weights = run_weights(run, at_step)
    predictor = build_predictor(weights)
    assert isinstance(predictor, ActionPredictor), "as objective.kind says"
    return (
        Model(
            build_encoder(weights).to(device),
            predictor.to(device),
            config.data.frames - 1,
            objective.action_size,
            at_step,
        ),
        config,
    )
