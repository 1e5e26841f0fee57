"""An accelerator of DeepSpeed's that computes on the CPU and has streams, so that its waits are seen.

On the CPU DeepSpeed knows that nothing runs beside the host, and leaves out whatever waits for a GPU. Told
otherwise it takes the way it takes on CUDA: streams, events and waits do nothing here but tell of themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Told = Callable[[str], None]
"""Takes what the host would wait for: an event, a stream, the device, or the copy of a number."""


class Stream:
    def __init__(self, told: Told) -> None:
        self._told = told

    def wait_stream(self, other: Stream) -> None:
        """The GPU's own business."""

    def wait_event(self, event: Event) -> None:
        """As above."""

    def synchronize(self) -> None:
        self._told("a stream")


class Event:
    def __init__(self, told: Told) -> None:
        self._told = told

    def record(self, stream: Stream | None = None) -> None:
        """Nothing runs beside."""

    def query(self) -> bool:
        """It has passed: who is held up by a GPU that lags behind is not seen."""
        return True

    def synchronize(self) -> None:
        self._told("an event")


def give_streams(told: Told) -> None:
    """For good, in this process: DeepSpeed's CPU accelerator is one whose work goes on beside the host."""
    from deepspeed.accelerator import get_accelerator

    only = Stream(told)
    told_apart: dict[str, Any] = {
        "is_synchronized_device": lambda _: False,
        "resolves_data_dependency": lambda _: False,
        "handles_memory_backpressure": lambda _: False,
        "use_host_timers": lambda _: True,
        "Stream": lambda *_, **__: Stream(told),
        "current_stream": lambda *_: only,
        "default_stream": lambda *_: only,
        "Event": property(lambda _: lambda *_, **__: Event(told)),
        "synchronize": lambda *_: told("the device"),
    }
    accelerator = type(get_accelerator())
    for name, what in told_apart.items():
        setattr(accelerator, name, what)
    plain = torch.tensor

    def tensor(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is not None:  # of an accelerator: what is made of a number of the host's is copied there
            told("a number's copy")
        return plain(*args, device=device, **kwargs)

    torch.tensor = tensor
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[assignment,method-assign]
