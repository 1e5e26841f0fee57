"""Counts of one step by phase: launches, waits of the host, copies, bytes; and the lines that wait."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

from tests.counts.device import OnDevice, is_pinned

aten = torch.ops.aten
ROOT = Path(__file__).parents[2]
NO_LAUNCH = (
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "_unsafe_view",
    "lift_fresh",
    "_local_scalar_dense",
)
# These find out on the host how large their result is, or whether they have gone well.
ASK_THE_HOST = (
    "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal", "bincount",
    "_linalg_eigh", "linalg_eig", "_linalg_svd", "_linalg_check_errors",
)  # fmt: skip


class Counts:
    """Of what is told between `start` and `stop`. phase: what the step is at."""

    def __init__(self) -> None:
        self.is_counting = False
        self.phase = "rest"
        self.launches: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()  # by "phase: why, at file in function"
        self.bytes = self.recompiles = 0
        self._graphs = 0  # when it started

    def start(self) -> None:
        self.is_counting, self._graphs = True, graphs()

    def stop(self) -> None:
        self.is_counting = False
        self.recompiles = graphs() - self._graphs

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def of(self, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work, as a phase."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.during(phase):
                return work(*args, **kwargs)

        return counted

    def told(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any) -> None:
        if not self.is_counting:
            return
        given = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
        on_device = any(isinstance(each, OnDevice) for each in [*given, *tree_iter(found)])
        if not on_device:
            return
        why, name = wait_of(func, args, kwargs, found), func._schema.name.partition("::")[2]
        if why is not None:
            self.syncs[f"{self.phase}: {why}, {line()}"] += 1
        if is_between(func, args, found):
            self.copies[self.phase] += 1
        elif not is_view(func) and name not in NO_LAUNCH:
            self.launches[self.phase] += 1
        old = {each.held.untyped_storage().data_ptr() for each in given if isinstance(each, OnDevice)}
        new = {
            each.held.untyped_storage().data_ptr(): each.held.untyped_storage().nbytes()
            for each in tree_iter(found)
            if isinstance(each, OnDevice)
        }
        self.bytes += sum(size for place, size in new.items() if place not in old)

    def as_json(self) -> dict[str, Any]:
        return {
            "syncs": dict(sorted(self.syncs.items())),
            "launches": dict(sorted(self.launches.items())),
            "copies": dict(sorted(self.copies.items())),
            "bytes": self.bytes,
            "recompiles": self.recompiles,
        }


def is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def is_between(func: Any, args: tuple[Any, ...], found: Any) -> bool:
    """Whether an operation copies between host and device."""
    if func not in (aten._to_copy.default, aten.copy_.default):
        return False
    source = args[1] if func is aten.copy_.default else args[0]
    return isinstance(source, OnDevice) != isinstance(found, OnDevice)


def wait_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any) -> str | None:
    """Why the host waits for a GPU in an operation, or None.

    Of copies: those from memory that is not pinned, and those that are not asked to be non_blocking.
    """
    name = func._schema.name.partition("::")[2]
    if func is aten._local_scalar_dense.default:
        return "reads a number" if isinstance(args[0], OnDevice) else None
    is_repeat = func is aten.repeat_interleave.Tensor  # the other overloads are made of it, or know the size
    if name in ASK_THE_HOST or (is_repeat and kwargs.get("output_size") is None):
        return f"{name} asks for its size"
    if is_between(func, args, found):
        is_copy = func is aten.copy_.default
        source, there = (args[1], args[0]) if is_copy else (args[0], found)
        asked = bool(args[2]) if is_copy and len(args) > 2 else bool(kwargs.get("non_blocking"))
        if source.numel() == 0:
            return None
        if isinstance(source, OnDevice):  # .to("cpu", non_blocking=True) is given pinned memory by torch
            return None if asked and (not is_copy or is_pinned(there)) else "copies to the host"
        return None if asked and is_pinned(source) else "copies from the host"
    indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
    if any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in indices):
        return "counts what a mask leaves"
    of_host = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
    if any(not isinstance(each, OnDevice) and each.ndim and each.numel() for each in of_host):
        return f"{name} copies a tensor of the host"
    return None


def line() -> str:
    """The innermost function of the project, or of a package it calls, that led here."""
    own = [frame for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT / "pretrain"))]
    return f"{Path(own[-1].filename).relative_to(ROOT)} {own[-1].name}" if own else "in a test"


def graphs() -> int:
    """Those that torch.compile has made in this process; 0 where nothing is compiled."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo is not None else 0
