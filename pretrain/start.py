"""What a run starts from when it has no checkpoint of its own: the seed, or weights from elsewhere.

Names must match, and shapes; a predictor's own head or mask tokens that the stored one has not are refused,
never left at random without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from data_pipeline.errors import CheckpointError, UsageError
from pretrain.checkpoint import StoredFragments, newest_whole
from pretrain.config import InitConfig, ModelConfig
from pretrain.ema import Fragment
from pretrain.model.vit import Encoder
from pretrain.objective.base import Objective
from pretrain.strategy.base import TARGET, Engine
from pretrain.weights.base import Description, Normalisation
from pretrain.weights.read import read_weights
from pretrain.weights.run import is_run, run_weights

MAX_NAMED = 8


def take_weights(
    config: InitConfig, model: ModelConfig, objective: Objective, target: Encoder | None
) -> None:
    """Overwrite initial weights by those of `config.weights`, in place; nothing where none are named.

    Of a run the context encoder takes the context encoder's and the target the moving average's; of other
    weights both take the same.
    Raises: CheckpointError naming every weight that is missing or of another shape, or what of the model that
    has no weights is another; UsageError.
    """
    if config.weights is None:
        return
    path = Path(config.weights)
    weights = run_weights(path) if is_run(path) else read_weights(path)
    encoder = objective.encoder if target is None else target
    assert encoder is not None, "an objective has an encoder to train or one to ask"
    _check_form(weights.description, model, path, with_predictor=config.parts == "all")
    _check_positions(weights.description, encoder, path)
    if target is not None:
        _fill(target, weights.part("encoder"), "encoder", path)
    if objective.encoder is not None:
        if is_run(path) and weights.description.provenance.get("objective") != "action_latent":
            del weights  # not both at once: those of the giant take 4 GB on every rank
            weights = run_weights(path, of="context")
        _fill(objective.encoder, weights.part("encoder"), "encoder", path)
    predictor = getattr(objective, "predictor", None)
    if config.parts == "all" and predictor is not None:
        _fill(predictor, weights.part("predictor"), "predictor", path)


def _check_form(stored: Description, model: ModelConfig, path: Path, *, with_predictor: bool) -> None:
    """What shapes do not tell: heads, positions, levels, how pixels are normalised."""
    theirs, ours = stored.model.encoder, model.encoder
    pairs: dict[str, tuple[object, object]] = {
        f"model.encoder.{key}": (getattr(theirs, key), getattr(ours, key))
        for key in ("patch", "tubelet", "rope", "rope_span", "levels", "pictures")
    }
    pairs["model.encoder.heads"] = theirs.shape[2], ours.shape[2]
    if with_predictor and stored.predictor is not None:
        pairs["model.predictor.heads"] = stored.model.predictor.heads, model.predictor.heads
    pairs["normalisation"] = stored.normalisation, Normalisation()
    others = [f"{key} is {a!r} there and {b!r} here" for key, (a, b) in pairs.items() if a != b]
    if others:
        raise CheckpointError(f"init.weights {path} are of another model: {'; '.join(others)}")


def _check_positions(stored: Description, encoder: Encoder, path: Path) -> None:
    """A fixed table of positions is worked out for the clips of a run: that of others gives other features.

    Rotary positions go on to other clips. Raises: CheckpointError.
    """
    if encoder.rope != "none" or stored.grid == encoder.grid:
        return
    frames, size = encoder.grid[0] * encoder.tubelet, encoder.grid[1] * encoder.patch
    clips = stored.clips
    raise CheckpointError(
        f"init.weights {path} add a table of positions (model.encoder.rope none) of clips of {clips.frames} "
        f"frames of {clips.size} pixels a side, and here it would be of {frames} frames of {size}, which "
        f"gives other features; set data.frames={clips.frames} data.size={clips.size}, or start from weights "
        f"with rotary positions"
    )


@torch.no_grad()
def _fill(module: nn.Module, stored: Mapping[str, Tensor], part: str, path: Path) -> None:
    own = dict(module.named_parameters())
    wrong = [f"{part}.{name} is missing" for name in own if name not in stored]
    wrong += [f"{part}.{name} is not of this model" for name in stored if name not in own]
    wrong += [
        f"{part}.{name} is {list(stored[name].shape)}, here {list(parameter.shape)}"
        for name, parameter in own.items()
        if name in stored and stored[name].shape != parameter.shape
    ]
    if wrong:
        rest = f"; and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
        hint = "; init.parts=encoder takes the encoder alone" if part == "predictor" else ""
        raise CheckpointError(
            f"init.weights {path} does not fit this model: {'; '.join(wrong[:MAX_NAMED])}{rest}{hint}"
        )
    for name, parameter in own.items():
        parameter.copy_(stored[name])


def put_exactly(engine: Engine, weights: Mapping[str, Tensor]) -> None:
    """Write float32 weights, by the objective's names, into the masters, which began in bf16."""

    def read(kind: str, fragment: Fragment) -> Tensor:
        if kind == TARGET:
            assert engine.ema is not None
            return engine.ema.average[engine.ema.fragments.index(fragment)].clone()
        return weights[fragment.name].view(-1)[fragment.start : fragment.start + fragment.numel]

    engine.load(read, 0)


def take_optimizer(config: InitConfig, engine: Engine) -> None:
    """The whole state of another run's newest checkpoint but its counters: AdamW's averages too.

    Every rank reads its own fragments, whatever world wrote them.
    Raises, on every rank: CheckpointError when it is of another model; UsageError when it is no run.
    """
    if not config.optimizer:
        return
    path = Path(config.weights or "")

    def open_stored() -> tuple[StoredFragments, int]:
        if not is_run(path):
            raise UsageError(
                f"init.optimizer is true, and init.weights {path} is no run's folder, which alone holds the "
                f"optimizer's averages: name the run, or set init.optimizer=false"
            )
        folder, manifest, _ = newest_whole(path)
        stored = StoredFragments(folder / name for name in manifest["files"])
        for kind, fragment in engine.owned():
            stored.check(kind, fragment)
        return stored, manifest["optimizer_step"]

    stored, optimizer_step = engine.world.own(open_stored)
    engine.load(stored.read, optimizer_step)
