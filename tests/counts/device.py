"""A device that is none: its tensors live in host memory, and what a GPU would have to do is told.

A CPU build of torch has no CUDA device, not even of fake tensors: autograd asks for a device's streams and
finds no driver. Torch lets a test register a device of its own instead ("PrivateUse1"); here it is called
`stand_in`. Its tensors say they are on it, so every line of the project takes the way it takes for a GPU, and
each operation runs on the CPU, with the values it would have, after it has been told to a listener.

What is told is what torch dispatches: an operation is a launch or more. Attention is one operation forward
and one backward, as fused kernels are. `set_up` cannot be taken back: call it in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map

NAME = "stand_in"
aten = torch.ops.aten
Told = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]
"""Takes an operation, its arguments and keywords, and what came of it."""

_pinned: dict[int, Tensor] = {}  # by where they lie, what the host has locked in memory; kept, so that no
# other comes to lie there


def set_up() -> torch.device:
    """Register the device in this process, for good."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    # torch.tensor(..., device=...) then makes its copy where it is seen
    torch._C._set_only_lift_cpu_tensors(True)
    _foreach_utils._foreach_supported_types.append(OnDevice)  # as tensors of a GPU are: many in one launch
    return torch.device(NAME, 0)


class OnDevice(Tensor):
    """A tensor on the device. held: its values, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        """`held` is kept by __new__."""

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.held})"

    def tolist(self) -> Any:
        """As torch does on a GPU: one copy to the host."""
        return self.item() if self.ndim == 0 else self.cpu().tolist()

    def record_stream(self, stream: Any) -> None:
        """There is one stream."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, None)


def is_pinned(tensor: Tensor) -> bool:
    """Whether a tensor of the host lies in memory that a GPU copies from by itself."""
    return tensor.untyped_storage().data_ptr() in _pinned


@contextmanager
def telling(told: Told) -> Iterator[None]:
    """Every operation until the end of the block is told."""
    with _Fused(), _Telling(told):
        yield


class _Telling(TorchDispatchMode):
    def __init__(self, told: Told) -> None:
        super().__init__()
        self._told = told

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self._told)


class _Fused(TorchFunctionMode):
    """Attention as one operation, as it is on a GPU; on a device that it knows not torch takes it apart."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or not isinstance(args[0], OnDevice):
            return func(*args, **kwargs)
        mask = kwargs.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:  # as torch does for its fused kernels
            mask = torch.zeros_like(mask, dtype=args[0].dtype).masked_fill_(~mask, -torch.inf)
        attend = aten._scaled_dot_product_flash_attention_for_cpu
        return attend(*args, 0.0, kwargs.get("is_causal", False), attn_mask=mask)[0]


def _held(thing: Any) -> Any:
    if isinstance(thing, OnDevice):
        return thing.held
    if isinstance(thing, torch.device) and thing.type == NAME:
        return torch.device("cpu")
    return thing


def _run(func: Any, args: Any, kwargs: Any, told: Told | None) -> Any:
    """Run an operation on what its tensors hold; its results are on the device if it ran there."""
    if func is aten.is_pinned.default:
        return is_pinned(args[0])
    device = kwargs.get("device")
    has_some = any(isinstance(each, OnDevice) for each in tree_iter((args, kwargs)))
    is_there = has_some if device is None else torch.device(device).type == NAME
    run = aten.clone.default if func is aten._pin_memory.default else func
    plain_args, plain_kwargs = tree_map(_held, (args, kwargs))
    if func in (aten._to_copy.default, aten._pin_memory.default):
        plain_kwargs = {
            key: each for key, each in plain_kwargs.items() if key not in ("device", "pin_memory")
        }
    with torch._C._DisableTorchDispatch():
        found = run(*plain_args[:1] if run is aten.clone.default else plain_args, **plain_kwargs)
    if func is aten._pin_memory.default or kwargs.get("pin_memory"):
        _pinned[found.untyped_storage().data_ptr()] = found
    if is_there and func is not aten._local_scalar_dense.default:
        wrapped = tree_map(lambda each: OnDevice(each) if isinstance(each, Tensor) else each, found)
        found = return_and_correct_aliasing(func, args, kwargs, wrapped)
    if told is not None:
        told(func, args, kwargs, found)
    return found
