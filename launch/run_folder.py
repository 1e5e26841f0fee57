"""A run's folder: whether a config may start or continue there, and what it holds at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ForeframeError,
    Problem,
    RefusedError,
    StorageError,
    UsageError,
    why,
)
from data_pipeline.storage import write_whole
from launch.config import CONFIG_FILE, diff, dump_config, read_config
from launch.lock import is_bare, run_folder
from pretrain.checkpoint import is_begun, newest_whole, step_folders
from pretrain.config import RunConfig
from pretrain.config.objective import StatesConfig
from pretrain.data.bad import SKIPPED_FILE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pretrain.data.reader import ClipReader

RESULT_FILE = "result.json"

# Settings that may change when a run goes on: they change neither what is learned nor from what.
OPERATIONAL = (
    "out",
    "data.shards",
    "data.cache_bytes",
    "data.cache_folder",
    "data.decoder",
    "data.exclude",
    "data.keep_decoded",
    "data.prefetch",
    "data.remote",
    "data.timeout_s",
    "data.workers",
    "data.max_bad_samples",
    "model.attention",
    "model.products",
    "optim.fused",
    "train.micro_batch",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.keep_best",
    "train.checkpoint_store",
    "train.save_in_background",
    "train.hang_s",
    "train.log_every",
    "train.max_skipped_steps",
    "train.time_limit_s",
    "train.threads",
    "train.compile",
    "strategy",
    "health",
    "probe",
    "tracker",
)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    loss: see `recent_loss`. clips_per_s: of the last line. None when none was.
    bad_samples: different ones that could not be read.
    seconds: since the run was begun or last resumed. stopped: why before its last step, or None.
    is_new: False when the run had ended before, and this is what it left.
    """

    run: Path
    step: int
    loss: float | None
    clips_per_s: float | None
    seconds: float
    stopped: str | None
    bad_samples: int = 0
    is_new: bool = True

    def summary(self) -> str:
        """The result in a line."""
        figures = [f"step {self.step}"]
        if self.loss is not None:
            figures.append(f"loss {self.loss:.4f}")
        if self.clips_per_s is not None:
            figures.append(f"{self.clips_per_s:.1f} clips/s")
        line = ", ".join([*figures, f"{self.seconds:.0f} s"])
        if not self.is_new:
            return f"already finished, nothing to do: {line} when it was trained"
        if self.clips_per_s is None and self.stopped is None:
            return f"{line}: the last checkpoint was of the last step, no step was left to take"
        if self.stopped is not None:
            line = f"stopped, {self.stopped}: {line}"
        if self.bad_samples:
            what = "1 sample" if self.bad_samples == 1 else f"{self.bad_samples} samples"
            line += f"\nbad    {what} could not be read: {self.run / SKIPPED_FILE} says which, and why"
        return line

    def write(self) -> None:
        plain = {key: value for key, value in asdict(self).items() if key != "is_new"} | {
            "run": str(self.run)
        }
        write_whole(self.run / RESULT_FILE, json.dumps(plain, indent=1, allow_nan=False).encode())

    @classmethod
    def read(cls, run: Path) -> TrainResult:
        """Raises: ValueError when the file is no result."""
        plain = json.loads((run / RESULT_FILE).read_bytes())
        try:
            return cls(**{**plain, "run": run})
        except TypeError as error:
            raise ValueError(str(error)) from error


def scientific_changes(before: RunConfig, after: RunConfig, allowed: Sequence[str] = ()) -> list[Problem]:
    """Settings that differ and would make the run another experiment; `allowed` ones are not among them."""
    optim, momentum = after.optim, after.target.momentum
    is_flat = optim.decay == "constant" and optim.final_weight_decay is None
    is_endless = optim.schedule_steps is not None or (is_flat and momentum.start == momentum.end)
    compares = compares_clips(before) or compares_clips(after)
    operational = [key for key in OPERATIONAL if key != "train.micro_batch" or not compares]
    free = (*operational, *allowed, *(("train.steps",) if is_endless else ()))
    if Path(before.init.weights or "").name == Path(after.init.weights or "").name:
        free = (*free, "init.weights")  # they lie elsewhere now, and were read when the run began
    return [
        Problem(key, f"{old!r}, as the run that is there was started with", new)
        for key, old, new in diff(before, after)
        if not any(key == name or key.startswith(name + ".") for name in free)
    ]


def compares_clips(config: RunConfig) -> bool:
    """Whether the loss of a clip depends on the others of its forward, and so on how many they are."""
    objective = config.objective
    has_regularisers = bool(getattr(objective, "regularisers", ()))
    return objective.kind == "contrastive" or has_regularisers or objective.truncate == "raster"


def refuse_changes(before: RunConfig, after: RunConfig, allowed: Sequence[str], place: Path) -> None:
    """Raises: ConfigError with every scientific setting that differs from what `place` was made with."""
    changes = scientific_changes(before, after, allowed)
    if not changes:
        return
    error = ConfigError.of(changes)
    error.args = (
        f"{error}\n{place} holds another run; choose another name=..., or go on as another experiment "
        f"with {' '.join(f'--allow-change {problem.key}' for problem in changes)}",
    )
    raise error


def make_run(config: RunConfig, allow_change: Sequence[str] = ()) -> Path:
    """The folder of a run that is new, or that this config goes on with; made, and nothing is written there.

    allow_change: dotted keys of scientific settings that may differ.

    Raises: ConfigError with every scientific setting that differs from the run that is there; UsageError
    when the folder holds something else, or cannot be made.
    """
    run = run_folder(config)
    known = run / CONFIG_FILE
    if known.is_file():
        if step_folders(run):  # else nothing was learned there yet: the config may still be mended
            refuse_changes(read_config(known, [], RunConfig), config, allow_change, run)
    elif run.is_dir() and not is_bare(run):
        raise UsageError(f"{run} exists and holds no run; choose another name=... or out=..., or empty it")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{run} cannot be written, choose another out=...: {why(error)}") from error
    return run


def open_run(config: RunConfig, allow_change: Sequence[str] = ()) -> Path:
    """`make_run`, and its config.yaml is this config from now on; for the process that holds the folder."""
    run = make_run(config, allow_change)
    try:
        write_whole(run / CONFIG_FILE, dump_config(config).encode())
    except OSError as error:
        raise UsageError(f"{run} cannot be written, choose another out=...: {why(error)}") from error
    return run


def finished(run: Path, steps: int) -> TrainResult | None:
    """The result of a run that has already taken `steps` steps, else None."""
    try:
        result = replace(TrainResult.read(run), is_new=False)
        if result.step < steps:
            return None
        _, manifest, _ = newest_whole(run)
    except FileNotFoundError:  # or gone this moment: another machine's rank 0 begins anew
        return None
    except (CheckpointError, ValueError):  # a result that cannot be read is written anew
        return None
    return result if manifest["progress"]["step"] >= steps else None


def check_data(config: RunConfig) -> None:
    """Open each data set and read one clip, before any rank is started; and look for init.weights.

    Raises: DataError, also when a file of a shard is missing, or none of some clips can be read; ConfigError
    when clips are shorter than data.frames at data.fps.
    """
    weights = config.init.weights
    is_missing = weights is not None and not Path(weights).exists()
    if is_missing and not is_begun(run_folder(config), config.train.checkpoint_store):
        raise ConfigError("init.weights", got=weights, need="a run's folder or weights that exist")
    for source in config.data.sources:
        _check_source(config, source.shards)


def _check_source(config: RunConfig, root: str) -> None:
    from pretrain.data.load import MAX_REPLACEMENTS
    from pretrain.data.reader import ClipReader

    reader = ClipReader(root, config.data.split, decoder=config.data.decoder)
    reader.check_files()
    found: ForeframeError | None = None
    for number in range(min(len(reader), MAX_REPLACEMENTS)):  # training replaces what it cannot use
        try:
            _check_clip(config, reader, number, root)
            return
        except (StorageError, RefusedError):
            raise
        except ConfigError as error:
            found = error
        except DataError as error:
            found = DataError(f"{error}; run `foreframe verify {root}` to see what else is damaged")
    assert found is not None
    raise found


def _check_clip(config: RunConfig, reader: ClipReader, number: int, root: str) -> None:
    meta = reader.meta(number)
    for key, names in (("action_size", meta.action_names), ("state_size", meta.state_names)):
        wanted = getattr(config.objective, key, 0)
        if wanted not in (0, len(names)):
            found = f"{len(names)} a frame: {', '.join(names)}" if names else "none; see the docs on sidecars"
            raise ConfigError(
                f"objective.{key}",
                got=wanted,
                need=f"as many as the clips of {root} have, which is {found}",
                try_=(len(names),) if names else (),
            )
    if isinstance(config.objective, StatesConfig):
        _check_names(config.objective, meta.state_names, root)
    seconds, holds = meta.num_frames / meta.fps, config.data.short_clips == "hold"
    is_short = config.data.frames / config.data.fps > seconds + 0.5 / meta.fps
    if is_short and meta.num_frames > 1 and not holds:
        tubelet = config.model.encoder.tubelet
        fitting = int(seconds * config.data.fps) // tubelet * tubelet
        raise ConfigError(
            "data.frames",
            got=config.data.frames,
            need=f"clips of at most {seconds:g} s as {root} holds: "
            f"frames / fps {config.data.fps:g} ≤ {seconds:g}",
            try_=(fitting,) if fitting else (),
        )
    clip = reader.read_for(config.data, number)
    if isinstance(config.objective, StatesConfig):
        _check_classes(config.objective, meta.state_names, clip.state, root)


def _check_names(objective: StatesConfig, names: Sequence[str], root: str) -> None:
    lacking = [name for name in objective.columns if name not in names]
    if lacking:
        known = ", ".join(names) or "none; see the docs on sidecars"
        key = "targets" if lacking[0] in objective.targets else "classes"
        need = f"names of states that the clips of {root} have: {known}"
        raise ConfigError(f"objective.{key}", got=", ".join(lacking), need=need)


def _check_classes(
    objective: StatesConfig, names: Sequence[str], state: NDArray[np.float32] | None, root: str
) -> None:
    import numpy as np

    for name, count in objective.classes.items():
        found = np.unique(state[:, names.index(name)]) if state is not None else np.zeros(0)
        if not np.isin(found, np.arange(count)).all():
            has = ", ".join(f"{each:g}" for each in found[:4])
            need = f"a state that numbers classes from 0 to {count - 1}; a clip of {root} has {has}"
            raise ConfigError(f"objective.classes.{name}", got=count, need=need)
