"""What became of every key of a file of weights: taken, missing, unexpected, unfit, set aside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from data_pipeline.errors import CheckpointError
from pretrain.weights.base import Shapes
from pretrain.weights.names import Part

VARIES = r"\.(\d+|weight|bias)(?=\.|$)"


@dataclass
class Report:
    """Of one source. taken: their key to ours. notes: assumptions.

    unfit: key to why: another shape, no floating point, numbers that are not finite. set_aside: key to why.
    """

    source: str
    taken: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    unfit: dict[str, str] = field(default_factory=dict)
    set_aside: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether every key expected was there with its shape, and no other that nobody accounts for."""
        return not (self.missing or self.unexpected or self.unfit)

    def problems(self) -> list[str]:
        """Everything that keeps the source from being whole, a line each."""
        return [
            *(f"missing     {name}" for name in self.missing),
            *(f"unexpected  {name}" for name in self.unexpected),
            *(f"unfit       {name}: {reason}" for name, reason in self.unfit.items()),
        ]

    def check(self, *, allow_partial: bool = False) -> None:
        """Raises: CheckpointError naming every key at fault, unless that is allowed."""
        if self.is_whole or allow_partial:
            return
        counts = f"{len(self.missing)} missing, {len(self.unexpected)} unexpected"
        if self.unfit:
            counts += f", {len(self.unfit)} unfit"
        lines = "\n".join(f"  {line}" for line in self.problems())
        raise CheckpointError(
            f"{self.source} does not fit the model it seems to be of: {counts}\n{lines}\n"
            f"--allow-partial goes on without them"
        )

    def lines(self) -> list[str]:
        """A readable summary: keys that differ by a number, or weight and bias, are told together."""
        found = [f"taken       {_plural(len(self.taken))} of {self.source}"]
        found += _table([(theirs, f"→ {ours}") for theirs, ours in self.taken.items()])
        if self.set_aside:
            found.append(f"set aside   {_plural(len(self.set_aside))}")
            found += _table([(key, reason) for key, reason in self.set_aside.items()])
        found += self.problems()
        found += [f"note        {note}" for note in self.notes]
        return found

    def plain(self) -> dict[str, Any]:
        """Every key, for a JSON file."""
        return {
            "source": self.source,
            "notes": self.notes,
            "taken": self.taken,
            "set_aside": self.set_aside,
            "missing": self.missing,
            "unexpected": self.unexpected,
            "unfit": self.unfit,
        }


def take(
    parts: Sequence[Part], shapes: Shapes, source: dict[str, Tensor], report: Report
) -> dict[str, Tensor]:
    """Our tensors by our names, float32, as far as the source has them with the shapes expected.

    source: theirs by their names; what is used is removed, and what is left is reported as unexpected.
    """
    found: dict[str, Tensor] = {}
    for part in parts:
        absent = [name for name in part.theirs if name not in source]
        present = [source.pop(name) for name in part.theirs if name in source]
        if absent:
            report.missing += absent
            for name in part.theirs:
                if name not in absent:
                    report.set_aside[name] = f"of {part.ours}, which lacks {', '.join(absent)}"
            continue
        wrong = _wrong(part, present, shapes[part.ours])
        if wrong is not None:
            report.unfit[", ".join(part.theirs)] = wrong
            continue
        joined = part.joined([tensor.to(torch.float32) for tensor in present]).contiguous()
        if wrong_numbers := joined.numel() - int(joined.isfinite().sum()):
            report.unfit[", ".join(part.theirs)] = (
                f"{wrong_numbers:,} of {joined.numel():,} numbers are not finite in float32"
            )
            continue
        found[part.ours] = joined
        report.taken.update(dict.fromkeys(part.theirs, part.ours))
    report.unexpected += source
    return found


def _wrong(part: Part, tensors: Iterable[Tensor], wanted: tuple[int, ...]) -> str | None:
    """What keeps tensors of theirs from being ours; None when nothing does."""
    tensors = list(tensors)
    shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors[:3])
    if not all(tensor.is_floating_point() for tensor in tensors):
        return f"holds {tensors[0].dtype}, need floating point"
    try:
        with torch.device("meta"):
            got = tuple(part.joined([torch.empty(tensor.shape) for tensor in tensors]).shape)
    except RuntimeError:
        return f"{shapes} do not go together as {part.ours} {wanted}"
    return None if got == wanted else f"{shapes}, need {wanted} as {part.ours}"


def _plural(count: int) -> str:
    return f"{count} key{'' if count == 1 else 's'}"


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Rows of two columns; those equal but for what varies in their keys as one, with their count."""
    counts: dict[tuple[str, str], int] = {}
    for left, right in rows:
        row = re.sub(VARIES, ".*", left), re.sub(VARIES, ".*", right)
        counts[row] = counts.get(row, 0) + 1
    width = max((len(left) for left, _ in counts), default=0)
    return [f"  {count:>4} × {left:<{width}}  {right}" for (left, right), count in counts.items()]
