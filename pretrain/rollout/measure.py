"""How far a rolled-out future is from the one that came, at every step, beside what needs no learning.

A clip's first frames are told, and the actions; all later frames are foreseen one from another. Errors are
taken at each step on its own, over clips: of features, the mean L1 to the layer-normed ones, as by default
in training; of features at the one place where the object then is, the same there; of the object's position,
as read from features, the root mean square distance in frame widths.

Shapes: C clips, B clips a batch, T frames, k frames told, h steps foreseen, P places, D width, A action size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import DataError
from pretrain.config import RunConfig
from pretrain.data.augment import eval_view
from pretrain.data.reader import Clip, ClipReader
from pretrain.probe.clips import MIN_CLIPS, choose, open_splits
from pretrain.probe.ridge import Floats, Halves
from pretrain.probe.states import places
from pretrain.probe.views import read_ahead
from pretrain.rollout.model import Model, load_model
from pretrain.rollout.position import PositionDecoder, at_places, fit_decoder

TRUE, SHUFFLED, ZERO = "true actions", "shuffled actions", "zero actions"
COPY, MEAN, CEILING = "copy of the last frame", "mean of the train clips", "true features"
ROLLED = (TRUE, SHUFFLED, ZERO)
HORIZONS = (1, 4, 8, 16)
POSITION = ("x", "y")


@dataclass(frozen=True)
class Rollout:
    """Errors by what was foreseen, each an array over the steps 1 to h; a step's is at its own time alone.

    latent, at_object, position: by TRUE, SHUFFLED, ZERO, COPY and MEAN; of `true features`, the ceiling, the
    position alone. The last two are empty where the data tell no x and y.
    """

    told: int
    clips: int
    unreadable: int
    step: int
    latent: dict[str, Floats]
    at_object: dict[str, Floats]
    position: dict[str, Floats]

    @property
    def steps(self) -> int:
        return len(self.latent[TRUE])

    def measures(self, horizons: Sequence[int] = HORIZONS) -> dict[str, float]:
        """One number a name, such as `rollout latent 4: true actions`, at the horizons that were foreseen."""
        kinds = {"latent": self.latent, "at object": self.at_object, "position": self.position}
        return {
            f"rollout {kind} {horizon}: {name}": float(errors[horizon - 1])
            for kind, rows in kinds.items()
            for name, errors in rows.items()
            for horizon in horizons
            if horizon <= self.steps
        }


@dataclass
class _Sums:
    """Errors by name, summed over clips, for each step."""

    latent: dict[str, Floats] = field(default_factory=dict)
    at_object: dict[str, Floats] = field(default_factory=dict)
    squares: dict[str, Floats] = field(default_factory=dict)
    clips: int = 0
    placed: int = 0  # clips whose positions are told


def measure_rollout(
    run: Path,
    data: str | None = None,
    *,
    told: int = 4,
    steps: int = max(HORIZONS),
    clips: int = 96,
    train_clips: int = 96,
    batch: int = 16,
    step: int | None = None,
    device: str = "cpu",
    on_clip: Callable[[], None] = lambda: None,
) -> Rollout:
    """Roll a run's predictor out over eval clips of a data set; None: the one it was trained on.

    told: frames that are known. clips, train_clips: at most so many, drawn by the run's seed; the latter fit
    the reading of positions, and the mean. Equal arguments give equal numbers.
    Raises: DataError when there are fewer than 8 clips of either split, or they have no actions of the
    model's size; UsageError, CheckpointError as `load_model`.
    """
    model, config = load_model(run, step, device)
    root = data or config.data.sources[0].shards
    config = with_frames(config, told + steps)
    readers = open_splits(root)
    if "eval" not in readers:
        raise DataError(f"{root} has no eval clips: a rollout is measured on clips of other videos")
    lost: list[str] = []
    chosen = {
        split: choose(readers[split], count, config.seed, split)
        for split, count in (("train", train_clips), ("eval", clips))
    }
    train = batches(readers["train"], config, chosen["train"], batch, lost, on_clip)
    decoder, mean_PD, mean_xy = fit_on(model, train, lost)
    sums = _Sums()
    for read in batches(readers["eval"], config, chosen["eval"], batch, lost, on_clip):
        _add(sums, model, read, told, decoder, mean_PD, mean_xy)
    if sums.clips < MIN_CLIPS:
        raise DataError(f"{root} has {too_few(sums.clips, 'eval', lost)}")
    latent = {name: total / sums.clips for name, total in sums.latent.items()}
    at_object = {name: total / sums.placed for name, total in sums.at_object.items()}
    position = {name: np.sqrt(total / sums.placed) for name, total in sums.squares.items()}
    return Rollout(told, sums.clips, len(lost), model.step, latent, at_object, position)


def with_frames(config: RunConfig, frames: int) -> RunConfig:
    """The config with clips of so many frames, of which none is held."""
    data = config.data.model_copy(update={"frames": frames, "short_clips": "refuse"})
    return config.model_copy(update={"data": data})


@dataclass(frozen=True)
class Read:
    """A batch. frames: uint8 (B, T, S, S, 3). actions: (B, T, A). where: (B, T, 2), None where not told."""

    frames: Tensor
    actions: Tensor
    where: Floats | None


def batches(
    reader: ClipReader,
    config: RunConfig,
    indices: Sequence[int],
    size: int,
    lost: list[str],
    on_clip: Callable[[], None] = lambda: None,
) -> Iterator[Read]:
    """Clips in batches of about `size`, none of them of a single clip where there are more.

    lost: is told of those that cannot be read, which are left out.
    """
    names = list(reader.info.state_names)
    columns = [names.index(name) for name in POSITION] if set(POSITION) <= set(names) else None
    for part in np.array_split(np.asarray(indices, np.int64), max(1, len(indices) // size)):
        found: list[Clip] = []
        for read in read_ahead(reader, config.data, part.tolist(), on_clip=on_clip):
            if isinstance(read, DataError):
                lost.append(str(read))
            else:
                found.append(read[0])
        if not found:
            continue
        if any(clip.actions is None for clip in found):
            raise DataError(
                "some clips have no actions: a rollout is told what was done (docs/data-format.md)"
            )
        states = [clip.state for clip in found if clip.state is not None]
        is_told = columns is not None and len(states) == len(found)
        yield Read(
            torch.stack([eval_view(clip.frames_THWC, config.data.size) for clip in found]),
            torch.from_numpy(np.stack([clip.actions for clip in found if clip.actions is not None])),
            np.stack(states)[..., columns].astype(np.float64) if is_told else None,
        )


def too_few(clips: int, split: str, lost: Sequence[str]) -> str:
    """So many clips, and why the first of the others could not be read."""
    first = f"; the first of {len(lost)} others: {lost[0]}" if lost else ""
    return f"{clips} {split} clips that can be read: need {MIN_CLIPS}{first}"


def fit_on(
    model: Model, train: Iterator[Read], lost: Sequence[str] = (), frames_a_clip: int = 5
) -> tuple[PositionDecoder | None, Tensor, Floats]:
    """The reading of positions, the mean feature of each place (P, D), the mean position (2,).

    Of each clip some frames, spread evenly. lost: what `train` was told to say of those that it could not
    read. Raises: DataError with fewer than 8 clips.
    """
    features: list[Halves] = []
    where: list[Floats] = []
    total, count, clips = torch.zeros(()), 0, 0
    for read in train:
        some = np.linspace(0, read.frames.shape[1] - 1, frames_a_clip).round().astype(int)
        seen = model.read(read.frames[:, some])
        total, count, clips = total + seen.sum((0, 1)).cpu(), count + len(some) * len(seen), clips + len(seen)
        if read.where is not None:
            features.append(at_places(seen, model.places))
            where.append(read.where[:, some])
    if clips < MIN_CLIPS:
        raise DataError(f"there are {too_few(clips, 'train', lost)}")
    mean = (total / count).to(model.device)
    if not where:
        return None, mean, np.full(2, np.nan)
    return fit_decoder(features, where, model.places), mean, np.concatenate(where).mean((0, 1))


def _add(
    sums: _Sums,
    model: Model,
    read: Read,
    told: int,
    decoder: PositionDecoder | None,
    mean_PD: Tensor,
    mean_xy: Floats,
) -> None:
    """Foresee one batch in every way, and add what it was wrong by."""
    if read.actions.shape[-1] != model.action_size:
        raise DataError(
            f"actions of these clips have {read.actions.shape[-1]} numbers, and the model was trained on "
            f"{model.action_size}"
        )
    seen = model.read(read.frames)
    past, wanted = seen[:, :told], seen[:, told:]
    actions = read.actions[:, :-1].to(model.device)
    others = actions.roll(1, 0) if len(actions) > 1 else torch.zeros_like(actions)
    said = {
        TRUE: model.roll(past, actions),
        SHUFFLED: model.roll(past, _from(told, actions, others)),
        ZERO: model.roll(past, _from(told, actions, torch.zeros_like(actions))),
        COPY: past[:, -1:].expand_as(wanted),
        MEAN: mean_PD.expand_as(wanted),
    }
    errors = {name: _apart(foreseen, wanted) for name, foreseen in said.items()}
    for name, error_BhP in errors.items():
        _count(sums.latent, name, error_BhP.mean(-1))
    sums.clips += len(seen)
    if decoder is None or read.where is None:
        return
    sums.placed += len(seen)
    truth = read.where[:, told:]
    nearest_Bh1 = ((truth[:, :, None] - places(*model.places)) ** 2).sum(-1).argmin(-1)[..., None]
    for name, error_BhP in errors.items():
        _count(sums.at_object, name, np.take_along_axis(error_BhP, nearest_Bh1, -1)[..., 0])
    for name, foreseen in (said | {CEILING: wanted}).items():
        at = np.broadcast_to(mean_xy, truth.shape) if name == MEAN else decoder(foreseen)
        _count(sums.squares, name, ((at - truth) ** 2).sum(-1))


def _count(sums: dict[str, Floats], name: str, errors_Bh: Floats) -> None:
    sums[name] = sums.get(name, 0.0) + errors_Bh.sum(0)


def _apart(said_BhPD: Tensor, wanted_BhPD: Tensor) -> Floats:
    """L1 of each place (B, h, P)."""
    found: Floats = (said_BhPD - wanted_BhPD).abs().mean(-1).double().cpu().numpy()
    return found


def _from(told: int, actions: Tensor, others: Tensor) -> Tensor:
    """Other actions from the last frame told on; those of the past, which were seen to work, stay."""
    return torch.cat([actions[:, : told - 1], others[:, told - 1 :]], dim=1)
