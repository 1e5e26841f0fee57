"""What a checkpoint says of itself: names in its folder, its manifest, and whether that can be believed."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline.errors import CheckpointError, why
from pretrain.config import RunConfig

FOLDER = "checkpoints"
POINTER = "latest"
MANIFEST = "manifest.json"
# 2: the order of samples of format 1 was another. 3: the manifest has a hash of its own. 4: what the sentinel
# remembers is more than the spread of features.
FORMAT_VERSION = 4
STEP_FOLDER = re.compile(r"step-(\d{8,18})")

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
FileName = Annotated[str, Field(pattern=r"^rank-\d{1,9}-of-\d{1,9}\.safetensors$")]


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class _File(_Form):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: Count


class _Reading(_Form):
    model_config = ConfigDict(extra="forbid")

    step: Count
    spread: float | None
    rank: float | None
    loss: float | None
    guess: float | None
    mean_token: float | None
    copied: float | None
    largest_step: float | None
    skipped: Count


class _History(_Form):
    model_config = ConfigDict(extra="forbid")

    start: _Reading | None
    last: _Reading | None
    streaks: dict[str, Count]
    sound_step: Count
    blind: Count
    has_learned: bool
    recent: list[Annotated[list[float], Field(min_length=2, max_length=2)]]


class _Changes(_Form):
    model_config = ConfigDict(extra="forbid")

    rollbacks: Count
    lr_scale: float
    momentum: float


class _Progress(_Form):
    model_config = ConfigDict(extra="forbid")

    step: Count
    samples: Count
    skipped_in_row: Count
    skipped: Count
    bad_samples: Count
    bad_ids: list[str]
    history: _History
    changes: _Changes


class _Manifest(_Form):
    """Every key that something is read from; others may come with later releases."""

    format_version: Literal[4]
    world_size: Annotated[int, Field(ge=1, lt=1 << 31)]
    optimizer_step: Count
    progress: _Progress
    config: dict[str, Any]
    data_fingerprint: str
    files: Annotated[dict[FileName, _File], Field(min_length=1)]
    written_s: float | None = None
    code: dict[str, str | None] = {}
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder; None for any other name."""
    found = STEP_FOLDER.fullmatch(name)
    return int(found[1]) if found else None


def rank_file(rank: int, world_size: int) -> str:
    return f"rank-{rank:05d}-of-{world_size:05d}.safetensors"


def _hash_of(manifest: dict[str, Any]) -> str:
    """Of all that it holds beside its hash, however it is spaced and ordered."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(manifest: dict[str, Any]) -> bytes:
    """The text of a manifest with its hash, by which `parse_manifest` knows that nothing was changed."""
    return text_of(manifest | {"sha256": _hash_of(manifest)})


def text_of(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1).encode()


def parse_manifest(data: bytes, place: str) -> dict[str, Any]:
    """A manifest out of its bytes.

    place: the checkpoint's address, for the message; ends in its step.
    Raises: CheckpointError when it is no manifest of this release, in any of its parts, or of another step.
    """
    try:
        manifest: dict[str, Any] = json.loads(data)
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{place} has no readable {MANIFEST}: {error}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{place} has format version {version!r}; this release reads {FORMAT_VERSION}: go on with the "
            f"release that wrote it, or begin a new run with another name=..."
        )
    for kind, part in ((_Manifest, manifest), (RunConfig, manifest.get("config"))):
        try:
            kind.model_validate(part)
        except (ValidationError, RecursionError) as error:
            raise CheckpointError(f"{place} has a damaged {MANIFEST}: {_first(kind, error)}") from error
    if manifest["sha256"] != _hash_of(manifest):
        raise CheckpointError(f"{place}/{MANIFEST} was changed since it was written: its hash differs")
    step, named = manifest["progress"]["step"], step_of(place.rstrip("/").rpartition("/")[2])
    if named is not None and step != named:
        raise CheckpointError(f"{place} has the {MANIFEST} of step {step}")
    return manifest


def _first(kind: type[BaseModel], error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "it is nested too deeply"
    first, where = error.errors()[0], ["config"] if kind is RunConfig else []
    return f"{'.'.join(map(str, (*where, *first['loc'])))[:200]}: {first['msg'].lower()}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest.

    Raises: CheckpointError with the reason when there is none or it is not one of this release.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder} has no readable {MANIFEST}: {why(error)}") from error
    return parse_manifest(data, str(folder))
