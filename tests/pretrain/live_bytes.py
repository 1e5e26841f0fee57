"""Bytes of the tensors that are alive, operation by operation: what a peak of memory is held against.

Every operation that torch dispatches is seen, in a forward and in a backward, with the storages it made; a
storage counts until it is let go. Allocators, and buffers inside an operation, are not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """While it is open: `now`, the bytes of storages made since it was opened, and `most`, at its most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._size: dict[int, int] = {}
        self.told: Callable[[Any], None] | None = None

    def old(self, tensors: Any) -> None:
        """These were there before: they do not count."""
        for tensor in tensors:
            self._add(tensor.untyped_storage(), counts=False)

    def restart(self) -> None:
        """`most` begins anew, from what is alive now."""
        self.most = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for thing in tree_iter(found):
            if isinstance(thing, torch.Tensor) and thing.device.type != "meta":
                self._add(thing.untyped_storage())
        if self.now > self.most:
            self.most = self.now
            if self.told is not None:
                self.told(func)
        return found

    def _add(self, storage: torch.UntypedStorage, *, counts: bool = True) -> None:
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes() if counts else 0
        self._size[key] = size
        self.now += size

        def gone(_: object) -> None:
            self.now -= self._size.pop(key)
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
