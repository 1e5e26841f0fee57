"""True states, told by the encoder itself: a supervised ceiling, the arm to compare with.

The same encoder on whole clips, a linear layer on each tubelet's mean feature, and the squared error to the
true states of its frames, in units of their deviation. What an objective without labels learns of the same
states, from as many clips, is read against this.

Shapes: B clips, T frames, t tubelets, P places a tubelet, S states of the data, O numbers told, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.errors import DataError
from pretrain.config import ModelConfig, TargetConfig
from pretrain.config.objective import StatesConfig
from pretrain.model.attention import Backend
from pretrain.model.positions import Grid
from pretrain.model.readout import Readout
from pretrain.model.vit import Encoder
from pretrain.objective.base import Batch, Objective, Output, Seen
from pretrain.objective.guess import Guess


class States(Objective):
    """Encoder and readout, trained together on what is known."""

    encoder: Encoder

    def __init__(
        self,
        config: StatesConfig,
        model: ModelConfig,
        target: TargetConfig,
        grid: Grid,
        backend: Backend,
        seed: int,
    ) -> None:
        super().__init__(model, target)
        self._config = config
        self.encoder = Encoder(model.encoder, grid, backend)
        self.predictor = Readout(self.encoder.width, config.num_outputs)

    def targets(self, target_encoder: Encoder, batch: Batch) -> None:
        """None: states come with the batch, and no target encoder is run."""

    def forward(self, batch: Batch, targets: Tensor | None) -> Output:
        moments, rows, columns = self.encoder.grid
        features_BND = self.encoder(batch.clips)
        said_BtO = self.predictor(features_BND.unflatten(1, (moments, rows * columns))).float()
        wanted_BtO = truth_of(self._config, batch, moments)
        error_O = F.mse_loss(said_BtO, wanted_BtO, reduction="none").mean((0, 1))
        parts = {name: error_O.detach()[own].mean() for name, own in self._config.columns.items()}
        places = rows * columns
        said_XO = said_BtO.detach().repeat_interleave(places, 1).flatten(0, 1)
        wanted_XO = wanted_BtO.repeat_interleave(places, 1).flatten(0, 1)
        source_X = torch.arange(len(said_XO), device=said_XO.device)
        token_X = source_X % (moments * places)
        seen = {
            "context": Seen(features_BND.detach().flatten(0, 1), token_X),
            "prediction": Seen(said_XO, token_X),
        }
        guess = Guess(
            said_XO,
            wanted_XO,
            source_X,
            token_X,
            lambda p_XO: F.mse_loss(p_XO, wanted_XO),
            lambda: torch.zeros_like(wanted_XO),  # nothing is seen to copy: the data's mean
        )
        return Output(error_O.mean(), parts, seen, guess)


def truth_of(config: StatesConfig, batch: Batch, moments: int) -> Tensor:
    """What is to be told of each tubelet (B, t, O), float32: the mean over its frames, standardised.

    nan where a class has a number that there is none of: the loss is nan then, the step is skipped, and its
    samples are named; asking here would have the host wait for a GPU.
    Raises: DataError when the batch has no such states.
    """
    if batch.states is None:
        raise DataError(
            f"objective.kind is states, and not every clip of this batch has states of one kind "
            f"({', '.join(batch.keys[:3])} …): shard the data with a sidecar of states, or leave out the "
            f"data set that has none"
        )
    names = batch.state_names
    lacking = [name for name in config.columns if name not in names]
    if lacking:
        raise DataError(
            f"objective.targets and objective.classes name {', '.join(lacking)}, and the data's states are "
            f"{', '.join(names) or 'without names'}"
        )
    found = []
    for name, (mean, deviation) in config.targets.items():
        found.append((batch.states[..., names.index(name), None] - mean) / deviation)
    for name, count in config.classes.items():
        classes = torch.arange(count, device=batch.states.device)
        is_it = batch.states[..., names.index(name), None] == classes
        share = 1.0 / count
        told = (is_it.float() - share) / (share * (1 - share)) ** 0.5
        found.append(torch.where(is_it.any(-1, keepdim=True), told, torch.nan))
    return torch.cat(found, -1).float().unflatten(1, (moments, -1)).mean(2)
