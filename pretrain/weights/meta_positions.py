"""The tables of positions in Meta's files: what grid they are of, and whether they are V-JEPA's.

Shapes: N tokens of the grid, D width.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.errors import CheckpointError
from pretrain.model.positions import Grid, sincos_table
from pretrain.weights.base import Description
from pretrain.weights.report import Report

TOLERANCE = 1e-5
TABLES = {"encoder": "pos_embed", "predictor": "predictor_pos_embed"}


def grid_of_file(path: Path, table_1ND: Tensor, width: int) -> Grid:
    """The (time, rows, columns) of square clips whose sines and cosines these are, `width` a token.

    Raises: CheckpointError when the table is none of V-JEPA's.
    """
    tokens = table_1ND.shape[-2]
    for moments in range(1, tokens + 1):
        side = math.isqrt(tokens // moments)
        grid = moments, side, side
        if moments * side * side == tokens and _is_same(table_1ND, grid, width):
            return grid
    raise CheckpointError(
        f"{path}: pos_embed {tuple(table_1ND.shape)} is V-JEPA's table of sines and cosines, {width} wide "
        f"with a third of the channels an axis, for no grid of squares: foreframe has no other"
    )


def drop_positions(
    path: Path,
    description: Description,
    encoder: dict[str, Tensor],
    predictor: dict[str, Tensor],
    encoder_key: str,
    report: Report,
) -> None:
    """Take the tables out of the state dicts, once they are known to be computed, or not to be used.

    Raises: CheckpointError when one is used and is another than ours.
    """
    model = description.model
    for part, state, key, width in (
        ("encoder", encoder, encoder_key, model.encoder.shape[0]),
        ("predictor", predictor, "predictor", model.predictor.width),
    ):
        table = state.pop(TABLES[part], None)
        name = f"{key}.{TABLES[part]}"
        if table is None:
            continue
        if model.encoder.rope != "none":
            report.set_aside[name] = f"not used with rope {model.encoder.rope}"
        elif _is_same(table, description.grid, width):
            report.set_aside[name] = "fixed sines and cosines, which foreframe computes: they are equal"
        else:
            raise CheckpointError(
                f"{path}: {name} {tuple(table.shape)} is not the table of the grid {description.grid}, "
                f"width {width}, with a third of the channels an axis: foreframe has no other"
            )


def _is_same(table_1ND: Tensor, grid: Grid, width: int) -> bool:
    if tuple(table_1ND.shape) != (1, math.prod(grid), width):
        return False
    return bool(torch.allclose(table_1ND[0].float(), sincos_table(grid, width), rtol=0, atol=TOLERANCE))
