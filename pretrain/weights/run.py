"""Weights out of a run's checkpoint: the encoder that was asked for, and the predictor's master weights."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from data_pipeline.errors import UsageError
from pretrain.checkpoint import FOLDER, StoredFragments, chosen_checkpoint
from pretrain.config import RunConfig
from pretrain.ema import Fragment
from pretrain.model.actions import ActionPredictor
from pretrain.model.predictor import Predictor
from pretrain.model.readout import Readout
from pretrain.objective.make import shapes_of
from pretrain.strategy.base import TARGET
from pretrain.strategy.shards import MASTER
from pretrain.weights.base import Clips, Description, PredictorForm, Weights
from pretrain.weights.report import Report

Of = Literal["target", "context"]


def is_run(path: Path) -> bool:
    return (path / FOLDER).is_dir()


def run_weights(run: Path, step: int | None = None, of: Of = "target") -> Weights:
    """The weights alone of `read_run`."""
    return read_run(run, step, of)[0]


def read_run(run: Path, step: int | None = None, of: Of = "target") -> tuple[Weights, Report]:
    """The weights of a run's checkpoint, float32, and what became of all that it holds.

    step: None for the newest whole one. of: the target encoder, or the context encoder where the run trains
    no other (target.kind online or frozen); or the context encoder.
    Raises: CheckpointError when there is no such checkpoint; UsageError when there is no such encoder.
    """
    folder, manifest, passed = chosen_checkpoint(run, step)
    for sentence in passed:
        logging.getLogger("foreframe").warning("passed over a damaged checkpoint: %s", sentence)
    config = RunConfig.model_validate(manifest["config"])
    objective, encoder = shapes_of(config)
    if of == "context" and objective.encoder is None:
        raise UsageError(
            f"{run} trains no context encoder (objective.kind {config.objective.kind}): --of target"
        )
    is_context = of == "context" or config.learns_in_context
    stored, report = StoredFragments(folder / name for name in manifest["files"]), Report(str(run))

    def read(kind: str, stored_as: str, ours: str, parameter: Tensor) -> Tensor:
        report.taken[f"{kind}/{stored_as}"] = ours
        return stored.read(kind, Fragment(stored_as, 0, parameter.numel())).view(parameter.shape)

    tensors: dict[str, Tensor] = {}
    for name, parameter in encoder.named_parameters():
        ours = f"encoder.{name}"
        tensors[ours] = read(*((MASTER, ours) if is_context else (TARGET, name)), ours, parameter)
    predictor = getattr(objective, "predictor", None)
    if isinstance(predictor, Readout):
        predictor = None
        report.set_aside[f"{MASTER}/predictor"] = "the readout of states, which is no predictor"
    if predictor is not None:
        for name, parameter in predictor.named_parameters():
            ours = f"predictor.{name}"
            tensors[ours] = read(MASTER, ours, ours, parameter)
    for kind in sorted(stored.sizes):
        if kind not in (MASTER, TARGET):
            report.set_aside[kind] = "the state of training"
        elif kind == TARGET and is_context:
            frozen = "the frozen encoder, which learned nothing in this run"
            other = "another copy of the encoder: --of target takes it"
            report.set_aside[kind] = frozen if config.learns_in_context else other
        elif kind == MASTER and not is_context and objective.encoder is not None:
            report.set_aside[f"{kind}/encoder"] = "another copy of the encoder: --of context takes it"
    provenance = {
        "name": config.name,
        "run": config.name,
        "step": manifest["progress"]["step"],
        "encoder": "context encoder" if is_context else "target encoder (moving average)",
        "objective": config.objective.kind,
        "data_fingerprint": manifest["data_fingerprint"],
        "foreframe": version("foreframe"),
    }
    if config.target.kind == "frozen" and not is_context:
        provenance["encoder"] = "target encoder (frozen)"
    report.notes.append(f"step {provenance['step']}, {provenance['encoder']}")
    return Weights(_description(config, predictor, provenance), tensors), report


def _description(
    config: RunConfig, predictor: nn.Module | None, provenance: dict[str, object]
) -> Description:
    form, model = None, config.model
    if isinstance(predictor, Predictor):
        rows, _ = predictor.mask_tokens.shape
        model = model.model_copy(
            update={"predictor": model.predictor.model_copy(update={"mask_tokens": rows})}
        )
        form = PredictorForm(
            out_width=predictor.out.out_features, says_context=predictor.out_context is not None
        )
    elif isinstance(predictor, ActionPredictor):
        sizes = [
            embed.in_features if embed is not None else 0
            for embed in (predictor.embed_action, predictor.embed_state)
        ]
        form = PredictorForm(
            kind="action",
            out_width=predictor.out.out_features,
            action_size=sizes[0],
            state_size=sizes[1],
            has_mask_token=predictor.mask_token is not None,
        )
    return Description(
        model=model,
        clips=Clips(frames=config.data.frames, size=config.data.size, fps=config.data.fps),
        predictor=form,
        masks=tuple(mask.model_dump(mode="json") for mask in config.objective.masks),
        provenance=provenance,
    )
