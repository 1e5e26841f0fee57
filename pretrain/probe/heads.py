"""Trained heads in a folder of their own: weights, and beside them all that is needed to use them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load

from data_pipeline.errors import DataError
from data_pipeline.format import sha256
from data_pipeline.storage import write_whole
from pretrain.probe.attentive import AttentiveHead, HeadForm

HEADS_FOLDER = "probes"
WEIGHTS, FACTS = "head.safetensors", "head.json"


def publish_head(folder: Path, weights: bytes, facts: dict[str, Any]) -> None:
    """Write a head in place of another that may be there; at any moment the folder is whole or absent."""
    part, old = (folder.with_name(f".{folder.name}.{end}") for end in ("part", "old"))
    for rest in (part, old):
        shutil.rmtree(rest, ignore_errors=True)
    part.mkdir(parents=True)
    write_whole(part / WEIGHTS, weights)
    told = facts | {"weights_sha256": sha256(weights)}
    write_whole(part / FACTS, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_attentive(folder: Path) -> tuple[AttentiveHead, dict[str, Any]]:
    """A head that `foreframe probe` trained, in eval mode, and its facts: labels, preprocessing, encoder.

    It takes tokens (B, N, D), as `pretrain.features.Encoder` gives them, to scores of the labels (B, K).
    Raises: DataError when it is not there or not whole.
    """
    try:
        weights = (folder / WEIGHTS).read_bytes()
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if sha256(weights) != facts["weights_sha256"]:
            raise ValueError(f"{WEIGHTS} has not the hash that {FACTS} tells")
        head = AttentiveHead(HeadForm(**facts["form"]))
        head.load_state_dict(load(weights))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{folder} holds no attentive head that can be read ({error}): probe again"
        ) from error
    return head.eval().requires_grad_(False), facts
