"""One rank's file: copied to host memory in one go, then written and hashed at leisure.

The file is safetensors: the length of a JSON header, the header, and float32 elements one after another. It
is written here and not by that library's `save_file`, which makes another copy of everything in memory
first, and whose file would have to be read again to be hashed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.errors import CheckpointError, why
from data_pipeline.storage import Moved

BLOCK = 1 << 26  # elements of a buffer, 256 MiB: pinned memory comes in powers of two
WRITE_BYTES = 16 << 20
SYNC_BYTES = (
    256 << 20
)  # brought to disk at once: seconds, of which a rank that waits learns when they are over


class HostCopy:
    """This rank's tensors in host memory, as elements one after another; its buffers are used again."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._header = b""
        self._numel = 0

    @property
    def num_bytes(self) -> int:
        """Of the file that `write` makes."""
        return len(self._header) + 4 * self._numel

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors, of any device, as float32; on return they may change.

        tensors: flat (numel,), by name. Raises: CheckpointError without memory for them.
        """
        numel = sum(tensor.numel() for tensor in tensors.values())
        devices = {tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"}
        self._make_room(numel, is_pinned=bool(devices))
        header: dict[str, Any] = {}
        at = 0
        for name, tensor in tensors.items():
            end = at + tensor.numel()
            header[name] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [4 * at, 4 * end]}
            flat = tensor.detach().reshape(-1)
            while at < end:
                number, first = divmod(at, BLOCK)
                count = min(end - at, BLOCK - first)
                part = flat[len(flat) - (end - at) :][:count]
                self._blocks[number][first : first + count].copy_(part, non_blocking=True)
                at += count
        for device in devices:
            torch.cuda.synchronize(device)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the elements are aligned
        self._header, self._numel = len(text).to_bytes(8, "little") + text, numel

    def _make_room(self, numel: int, *, is_pinned: bool) -> None:
        if sum(len(block) for block in self._blocks) >= numel:
            return
        self._blocks = []
        try:
            for first in range(0, numel, BLOCK):
                self._blocks.append(torch.empty(min(BLOCK, numel - first), pin_memory=is_pinned))
        except (RuntimeError, MemoryError) as error:
            self._blocks = []
            raise CheckpointError(
                f"no room in this host's memory for a copy of {4 * numel:,} bytes: {error}"
            ) from error

    def write(self, path: Path, moved: Moved) -> dict[str, Any]:
        """Write the file and bring it to disk; returns its size and sha256, as the manifest holds them.

        moved: told the bytes as they are written.

        Raises: CheckpointError, also when the disk has no more room.
        """
        digest, unsynced = hashlib.sha256(), 0
        try:
            with path.open("wb") as file:
                for piece in self._pieces():
                    file.write(piece)
                    digest.update(piece)
                    unsynced += len(piece)
                    if unsynced >= SYNC_BYTES:
                        file.flush()
                        os.fsync(file.fileno())
                        unsynced = 0
                    moved(len(piece))
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
        except OSError as error:
            raise CheckpointError(f"{path} could not be written: {why(error)}") from error
        return {"sha256": digest.hexdigest(), "bytes": size}

    def _pieces(self) -> Iterator[bytes | memoryview]:
        yield self._header
        left = 4 * self._numel
        for block in self._blocks:
            data = memoryview(block.numpy().data).cast("B")[:left]
            left -= len(data)
            for first in range(0, len(data), WRITE_BYTES):
                yield data[first : first + WRITE_BYTES]
