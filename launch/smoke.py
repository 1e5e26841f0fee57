"""`foreframe smoke`: does training work on this machine? Attention, steps, save and resume, in two minutes.

The steps are those of a real run: DeepSpeed, bf16, the sharded moving average, checkpoints; clips are
rendered in memory, so that neither a data set nor Ray is needed.
"""

from __future__ import annotations

import math
import os
import resource
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_pipeline.errors import UsageError
from launch.console import make_console, make_table
from pretrain.config import (
    DataConfig,
    DeepSpeedConfig,
    EncoderConfig,
    ModelConfig,
    OptimConfig,
    Plan,
    PredictorConfig,
    RunConfig,
    TrainConfig,
    plan,
)

if TYPE_CHECKING:
    import torch

    from pretrain.objective.base import Batch
    from pretrain.strategy.base import Engine

NUM_STEPS = 20
SAVE_AT = 10
SAME_LOSS = 1e-4  # relative; equal but for the order in which a GPU adds
NUM_RENDERED = 8


@dataclass(frozen=True)
class Check:
    """One line of the table. passed: None where the machine cannot run it."""

    name: str
    passed: bool | None
    found: str


def run_smoke(device: str = "auto") -> bool:
    """Run every check, print a table, and tell whether none failed.

    Raises: UsageError when `device` is cuda and there is none.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda: PyTorch sees no GPU here; see `nvidia-smi`, and that torch is a CUDA build"
        )
    kind = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    console = make_console()
    begin_s = time.perf_counter()
    checks = [*check_attention(kind), check_clips(kind), *check_training(kind, console.print)]
    words = {True: "pass", False: "FAIL", None: "n/a"}
    rows = [(check.name, words[check.passed], check.found) for check in checks]
    table = make_table(
        f"Smoke test on {kind}, {time.perf_counter() - begin_s:.0f} s", ("check", "", "found"), rows
    )
    table.columns[2].justify = "left"
    console.print(table)
    failed = [check.name for check in checks if check.passed is False]
    console.print(f"failed: {', '.join(failed)}" if failed else "every check passed: this machine can train")
    return not failed


def check_attention(kind: str) -> list[Check]:
    """SDPA on a packed row of unequal lengths, and what takes such rows as they are against it."""
    import torch

    from pretrain.model.attention import Packing, attend, why_xformers_does_not_load
    from pretrain.model.choose import Rows, why_not

    dtype, device = torch.bfloat16, torch.device(kind)
    packing = Packing((37, 128, 64, 5), device)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, packing.total, 6, 64, generator=generator).to(device, dtype)

    def both(backend: Any) -> tuple[Any, Any]:
        qkv = start.clone().requires_grad_()
        q, k, v = qkv.unbind(0)
        out = attend(q, k, v, packing, backend)
        out.float().square().sum().backward()
        return out.detach().float(), qkv.grad.float() if qkv.grad is not None else None

    out, grad = both("sdpa")
    rows = [start[:, a:b].float() for a, b in _spans(packing.lengths)]
    wanted = torch.cat([_plain_attention(*row.unbind(0)) for row in rows])
    worst = float((out - wanted).abs().max())
    checks = [
        Check(
            "SDPA on a packed row", worst < 0.03 and bool(torch.isfinite(grad).all()), f"off by {worst:.2g}"
        )
    ]
    packed: tuple[Literal["xformers", "varlen"], ...] = ("xformers", "varlen")
    for backend in packed:
        name = f"{backend} against SDPA"
        if kind != "cuda":
            checks.append(Check(name, None, f"{backend} runs on CUDA only"))
            continue
        reason = why_not(backend, device, dtype, Rows(packing.lengths, 6, 64))
        if reason is not None:
            is_absent = backend == "xformers" and why_xformers_does_not_load() is not None
            told = f"{'is not usable' if is_absent else 'does not work'} here: {reason}"
            checks.append(Check(name, None if is_absent else False, told))
            continue
        out_x, grad_x = both(backend)
        off, off_grad = float((out_x - out).abs().max()), float((grad_x - grad).abs().max())
        found = f"forward off by {off:.2g}, backward by {off_grad:.2g}"
        checks.append(Check(name, off < 0.03 and off_grad < 0.15, found))
    return checks


def check_clips(kind: str) -> Check:
    """Crops resized and normalised on this device against the same by a loader worker."""
    import numpy as np
    import torch

    from pretrain.data.augment import STD, View, normalise
    from pretrain.data.slots import Layout, Slots
    from pretrain.masks import Masks

    size, views = 64, [View(3, 5, 60, 100, True), View(0, 0, 40, 50), View(10, 20, 64, 64)]
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 256, (4, 12, 16, 3), dtype=np.uint8), 8, axis=1).repeat(8, axis=2)
    worker, ours = (Slots(Layout(3, 4, size, 1, on_gpu), 1, is_shared=False) for on_gpu in (False, True))
    for row, view in enumerate(views):
        worker.write_clip(0, row, frames, view)
    crops = [ours.write_clip(0, row, frames, view) for row, view in enumerate(views)]
    cut = [ours.crop(0, row, crop) for row, crop in enumerate(crops)]
    mirrored = [crop.is_mirrored for crop in crops]
    how = "on the CPU"
    if kind == "cuda":
        from pretrain.data.copies import Copies
        from pretrain.data.load import Loaded, Request

        how = "from pinned memory"
        ours.pin()
        nowhere = torch.empty(0, dtype=torch.int64)
        copies, masks = (
            Copies(torch.device(kind)),
            Masks(1, 0, (), (), (False,) * 3, nowhere, nowhere, (), ()),
        )
        loaded = Loaded(Request(0, (), 0), (), tuple(crops), masks, None, None, (), ())
        ahead = copies.begin(loaded, cut, mirrored, size, masks, ())
        copies.hand_over(ahead)
        clips = ahead.clips
    else:
        clips = normalise([each.float() for each in cut], size, mirrored)
    difference = (clips.cpu() - worker.floats(0)).abs().amax((0, 2, 3, 4)) * torch.tensor(STD) * 255
    found = f"{how}, off by {float(difference.max()):.2g} of 255"
    return Check("clips as a worker makes them", bool((difference < 1.01).all()), found)


def _spans(lengths: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    start = 0
    for length in lengths:
        yield start, start + length
        start += length


def _plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention written out, (L, H, d) float32: the reference."""
    import torch

    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def smoke_config(kind: str, out: Path) -> RunConfig:
    """A ViT-S on 16 frames of 224² on a GPU; two narrow blocks on 64² on a CPU."""
    big = kind == "cuda"
    encoder = EncoderConfig(preset="vit_small") if big else EncoderConfig(preset="vit_tiny", depth=2)
    return RunConfig(
        name="smoke",
        out=str(out),
        data=DataConfig(shards="(rendered in memory)", frames=16, size=224 if big else 64, workers=0),
        model=ModelConfig(
            encoder=encoder,
            predictor=PredictorConfig(depth=6, width=192, heads=6)
            if big
            else PredictorConfig(depth=2, width=96, heads=3),
        ),
        optim=OptimConfig(lr=5e-4, warmup_steps=5, clip_norm=1.0),
        train=TrainConfig(steps=NUM_STEPS, global_batch=16 if big else 4, micro_batch=8 if big else 2),
        strategy=DeepSpeedConfig(zero_stage=1),
    )


class RenderedBatches:
    """Micro-batches of rendered clips; the same ones for the same step."""

    def __init__(self, laid_out: Plan, device: torch.device) -> None:
        import numpy as np
        import torch

        from data_pipeline.synthetic import generator, render_frames, render_texture, simulate

        data = laid_out.config.data
        self._plan, self._device = laid_out, device
        clips = []
        for number in range(NUM_RENDERED):
            rng = generator(laid_out.config.seed, number)
            states, _ = simulate(rng, data.frames, 8.0)
            clips.append(render_frames(states, render_texture(rng, 2 * data.size), data.size))
        self._clips = torch.from_numpy(np.stack(clips))

    def at(self, step: int) -> Iterator[Batch]:
        from pretrain.data.augment import normalise
        from pretrain.masks import sample_masks
        from pretrain.objective.base import Batch

        config = self._plan.config
        micro = config.train.micro_batch
        first = step * config.train.global_batch
        for start in range(first, first + config.train.global_batch, micro):
            positions = range(start, start + micro)
            picked = self._clips[[position % NUM_RENDERED for position in positions]]
            masks = sample_masks(config.objective.masks, config.grid, config.seed, step, positions)
            keys = tuple(str(position) for position in positions)
            clips = normalise(picked.to(self._device))
            yield Batch(step, tuple(positions), keys, clips, masks.to(self._device))


def check_training(kind: str, say: Callable[[str], None]) -> list[Check]:
    """Twenty steps through DeepSpeed, a save in the middle, and a resume that meets the same next loss."""
    import torch

    from pretrain.build import build_engine
    from pretrain.checkpoint import Checkpoints
    from pretrain.kernels import kernels_for
    from pretrain.progress import Progress
    from pretrain.strategy.deepspeed import join_world

    device = torch.device(kind, 0) if kind == "cuda" else torch.device("cpu")
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port()
    )
    checks: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="foreframe-smoke-") as folder:
        config = smoke_config(kind, Path(folder))
        laid_out = plan(config, 1)
        say(f"  {NUM_STEPS} steps of {config.model.encoder.preset}, bf16, ZeRO-1, on {kind} ...")
        try:
            world = join_world(device, 60.0)
            batches = RenderedBatches(laid_out, device)
            checkpoints = Checkpoints(
                Path(folder), laid_out, world, "rendered", {}, lambda _: None, lambda: None
            )
            # Once for both: what is timed again may come out otherwise, and another kernel rounds otherwise.
            kernels = kernels_for(config, world)
            engine, progress = build_engine(laid_out, world, kernels), Progress()
            losses: list[float] = []
            moved = 0.0
            begin_s = time.perf_counter()
            for step in range(NUM_STEPS):
                if step == 2:
                    begin_s = time.perf_counter()  # the first steps warm up
                losses.append(_step(laid_out, engine, batches, step))
                if step + 1 == SAVE_AT:
                    progress.step, progress.samples = SAVE_AT, SAVE_AT * config.train.global_batch
                    moved = _distance(engine)
                    save_begin_s = time.perf_counter()
                    checkpoints.save(engine, progress, is_last=True)
                    begin_s += time.perf_counter() - save_begin_s
            clips_per_s = (NUM_STEPS - 2) * config.train.global_batch / (time.perf_counter() - begin_s)
            finite = all(math.isfinite(loss) for loss in losses)
            checks.append(
                Check(
                    f"{NUM_STEPS} DeepSpeed steps",
                    finite and losses[-1] < losses[0],
                    f"loss {losses[0]:.3f} → {losses[-1]:.3f}",
                )
            )
            checks.append(
                Check("sharded moving average", 0 < moved < 1, f"target moved {moved:.2g} from the context's")
            )
            del engine
            engine = build_engine(laid_out, world, kernels)
            resumed = checkpoints.resume(engine)
            again = _step(laid_out, engine, batches, resumed.step)
            off = abs(again - losses[SAVE_AT]) / losses[SAVE_AT]
            found = f"next loss {again:.6f}, without the stop {losses[SAVE_AT]:.6f}"
            checks.append(Check("save and resume", resumed.step == SAVE_AT and off <= SAME_LOSS, found))
            checks.append(Check("throughput", True, f"{clips_per_s:.1f} clips/s"))
            checks.append(Check("peak memory", True, _peak_memory(kind)))
        except (
            Exception
        ) as error:  # whatever breaks on a user's machine is what this command is there to show
            checks.append(
                Check("training", False, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
            )
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
    return checks


def _step(laid_out: Plan, engine: Engine, batches: RenderedBatches, step: int) -> float:
    from pretrain.schedule import knobs_at

    knobs = knobs_at(step, laid_out.config)
    total = 0.0
    for batch in batches.at(step):
        output = engine.loss(batch, engine.targets(batch))
        engine.backward(output)
        total += float(output.loss.detach()) / laid_out.micro_batches
    if engine.step(knobs).applied:
        engine.update_target(knobs.momentum)
    return total


def _distance(engine: Engine) -> float:
    """Relative distance of the target's weights from the context encoder's."""
    import torch

    assert engine.target is not None and engine.objective.encoder is not None
    pairs = list(zip(engine.target.parameters(), engine.objective.encoder.parameters(), strict=True))
    apart = sum(float((t.float() - c.detach().float()).square().sum()) for t, c in pairs)
    whole = sum(float(torch.linalg.vector_norm(c.detach().float()).square()) for _, c in pairs)
    return math.sqrt(apart / whole)


def _peak_memory(kind: str) -> str:
    import torch

    if kind == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of GPU memory"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of memory"


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
