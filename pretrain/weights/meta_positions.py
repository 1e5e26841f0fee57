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


def grid_of_file(path: Path, table_1ND: Tensor) -> Grid:
    """The (time, rows, columns) of square clips whose sines and cosines these are.

    Raises: CheckpointError when the table is none of V-JEPA's.
    """
    tokens, width = table_1ND.shape[-2:]
    for moments in range(1, tokens + 1):
        side = math.isqrt(tokens // moments)
        grid = moments, side, side
        if moments * side * side == tokens and _is_same(table_1ND, grid, width):
            return grid
    raise CheckpointError(
        f"{path}: pos_embed {tuple(table_1ND.shape)} is not V-JEPA's table of sines and cosines with a third "
        f"of the channels an axis, for no grid of squares: foreframe has no other"
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
    for part, state, key in (("encoder", encoder, encoder_key), ("predictor", predictor, "predictor")):
        table = state.pop(TABLES[part], None)
        name = f"{key}.{TABLES[part]}"
        if table is None:
            continue
        if table.ndim < 2:
            raise CheckpointError(f"{path}: {name} is of shape {tuple(table.shape)}, which is no table")
        if description.model.encoder.rope != "none":
            report.set_aside[name] = f"not used with rope {description.model.encoder.rope}"
        elif _is_same(table, description.grid, table.shape[-1]):
            report.set_aside[name] = "fixed sines and cosines, which foreframe computes: they are equal"
        else:
            raise CheckpointError(
                f"{path}: {name} {tuple(table.shape)} is not the table of the grid {description.grid}, "
                f"width {table.shape[-1]}, with a third of the channels an axis: foreframe has no other"
            )


def _is_same(table_1ND: Tensor, grid: Grid, width: int) -> bool:
    if table_1ND.shape[-2] != math.prod(grid):
        return False
    ours = sincos_table(grid, width)
    return bool(torch.allclose(table_1ND.float().reshape(ours.shape), ours, rtol=0, atol=TOLERANCE))
