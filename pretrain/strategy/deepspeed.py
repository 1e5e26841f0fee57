"""DeepSpeed ZeRO 0 to 3 over all ranks: its engine behind our small interface. Only strategy/ imports it.

What is asked of DeepSpeed 0.19.8 here, and why: a torch AdamW is handed in, so that no CPU optimizer is
compiled; its shared-memory collective is declared absent on CPU, since probing for it compiles for a minute
and a killed build leaves a lock that hangs later jobs; each job gets an extensions folder of its own:
`launch` gives one, which is gone also after a kill.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.config import DeepSpeedConfig, Plan
from pretrain.ema import ForwardCopy, Fragment
from pretrain.memory import adds_in_float32, bucket_size, reduced_at_once
from pretrain.objective.base import Batch, Output
from pretrain.optim import build_optimizer, clip_modules, clip_whole, decaying_names
from pretrain.strategy.base import Update, World
from pretrain.strategy.shards import FlatShards, PartitionedShards, ReplicatedShards, Shards
from pretrain.strategy.zero3 import SplitCopy, Zero3Shards


def _import_deepspeed(device: torch.device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    if "TORCH_EXTENSIONS_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="foreframe-extensions-")
        atexit.register(folder.cleanup)
        os.environ["TORCH_EXTENSIONS_DIR"] = folder.name
    import deepspeed

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def join_world(device: torch.device, timeout_s: float) -> World:
    """Meet the other ranks that were started (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    deepspeed = _import_deepspeed(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    from torch.distributed import distributed_c10d as c10d

    # DeepSpeed makes groups of its own, without a limit: torch's 30 minutes (NCCL: 10) would hold there.
    limit = timedelta(seconds=timeout_s)
    vars(c10d).update(default_pg_timeout=limit, default_pg_nccl_timeout=limit)
    deepspeed.init_distributed(backend, timeout=limit, verbose=False)
    return World(dist.get_rank(), dist.get_world_size(), device)


def deepspeed_config(plan: Plan, trained: int) -> dict[str, Any]:
    """What DeepSpeed is told; everything comes from the run's config.

    trained: elements of all weights that are. Its buffer for reducing gradients is made in its whole size at
    once, half a billion elements where nothing else is said. What overlaps what is in
    docs/decisions/0020-overlap.md.
    """
    config = plan.config
    strategy = cast(DeepSpeedConfig, config.strategy)
    zero: dict[str, Any] = {
        "stage": strategy.zero_stage,
        "reduce_bucket_size": reduced_at_once(config, trained),
        "overlap_comm": strategy.overlaps,
    }
    if strategy.zero_stage == 3:  # else weights of a billion elements stay whole from forward to backward
        zero |= {"stage3_max_live_parameters": bucket_size(trained), "stage3_max_reuse_distance": 0}
    if strategy.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    clips = config.optim.clip_per == "all" and strategy.zero_stage > 0  # else it is done here
    told: dict[str, Any] = {"data_types": {"grad_accum_dtype": "fp32"}} if adds_in_float32(plan) else {}
    if strategy.reduce_in_fp32:
        told["communication_data_type"] = "fp32"
    return told | {
        "train_batch_size": config.train.global_batch,
        "train_micro_batch_size_per_gpu": config.train.micro_batch,
        "gradient_accumulation_steps": plan.micro_batches,
        "gradient_clipping": (config.optim.clip_norm or 0.0) if clips else 0.0,
        "bf16": {"enabled": config.train.precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # it would be compiled; torch's AdamW runs on the host too
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},  # it waits for the whole GPU at each forward and step
    }


def _is_seen_by_the_norm(**_: object) -> None:
    """Stands for DeepSpeed's look at every gradient for what is not finite."""


def _clip_by_finite_norm(limit: float, gradients: Sequence[Tensor], norm: Tensor) -> None:
    """Scale flat gradients whose norm over all groups is known to be finite, as DeepSpeed does.

    limit: 0 for none. There is no loss scale in float32 and bf16.
    """
    if limit > 0:
        scale = 1.0 / torch.clamp((norm + 1e-6) / limit, min=1.0)
        for gradient in gradients:
            gradient.data.mul_(scale)


@torch.no_grad()
def _norm_over_ranks(zero: Any, gradients: Sequence[Tensor], _: object) -> Tensor:
    """Of what all ranks own of a group's gradients, in a few launches; not finite where one of them is not.

    DeepSpeed brings each gradient to float64, in two launches a weight, and copies a number to the GPU, for
    which the host waits: while it then launches those of the next group, the GPU has nothing to do.
    """
    square = torch.stack(torch._foreach_norm(list(gradients), 2.0, torch.float32)).square().sum()
    dist.all_reduce(square, group=zero.dp_process_group)
    return square.sqrt()


class DeepSpeedBackend:
    """The trainable module inside a DeepSpeed engine."""

    def __init__(self, plan: Plan, world: World, module: nn.Module) -> None:
        deepspeed = _import_deepspeed(world.device)
        optimizer = build_optimizer(module, plan.config.optim)
        self.decaying = decaying_names(module)
        self._stage = cast(DeepSpeedConfig, plan.config.strategy).zero_stage
        self._module, self._world, self._optim, self._plan = module, world, plan.config.optim, plan
        self._modules = [name for name, _ in module.named_children()]
        self._trained = sum(parameter.numel() for parameter in module.parameters())
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=deepspeed_config(plan, self._trained),
            dist_init_required=False,
        )
        if self._stage > 0:
            self._zero.get_grad_norm_direct = partial(_norm_over_ranks, self._zero)
        self.shards: Shards
        if self._stage == 0:
            self.shards = ReplicatedShards(module, optimizer, world.rank, world.size)
        elif self._stage == 3:
            self.shards = Zero3Shards(module, self._zero, world.rank, world.size)
        else:
            self._zero.check_grad_overflow = True  # off by default: in bf16 a NaN would be stepped on
            # It would then wait for the GPU three times and more: for a look at every gradient, for their
            # norm, which is not finite where one of them is not, and for that norm again in each group.
            self._zero.check_overflow = _is_seen_by_the_norm
            self._zero.unscale_and_clip_grads = partial(_clip_by_finite_norm, self._zero.clip_grad)
            self.shards = PartitionedShards(module, self._zero)

    @property
    def groups(self) -> list[dict[str, Any]]:
        return cast(list[dict[str, Any]], self._engine.optimizer.param_groups)

    def split_copy(
        self, target: nn.Module, fragments: Sequence[Fragment], precision: torch.dtype
    ) -> ForwardCopy | None:
        if self._stage != 3:
            return None
        return SplitCopy(target, fragments, deepspeed_config(self._plan, self._trained), precision)

    def forward(self, batch: Batch, targets: Tensor | None) -> Output:
        return cast(Output, self._engine(batch, targets))

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-batch; no update happens before the boundary

    def step(self) -> Update:
        if self._stage == 0:
            return self._step_replicated()
        norm = None
        if self._optim.clip_per == "module" and self._optim.clip_norm is not None:
            assert isinstance(self.shards, FlatShards), "of every stage but 0"
            norm = clip_modules(
                self.shards.gradients(), self._modules, self._optim.clip_norm, self._world.total
            )
        self._engine.step()
        if norm is None or not self._engine.was_step_applied():
            norm = self._engine.get_global_grad_norm()
        return Update(bool(self._engine.was_step_applied()), math.nan if norm is None else norm)

    def _step_replicated(self) -> Update:
        """ZeRO-0 has no overflow check: without gradients, its optimizer leaves every weight as it is."""
        norm = float(clip_whole(self._module, self._optim))
        is_finite = math.isfinite(norm)
        if not is_finite:
            for parameter in self._module.parameters():
                parameter.grad = None
        self._engine.step()
        return Update(is_finite, norm)
