"""Which kinds of probe a data set allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from data_pipeline.errors import DataError, UsageError
from pretrain.data.reader import ClipReader

Kind = Literal["attentive", "linear", "knn", "states", "retrieval"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OF_LABELS: tuple[Kind, ...] = ("attentive", "linear", "knn")
LOOKS = 16  # at clips, to know whether they have labels


def kinds_of(words: str) -> tuple[Kind, ...]:
    """`attentive,knn` as kinds, each once. Raises: UsageError naming the valid ones."""
    asked = [word.strip() for word in words.split(",") if word.strip()]
    wrong = [word for word in asked if word not in KINDS]
    if wrong or not asked:
        raise UsageError(f"--kind is {words!r}: need one or several of {', '.join(KINDS)}, between commas")
    return tuple(kind for kind in KINDS if kind in asked)


def allowed(
    asked: tuple[Kind, ...] | None, readers: dict[str, ClipReader], chosen: dict[str, list[int]], where: str
) -> tuple[Kind, ...]:
    """The kinds asked for, or all that the data allow: of labels, of states; of neither, retrieval.

    Raises: UsageError for one that they do not allow.
    """
    has_states = bool(next(iter(readers.values())).info.state_names)
    has_labels = len(readers) == 2 and has_label(readers["train"], chosen["train"])
    possible: list[Kind] = [
        *(OF_LABELS if has_labels else ()),
        *(("states",) if has_states else ()),
        "retrieval",
    ]
    if asked is None:
        return tuple(possible[:-1]) or ("retrieval",)
    wrong = [kind for kind in asked if kind not in possible]
    if wrong:
        lacks = "labels" if wrong[0] in OF_LABELS else "states"
        raise UsageError(
            f"--kind {wrong[0]}: the clips of {where} have no {lacks}; this data set allows "
            f"{', '.join(possible)}"
        )
    return asked


def has_label(reader: ClipReader, indices: Sequence[int]) -> bool:
    """Whether one of a few of these clips, from all over them, has a label; unreadable ones tell nothing."""
    step = max(1, len(indices) // LOOKS)
    for index in list(indices)[::step]:
        try:
            if reader.meta(index).label is not None:
                return True
        except DataError:
            continue
    return False
