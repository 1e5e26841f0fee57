"""Reads any run of elements of any stored tensor out of a checkpoint's files, whatever world wrote them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_pipeline.errors import CheckpointError
from pretrain.ema import Fragment


class StoredFragments:
    """The tensors of all of a checkpoint's files.

    Raises: CheckpointError naming a file that holds no fragments.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._parts: dict[tuple[str, str], list[tuple[int, int, Path, str]]] = defaultdict(list)
        self._open: dict[Path, Any] = {}
        self.sizes: Counter[str] = Counter()  # elements stored, by kind
        for path in files:
            try:
                self._read_names(path)
            except (SafetensorError, ValueError, OSError) as error:
                raise CheckpointError(f"{path} holds no fragments of a model: {error}") from error

    def _read_names(self, path: Path) -> None:
        self._open[path] = safe_open(path, framework="pt")
        for key in self._open[path].keys():  # noqa: SIM118 (a safetensors handle is no mapping)
            kind, _, rest = key.partition("/")
            name, _, start = rest.rpartition("@")
            (size,) = self._open[path].get_slice(key).get_shape()
            self._parts[kind, name].append((int(start), size, path, key))
            self.sizes[kind] += size

    def read(self, kind: str, wanted: Fragment) -> Tensor:
        """The float32 elements (numel,) of a fragment, put together from whatever files hold them.

        Raises: CheckpointError when a part is missing.
        """
        out = torch.empty(wanted.numel)
        for part, start, stop, first in self._found(kind, wanted):
            out[start:stop] = part[first : first + stop - start]
        return out

    def check(self, kind: str, wanted: Fragment) -> None:
        """Raises CheckpointError, as `read` would, without reading."""
        for _ in self._found(kind, wanted):
            pass

    def _found(self, kind: str, wanted: Fragment) -> Iterator[tuple[Any, int, int, int]]:
        """(stored tensor, start and stop in the fragment, first element in the stored tensor), in order."""
        reached, end = wanted.start, wanted.start + wanted.numel
        for start, size, path, key in sorted(self._parts[kind, wanted.name]):
            if start <= reached < start + size and reached < end:
                stop = min(end, start + size)
                stored = self._open[path].get_slice(key)
                yield stored, reached - wanted.start, stop - wanted.start, reached - start
                reached = stop
        if reached != end:
            raise CheckpointError(
                f"the checkpoint holds no {kind} of {wanted.name} from element {reached}: "
                f"it is of another model"
            )
