"""From the host to a device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device; to a GPU by way of pinned memory, while the host goes on.

    Torch keeps the pinned memory for the next one, once the copy is done.
    """
    if device.type in ("cpu", "meta"):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
