"""V-JEPA 2-AC: each frame's features from those before, the actions and the states; the encoder is frozen.

Frames are encoded one by one, each as a tubelet that stands still. Two losses, both L1 (or L2, if asked) to
layer-normed features: every next frame from the true ones before it (teacher forcing), and the first few
guessed one from another (rollout).
Source: V-JEPA 2, arXiv:2506.09985, sec. 3.1, eq. 2 to 4.

Shapes: B clips, T frames, P patches a frame, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import ModelConfig, TargetConfig
from pretrain.config.objective import ActionLatentConfig
from pretrain.model.actions import ActionPredictor
from pretrain.model.attention import Backend
from pretrain.model.positions import Grid
from pretrain.model.vit import Encoder
from pretrain.objective.base import Batch, Objective, Output, Seen, normed
from pretrain.objective.future import given
from pretrain.objective.guess import Guess


class ActionLatent(Objective):
    """The predictor alone is trained; the target encoder reads every frame."""

    encoder: None

    def __init__(
        self,
        config: ActionLatentConfig,
        model: ModelConfig,
        target: TargetConfig,
        grid: Grid,
        backend: Backend,
        seed: int,
    ) -> None:
        super().__init__(model, target)
        self.encoder = None
        self._config = config
        self._error = {"l1": F.l1_loss, "l2": F.mse_loss}[config.loss]
        frames = grid[0] * model.encoder.tubelet
        self.predictor = ActionPredictor(
            model.predictor,
            model.encoder,
            (frames, *grid[1:]),
            config.action_size,
            config.state_size,
            backend,
        )

    def read(self, encoder: Encoder, batch: Batch) -> Tensor:
        """Features of every frame (B, T, P, D), normed."""
        batch_size, frames = len(batch.clips), batch.clips.shape[2]
        single = batch.clips.transpose(1, 2).flatten(0, 1)[:, :, None]
        return normed(encoder(single)).unflatten(0, (batch_size, frames))

    def forward(self, batch: Batch, targets: Tensor | None) -> Output:
        assert targets is not None, "target.kind is frozen, the config's rules say"
        config = self._config
        actions = given(batch.actions, "actions", config.action_size)
        states = given(batch.states, "states", config.state_size) if config.state_size else None

        def next_frames(known_BtPD: Tensor) -> Tensor:
            count = known_BtPD.shape[1]
            told = None if states is None else states[:, :count]
            return normed(self.predictor(known_BtPD, actions[:, :count], told))

        taught = next_frames(targets[:, :-1])
        rolled = torch.cat([targets[:, :1], taught[:, :1]], dim=1)
        for _ in range(1, config.rollout_steps):
            rolled = torch.cat([rolled, next_frames(rolled)[:, -1:]], dim=1)
        teacher = self._error(taught, targets[:, 1:])
        rollout = self._error(rolled[:, 1:], targets[:, 1 : rolled.shape[1]])
        frames, patches = targets.shape[1:3]
        token = torch.arange(frames * patches, device=targets.device).view(frames, patches)
        clips = len(targets)
        seen = {
            "target": Seen(targets.flatten(0, 2), token.flatten().repeat(clips)),
            "prediction": Seen(taught.detach().flatten(0, 2), token[1:].flatten().repeat(clips)),
        }
        parts = {"teacher_forcing": teacher.detach(), "rollout": rollout.detach()}
        wanted = targets[:, 1:].flatten(0, 2)
        guess = Guess(
            taught.detach().flatten(0, 2),
            wanted,
            torch.arange(len(wanted), device=wanted.device),
            token[1:].flatten().repeat(clips),
            lambda p_PD: self._error(p_PD, wanted),
            lambda: targets[:, :-1].flatten(0, 2),
        )
        return Output(teacher + rollout, parts, seen, guess)
