"""Which kinds of probe a data set allows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, get_args

from data_pipeline.errors import DataError, UsageError
from pretrain.data.reader import ClipReader

Kind = Literal["attentive", "linear", "knn", "states", "retrieval"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OF_LABELS: tuple[Kind, ...] = ("attentive", "linear", "knn")
LOOKS = 32  # at clips, to know whether they have labels


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

    Labels are there where a look at some clips finds two of train and one of eval.

    Raises: UsageError for one that they do not allow.
    """
    has_states = bool(next(iter(readers.values())).info.state_names)
    has_labels = len(readers) == 2 and (
        len(some_labels(readers["train"], chosen["train"])) > 1
        and bool(some_labels(readers["eval"], chosen["eval"]))
    )
    possible: list[Kind] = [
        *(OF_LABELS if has_labels else ()),
        *(("states",) if has_states else ()),
        "retrieval",
    ]
    if asked is None:
        return tuple(possible[:-1]) or ("retrieval",)
    wrong = [kind for kind in asked if kind not in possible]
    if wrong:
        lacks = "two labels in train and one in eval" if wrong[0] in OF_LABELS else "states"
        raise UsageError(
            f"--kind {wrong[0]}: the clips of {where} have not {lacks}; this data set allows "
            f"{', '.join(possible)}"
        )
    return asked


def some_labels(reader: ClipReader, indices: Sequence[int]) -> set[str]:
    """The labels of a few of these clips, from all over them; unreadable ones tell nothing."""
    found: set[str] = set()
    for index in list(indices)[:: max(1, len(indices) // LOOKS)]:
        with suppress(DataError):
            label = reader.meta(index).label
            found |= set() if label is None else {label}
    return found
