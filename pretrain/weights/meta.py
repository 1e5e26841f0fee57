"""Meta's .pt files: V-JEPA, V-JEPA 2, 2-AC and 2.1, known by their keys and measured by their shapes.

A file is a training checkpoint: an encoder, its moving average, a predictor, and the state of training. It
is opened with weights_only, so that nothing in it can run. What shapes do not show is asked for: heads of
unpublished widths, and whether a table of positions in the file is used (V-JEPA) or a relic (V-JEPA 2).
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from data_pipeline.errors import CheckpointError, UsageError, why
from pretrain.config import ModelConfig, PredictorConfig, Section
from pretrain.config.base import PositiveInt, first_finding
from pretrain.config.model import Rope
from pretrain.weights.base import Clips, Description, PredictorForm, Weights, expected_shapes
from pretrain.weights.meta_positions import drop_positions, grid_of_file
from pretrain.weights.names import meta_parts
from pretrain.weights.presets import encoder_config, encoder_heads, predictor_heads
from pretrain.weights.report import Report, take

AVERAGES = ("target_encoder", "ema_encoder")
CONTEXT = "encoder"
PREDICTOR = "predictor"
TRAINING = ("opt", "optimizer", "scaler", "epoch", "loss", "batch_size", "world_size", "lr")
ZIP_MAGIC = b"PK\x03\x04"
PREFIXES = ("module.", "backbone.")
MAX_DIGITS = 3  # of a block's number
# V-JEPA 2.1 takes features after these blocks (counted from 1), by depth.
LEVELS = {12: (3, 6, 9, 12), 24: (6, 12, 18, 24), 40: (10, 20, 30, 40), 48: (12, 24, 38, 48)}
SPAN_PX = 256  # V-JEPA 2.1 spreads positions over the grid of this size


class Hints(Section):
    """What a .pt does not tell; None where it does, or where what was published is taken.

    rope: vjepa2, interleaved or none. heads, predictor_heads: attention heads. frames, size, fps: the clips
    it was trained on. of: `target`, the moving average, or `context`; None prefers the average.
    """

    rope: Rope | None = None
    heads: PositiveInt | None = None
    predictor_heads: PositiveInt | None = None
    frames: PositiveInt | None = None
    size: PositiveInt | None = None
    fps: float | None = Field(None, gt=0)
    of: Literal["target", "context"] | None = None


def read_meta(path: Path, hints: Hints) -> tuple[Weights, Report]:
    """Weights of a .pt and what became of its keys.

    Raises: CheckpointError when it cannot be opened or is no such file; UsageError when a hint is needed.
    """
    stored = open_pickle(path)
    report = Report(path.name)
    key = _encoder_key(path, stored, hints.of)
    encoder = _cleaned(stored[key], key, report)
    predictor = _cleaned(_mapping(path, stored, PREDICTOR), PREDICTOR, report)
    _account_for_others(stored, key, report)
    try:
        found = _Measured(path, encoder, predictor, hints, report)
        description = found.description()
    except ValidationError as error:
        raise CheckpointError(f"{path} cannot be used: {first_finding(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    report.notes.insert(0, f"{found.family}, encoder from the key {key!r}")
    drop_positions(path, description, encoder, predictor, key, report)
    found.drop_unused(key)
    source = {f"{key}.{name}": t for name, t in encoder.items()}
    source |= {f"{PREDICTOR}.{name}": t for name, t in predictor.items()}
    parts = meta_parts(description.model, description.predictor, key, found.num_norms, found.has_one_token)
    tensors = take(parts, expected_shapes(description), source, report)
    return Weights(description, tensors), report


def open_pickle(path: Path) -> Mapping[str, Any]:
    """What a .pt holds, tensors mapped and not yet read; no code of the file's is run.

    Raises: CheckpointError when it is damaged, or holds more than tensors and plain values.
    """
    damaged = f"{path} is cut short or damaged, or no .pt: get it once more"
    try:
        is_zip = zipfile.is_zipfile(path)
        with path.open("rb") as file:
            if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC and not is_zip:
                raise CheckpointError(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols that weights_only may refuse
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global|class) ([\w.]+\.\w+)", str(error))
        if named is None:
            raise CheckpointError(damaged) from error
        raise CheckpointError(
            f"{path} holds {named[1]}, which is neither a tensor nor a plain value and could run code when "
            f"it is loaded: it was not opened. Ask whoever made it for safetensors"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {why(error)}") from error
    except (EOFError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(damaged) from error
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"{path} holds a {type(stored).__name__}, need a checkpoint of named parts")
    return stored


def _mapping(path: Path, stored: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of the file, empty if it has none. Raises: CheckpointError when it holds something else."""
    part = stored.get(key, {})
    if not isinstance(part, Mapping):
        raise CheckpointError(f"{path}: {key!r} holds a {type(part).__name__}, need tensors by name")
    return part


def _encoder_key(path: Path, stored: Mapping[str, Any], of: str | None) -> str:
    have = [key for key in (*AVERAGES, CONTEXT) if isinstance(stored.get(key), Mapping)]
    wanted = [key for key in have if of is None or (key == CONTEXT) == (of == "context")]
    if wanted:
        return wanted[0]
    found = ", ".join(sorted(map(str, stored))[:12]) or "nothing"
    if have:
        raise UsageError(f"{path} has no {of} encoder, only {have[0]!r}: leave --of out")
    raise CheckpointError(
        f"{path} is no checkpoint of Meta's: it needs one of {', '.join((*AVERAGES, CONTEXT))}, "
        f"and holds {found}"
    )


def _cleaned(state: Mapping[str, Any], key: str, report: Report) -> dict[str, Tensor]:
    """A state dict without what wrappers put before its names."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        plain = str(name)
        while plain.startswith(PREFIXES):
            plain = plain.partition(".")[2]
        if plain in found:
            raise CheckpointError(f"{key} holds {plain} twice, under different names: which one counts?")
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested and value.ndim:
            found[plain] = value
        else:
            report.unexpected.append(f"{key}.{plain}")
    return found


def _account_for_others(stored: Mapping[str, Any], key: str, report: Report) -> None:
    """Every key of the file that is neither the encoder nor the predictor."""
    for other, value in stored.items():
        if other in (key, PREDICTOR):
            continue
        if other in (*AVERAGES, CONTEXT):
            of = "context" if other == CONTEXT else "target"
            report.set_aside[other] = f"another copy of the encoder: --of {of} takes it"
        elif other in TRAINING or not isinstance(value, Tensor | Mapping):
            report.set_aside[str(other)] = "the state of training"
        else:
            report.unexpected.append(str(other))


class _Measured:
    """A file's model, from names and shapes.

    num_norms: last norms of V-JEPA 2.1, 0 for the one of others. has_one_token: one mask token for all.
    """

    def __init__(
        self,
        path: Path,
        encoder: dict[str, Tensor],
        predictor: dict[str, Tensor],
        hints: Hints,
        report: Report,
    ) -> None:
        self._path, self._encoder, self._predictor = path, encoder, predictor
        self._hints, self._report = hints, report
        self.num_norms = _count(encoder, "norms_block")
        self.is_2_1 = bool(self.num_norms) or "img_mod_embed" in encoder
        self.is_action = "action_encoder.weight" in predictor
        self.is_distilled = self.is_2_1 and "predictor_embed.weight" in predictor
        tokens = [predictor.get(f"mask_tokens.{row}") for row in range(_count(predictor, "mask_tokens"))]
        self.has_one_token = self.is_2_1 and not any(t is None or bool(t.any()) for t in tokens[1:])
        self._num_tokens = 1 if self.has_one_token else len(tokens)
        if len(tokens) > 1 and not self.is_2_1 and not any(t is None or bool(t.any()) for t in tokens[1:]):
            report.notes.append(
                "all mask tokens but the first are zeros: V-JEPA 2 trains one for all kinds of masks"
            )
        self.rope = self._rope()

    @property
    def family(self) -> str:
        if self.is_2_1:
            return "V-JEPA 2.1, distilled" if self.is_distilled else "V-JEPA 2.1"
        if self.is_action:
            return "V-JEPA 2-AC"
        return {"none": "V-JEPA", "vjepa2": "V-JEPA 2"}.get(self.rope, f"V-JEPA with rope {self.rope}")

    def _rope(self) -> Rope:
        """Raises: UsageError when keys do not tell."""
        has_table = "pos_embed" in self._encoder
        if self._hints.rope == "none" and not has_table:
            raise UsageError(f"{self._path} holds no pos_embed: --rope none is for V-JEPA, whose files do")
        if self._hints.rope is not None:
            return self._hints.rope
        if self.is_2_1:
            return "interleaved"
        if has_table and not self.is_action:
            raise UsageError(
                f"{self._path} holds a table of positions, pos_embed, which V-JEPA adds to its tokens and "
                f"which some files of V-JEPA 2 carry unused: say --rope none for V-JEPA, --rope vjepa2 for "
                f"V-JEPA 2; features of the wrong one are noise"
            )
        return "vjepa2"

    def description(self) -> Description:
        """Raises: CheckpointError, UsageError, ValueError when the shapes are of no model of ours."""
        embed = self._weight(self._encoder, "patch_embed.proj.weight", 5)
        hidden = self._weight(self._encoder, "blocks.0.mlp.fc1.weight", 2)
        width, _, tubelet, patch, _ = embed.shape
        depth = _count(self._encoder, "blocks")
        encoder = encoder_config(
            width=width,
            depth=depth,
            heads=self._hints.heads or encoder_heads(width, depth),
            hidden=hidden.shape[0],
            patch=patch,
            tubelet=tubelet,
            rope=self.rope,
            rope_span=SPAN_PX // patch if self.is_2_1 else None,
            levels=self._levels(depth),
            pictures="own" if self.is_2_1 else "repeat",
        )
        predictor = PredictorConfig()
        if self._predictor:
            inside = self._weight(self._predictor, "predictor_norm.weight", 1).shape[0]
            predictor = PredictorConfig(
                depth=_count(self._predictor, "predictor_blocks") or 1,
                width=inside,
                heads=self._hints.predictor_heads or predictor_heads(inside, encoder),
                mask_tokens=self._num_tokens or None,
            )
        return Description(
            model=ModelConfig(encoder=encoder, predictor=predictor),
            clips=self._clips(width, tubelet, patch),
            predictor=self._form(width * max(1, len(encoder.levels))),
            provenance={
                "name": self._path.stem,
                "source": f"{self.family}, {self._path.name}",
            },
        )

    def _weight(self, state: dict[str, Tensor], name: str, dimensions: int) -> Tensor:
        """A weight whose shape tells something. Raises: CheckpointError."""
        found = state.get(name)
        if found is None or found.ndim != dimensions:
            part = "encoder" if state is self._encoder else "predictor"
            what = "missing" if found is None else f"of shape {tuple(found.shape)}"
            raise CheckpointError(
                f"{self._path}: the {part}'s {name} is {what}, and nothing can be measured without it"
            )
        return found

    def _levels(self, depth: int) -> tuple[int, ...]:
        if self.num_norms <= 1 or self.is_distilled:
            return ()
        if depth not in LEVELS or self.num_norms != len(LEVELS[depth]):
            raise CheckpointError(
                f"{self._path}: {self.num_norms} levels of {depth} blocks; V-JEPA 2.1 has 4 of "
                f"{', '.join(map(str, LEVELS))}"
            )
        return LEVELS[depth]

    def _form(self, width: int) -> PredictorForm | None:
        if not self._predictor:
            self._report.notes.append("no predictor in the file")
            return None
        out_width = width
        if "predictor_proj.weight" in self._predictor:
            out_width = self._weight(self._predictor, "predictor_proj.weight", 2).shape[0]
        if not self.is_action:
            says_context = "predictor_proj_context.weight" in self._predictor
            return PredictorForm(out_width=out_width, says_context=says_context)
        sizes = [
            self._weight(self._predictor, name, 2).shape[1] if name in self._predictor else 0
            for name in ("action_encoder.weight", "state_encoder.weight")
        ]
        return PredictorForm(kind="action", out_width=out_width, action_size=sizes[0], state_size=sizes[1])

    def _clips(self, width: int, tubelet: int, patch: int) -> Clips:
        frames, size = (64, 384) if self.is_2_1 else (64, 256)
        if self.rope == "none":
            table = self._weight(self._encoder, "pos_embed", 3)
            moments, side, _ = grid_of_file(self._path, table, width)
            frames, size = moments * tubelet, side * patch
        elif self._hints.frames is None or self._hints.size is None:
            self._report.notes.append(
                f"clips of {self._hints.frames or frames} frames of {self._hints.size or size} pixels a "
                f"side: not in the file (--frames, --size)"
            )
        return Clips(frames=self._hints.frames or frames, size=self._hints.size or size, fps=self._hints.fps)

    def drop_unused(self, key: str) -> None:
        """Set aside what Meta's models hold and do not use."""
        if self.is_action:
            for name in [name for name in self._predictor if name.startswith("extrinsics_encoder.")]:
                del self._predictor[name]
                self._report.set_aside[f"{PREDICTOR}.{name}"] = "V-JEPA 2-AC makes it and does not use it"
        if self.is_distilled:
            reason = "the predictor of a distilled model takes the last level only, these were not trained"
            for name in [name for name in self._encoder if name.startswith("norms_block.")]:
                if name.split(".")[1] != str(self.num_norms - 1):
                    del self._encoder[name]
                    self._report.set_aside[f"{key}.{name}"] = reason
        if self.has_one_token:
            reason = "zeros: V-JEPA 2.1 trains the first mask token alone, for all kinds of masks"
            for name in [name for name in self._predictor if name.startswith("mask_tokens.")]:
                if name != "mask_tokens.0":
                    del self._predictor[name]
                    self._report.set_aside[f"{PREDICTOR}.{name}"] = reason


def _count(state: Mapping[str, Any], name: str) -> int:
    """One more than the highest number after a name: how many there are, if none is missing.

    Raises: CheckpointError when the number is beyond that of any model.
    """
    numbers = [key.split(".")[1] for key in state if key.startswith(f"{name}.")]
    for number in numbers:
        if number.isdecimal() and len(number) > MAX_DIGITS:
            raise CheckpointError(
                f"a key {name}.{number[:20]}… is of no model of Meta's: its number is too large"
            )
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
