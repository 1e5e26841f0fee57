"""The interface between the loop and whatever trains: one process, or DeepSpeed over many.

Model, objective and loop know no rank; what ranks must agree on goes through `World`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.errors import (
    CheckpointError,
    DataError,
    ForeframeError,
    RefusedError,
    StorageError,
    UsageError,
)
from pretrain.config import Plan
from pretrain.ema import ForwardCopy, Fragment, ShardedEma, WholeCopy, check_tiling
from pretrain.model.vit import Encoder
from pretrain.objective.base import Batch, Objective, Output
from pretrain.optim import apply_knobs
from pretrain.parts import AVERAGE, BACKWARD, LOSS, OPTIMIZER, marked
from pretrain.parts import TARGET as TARGET_PART
from pretrain.schedule import Knobs
from pretrain.strategy.norms import Squares, ema_squares, owned_weights, squares, steps_taken
from pretrain.strategy.shards import MASTER, Read, Shards, chunks, part_of_encoder, tensor_name

TARGET = "target"
T = TypeVar("T")
NAMED = (CheckpointError, DataError, RefusedError, StorageError, UsageError)
TOLD = {error.__name__: error for error in NAMED}
# renamed in torch 2.13, which warns about the old name; 2.11 knows only that
gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class World:
    """The ranks that train together; with one rank every call is local."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over ranks, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def total(self, tensor: Tensor) -> Tensor:
        """A small tensor's sum over ranks, on the device of the ranks."""
        found = tensor.to(self.device, copy=True)
        self.sum([found])
        return found

    def digest(self, value: int) -> str:
        """The sum of every rank's number modulo 2⁶⁴, in hexadecimal."""
        tensor = torch.tensor((value + (1 << 63)) % (1 << 64) - (1 << 63), device=self.device)
        self.sum([tensor])
        return f"{int(tensor) % (1 << 64):016x}"

    def as_first(self, values: Sequence[float]) -> list[float]:
        """Rank 0's values on every rank: what each works out for itself may differ in its last digit."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.broadcast(tensor, 0)
        return [float(value) for value in tensor.tolist()]

    def mean(self, values: Sequence[float]) -> list[float]:
        """Each value's mean over ranks."""
        tensor = torch.tensor(values, dtype=torch.float32, device=self.device)
        self.sum([tensor])
        return [float(v) for v in (tensor / self.size).tolist()]

    def any(self, flag: bool) -> bool:
        """True on every rank when it is true on one."""
        return self.ask(flag)()

    def ask(self, flag: bool) -> Callable[[], bool]:
        """Start to ask whether it is true on one rank; the answer waits for that, and for nothing later."""
        if self.size == 1:
            return lambda: flag
        tensor = torch.full((), float(flag), device=self.device)
        work = dist.all_reduce(tensor, op=dist.ReduceOp.MAX, async_op=True)
        if self.device.type == "cpu":

            def answer() -> bool:
                work.wait()
                return bool(tensor.item())

            return answer
        work.wait()  # of the GPU's stream for the ranks, not of the host
        told = tensor.to("cpu", non_blocking=True)
        told_by = torch.cuda.Event()
        told_by.record()

        def answer_of_gpu() -> bool:
            told_by.synchronize()
            return bool(told.item())

        return answer_of_gpu

    def gather(self, flat: Tensor) -> Callable[[], Tensor]:
        """Start to gather all ranks' equally long flat tensors; the answer waits for them (world, n)."""
        if self.size == 1:
            return lambda: flat[None]
        out = flat.new_empty(self.size * flat.numel())
        work = gather_into(out, flat, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return out.view(self.size, -1)

        return wait

    def gather_objects(self, value: Any) -> list[Any]:
        """All ranks' small picklable values, in rank order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def own(self, work: Callable[[], T]) -> T:
        """This rank's result of `work`, once it has gone well on every rank; errors as `together`."""
        kept: list[T] = []

        def keep() -> None:
            kept.append(work())

        self.together(keep)
        return kept[0]

    def together(self, work: Callable[[], T]) -> list[T]:
        """Every rank's result of `work`, in rank order; what fails on one rank is raised on every rank.

        Without it, a rank that fails alone would leave the others waiting in their next collective.
        """
        mine: T | None = None
        error: Exception | None = None
        try:
            mine = work()
        except (ForeframeError, OSError) as caught:
            error = caught
        told = (type(error).__name__, str(error)) if error is not None else None
        answers = self.gather_objects((mine, told))
        if error is not None:
            raise error
        for _, failure in answers:
            if failure is not None:
                raise TOLD.get(failure[0], UsageError if failure[0] == "ConfigError" else DataError)(
                    failure[1]
                )
        return [result for result, _ in answers]


@dataclass(frozen=True)
class Update:
    """What one optimizer step did.

    applied: False when a gradient was not finite; all ranks skip it. norm: of the gradient before it was
    clipped; a tensor where the host has not asked for it yet.
    """

    applied: bool
    norm: float | Tensor

    @property
    def grad_norm(self) -> float:
        """`norm` on the host, which waits for the step if it was not asked for yet."""
        return float(self.norm)


class Backend(Protocol):
    """What differs between one process and DeepSpeed."""

    @property
    def shards(self) -> Shards: ...

    @property
    def decaying(self) -> frozenset[str]:
        """Names of the parameters that take weight decay."""
        ...

    def split_copy(
        self, target: nn.Module, fragments: Sequence[Fragment], precision: torch.dtype
    ) -> ForwardCopy | None:
        """The target in shards over the ranks, where the trained weights are; None where they are whole."""
        ...

    def forward(self, batch: Batch, targets: Tensor | None) -> Output: ...

    def backward(self, loss: Tensor) -> None: ...

    def step(self) -> Update: ...

    @property
    def groups(self) -> list[dict[str, Any]]: ...


class Engine:
    """Trains one objective: context encoder and predictor by gradient, target encoder by moving average."""

    def __init__(
        self, plan: Plan, world: World, objective: Objective, target: Encoder | None, backend: Backend
    ) -> None:
        self.plan, self.world = plan, world
        self.objective, self.target = objective, target
        self._backend = backend
        self._modules = [name for name, _ in objective.named_children()]
        self._gradients: Squares = {}
        self.compiles = False  # blocks, by torch.compile
        self.measure_s = 0.0  # what measuring took before the last step that was measured
        self.ema: ShardedEma | None = None
        if target is None:
            return
        own = part_of_encoder(backend.shards)
        if plan.config.target.kind == "frozen":  # held in parts, as an average is
            own = list(chunks(dict(target.named_parameters()), world.rank, world.size))
        fragments = [fragment for fragment, _ in own]
        everybody = world.gather_objects(fragments)
        whole = {name: parameter.detach().view(-1) for name, parameter in target.named_parameters()}
        check_tiling([f for each in everybody for f in each], {name: p.numel() for name, p in whole.items()})
        masters = [master for _, master in own] if plan.config.target.kind == "ema" else []
        # The average begins with the masters, unless weights were given, among which the target has its own.
        held = [whole[f.name][f.start : f.start + f.numel].to(like.device) for f, like in own]
        begin = masters if masters and plan.config.init.weights is None else held
        average = [part.float().clone() for part in begin]
        precision = torch.bfloat16 if plan.config.train.precision == "bf16" else torch.float32
        copy = backend.split_copy(target, fragments, precision)
        if copy is None:
            copy = WholeCopy(target, everybody, world.gather, precision)
        self.ema = ShardedEma(fragments, average, masters, copy)

    @marked(TARGET_PART)
    def targets(self, batch: Batch) -> Tensor | None:
        """What is to be predicted, by the target encoder, without gradient; None where there is none."""
        if self.target is None or self.ema is None:
            return None
        self.ema.ready()
        return self.objective.targets(self.target, batch)

    @marked(LOSS)
    def loss(self, batch: Batch, targets: Tensor | None) -> Output:
        """Context encoder, predictor and loss of one micro-batch."""
        return self._backend.forward(batch, targets)

    @marked(BACKWARD)
    def backward(self, output: Output) -> None:
        # A loss that is not finite may have gradients that are, as infinity has: then they are not either.
        is_finite = output.loss.detach().isfinite()
        self._backend.backward(output.loss * torch.ones_like(output.loss).where(is_finite, torch.nan))

    @marked(OPTIMIZER)
    def step(self, knobs: Knobs, *, measure: bool = False) -> Update:
        """One optimizer step over the micro-batches since the last; skipped by all when not finite.

        measure: `norms` will be asked for after it.
        """
        apply_knobs(self._backend.groups, knobs)
        if measure:
            began_s = time.perf_counter()
            self._gradients = squares(self._modules, self._backend.shards.gradients())
            self.measure_s = time.perf_counter() - began_s
        return self._backend.step()

    def norms(self, *, applied: bool = True) -> dict[str, float]:
        """Of the step that was measured, over all ranks, by module: the norm of the gradient before it was
        clipped, of the weights, and of what the step added to them; and how far the target is from the
        weights it follows, as a share of their norm. What is not finite is left out.

        applied: False of a step that was skipped, which added nothing.
        """
        shards, groups = self._backend.shards, {group["decays"]: group for group in self._backend.groups}
        group_of = {f.name: groups[f.name in self._backend.decaying] for f in shards.fragments}
        rows = {
            "grad_norm": self._gradients,
            "param_norm": squares(self._modules, owned_weights(shards)),
            "update_norm": squares(self._modules, steps_taken(shards, group_of) if applied else ()),
        }
        named = [(f"{what}_{module}", value) for what, row in rows.items() for module, value in row.items()]
        moves = self.ema is not None and self.plan.config.target.kind == "ema"  # the same on every rank
        ema = ema_squares(self.ema) if self.ema is not None and moves else torch.zeros(0)
        total = self.world.total(torch.cat([torch.stack([value for _, value in named]), ema]))
        norms = total.double().clamp(min=0).sqrt().tolist()
        found = {name: norm for (name, _), norm in zip(named, norms, strict=False) if math.isfinite(norm)}
        if moves and norms[-1] > 0:
            found["ema_distance"] = norms[-2] / norms[-1]
        return found

    @marked(AVERAGE)
    def update_target(self, momentum: float) -> None:
        """Move the target toward the context encoder; its forward copy follows while others work."""
        if self.ema is not None and self.plan.config.target.kind == "ema":
            self.ema.update(momentum)
            self.ema.refresh()

    def ask(self, flag: bool) -> Callable[[], bool]:
        """Start to ask whether it is true on one rank, beside the step; every rank has the same answer."""
        return self.world.ask(flag)

    def optimizer_step(self) -> int:
        return self._backend.shards.optimizer_step()

    def owned(self) -> list[tuple[str, Fragment]]:
        """(kind, fragment) of the weights and averages that a checkpoint must hold for this rank."""
        weights = [(MASTER, fragment) for fragment in self._backend.shards.fragments]
        return weights + [(TARGET, fragment) for fragment in (self.ema.fragments if self.ema else ())]

    def tensors(self) -> dict[str, Tensor]:
        """This rank's part of the whole state: master weights, optimizer's averages, target average."""
        found = self._backend.shards.tensors()
        if self.ema is not None:
            for fragment, average in zip(self.ema.fragments, self.ema.average, strict=True):
                found[tensor_name(TARGET, fragment)] = average
        return found

    @torch.no_grad()
    def load(self, read: Read, optimizer_step: int) -> None:
        """Take the whole state over from a checkpoint, whatever world size wrote it."""
        self._backend.shards.load(read, optimizer_step)
        if self.ema is not None:
            for fragment, average in zip(self.ema.fragments, self.ema.average, strict=True):
                average.copy_(read(TARGET, fragment))
            self.ema.refresh()
