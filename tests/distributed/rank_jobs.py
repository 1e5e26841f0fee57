"""What single ranks do in the distributed tests: torchrun starts `python -m tests.distributed.rank_jobs`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from launch.ranks import end_rank
from pretrain import memory
from pretrain.build import build_engine
from pretrain.checkpoint import StoredFragments, newest_whole
from pretrain.config import RunConfig, plan
from pretrain.data.stream import Batches
from pretrain.memory import BUCKET
from pretrain.model.compiling import Recompiles
from pretrain.schedule import knobs_at
from pretrain.step_pictures import StepPictures
from pretrain.strategy.base import Engine, Update, World
from pretrain.strategy.deepspeed import join_world
from pretrain.tracking.base import Several
from tests.distributed.live_memory import measure
from tests.distributed.live_step import measure_step
from tests.distributed.noise_steps import train_noise

ROOT = Path(__file__).parents[2]
BATCH = {"global_batch": 12, "micro_batch": 2, "precision": "fp32", "steps": 4}


def full_weights(engine: Engine, world: World) -> dict[str, torch.Tensor]:
    """The context encoder's float32 master weights, put together from all ranks' fragments."""
    tensors = {key: t.clone() for key, t in engine.tensors().items() if key.startswith("master/encoder.")}
    assert engine.target is not None
    whole = {name: torch.empty(whole_size(p)) for name, p in engine.target.named_parameters()}
    for own in world.gather_objects(tensors):
        for key, part in own.items():
            name, _, start = key.removeprefix("master/encoder.").rpartition("@")
            whole[name][int(start) : int(start) + part.numel()] = part
    return whole


def whole_size(parameter: torch.Tensor) -> int:
    """Also of one that ZeRO-3 has split."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def forward_weights(engine: Engine) -> dict[str, torch.Tensor]:
    """The target's weights as a forward would use them, flat float32."""
    assert engine.target is not None and engine.ema is not None
    engine.ema.ready()
    parameters = dict(engine.target.named_parameters())
    if not hasattr(next(iter(parameters.values())), "ds_numel"):
        return {name: p.detach().float().view(-1).clone() for name, p in parameters.items()}
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        return {name: p.detach().float().view(-1).clone() for name, p in parameters.items()}


def norms_off(
    told: dict[str, float],
    update: Update,
    before: dict[str, torch.Tensor],
    after: dict[str, torch.Tensor],
    average: dict[str, torch.Tensor],
) -> float:
    """How far the norms that an engine tells of a step are from those of whole weights, relative."""

    def norm(parts: dict[str, torch.Tensor]) -> float:
        return math.sqrt(sum(float(part.double().square().sum()) for part in parts.values()))

    gradients = math.hypot(told["grad_norm_encoder"], told["grad_norm_predictor"])
    pairs = [
        (gradients, update.grad_norm),
        (told["param_norm_encoder"], norm(after)),
        (told["update_norm_encoder"], norm({name: after[name] - before[name] for name in after})),
        (told["ema_distance"], norm({name: average[name] - after[name] for name in after}) / norm(after)),
    ]
    return max(abs(found - true) / true for found, true in pairs)


def compare_ema(
    config: RunConfig, world: World, poisoned: dict[str, int] | None, drawn: str | None = None
) -> dict[str, Any]:
    """Train some steps; beside it a plain float32 average of the gathered master weights.

    poisoned: the `step` and `rank` at which a loss is infinite, whose step must change nothing.
    drawn: the folder that gets pictures of every step.
    """
    laid_out = plan(config, world.size)
    engine = build_engine(laid_out, world)
    batches = Batches(laid_out, world.rank, world.device)
    pictures = drawn and StepPictures(Path(drawn), laid_out, engine, Several(), print)
    plain = full_weights(engine, world)
    losses, norms, is_equal, applied, off = [], [], [], [], []
    recompiles, graphs = Recompiles(), []
    for step in range(config.train.steps):
        knobs, total = knobs_at(step, config), 0.0
        before = full_weights(engine, world)
        for batch in batches.take(laid_out.micro_batches):
            output = engine.loss(batch, engine.targets(batch))
            total += float(output.loss.detach()) / laid_out.micro_batches
            if poisoned == {"step": step, "rank": world.rank}:
                output = output._replace(loss=output.loss * math.inf)
            engine.backward(output)
        update = engine.step(knobs, measure=True)
        applied.append(update.applied)
        norms.append(update.grad_norm)
        if update.applied:
            engine.update_target(knobs.momentum)
        after, told_norms = full_weights(engine, world), engine.norms()
        for name, weights in after.items():
            if update.applied:
                plain[name].lerp_(weights, 1.0 - knobs.momentum)
            else:
                is_equal.append(torch.equal(weights, before[name]))
        if update.applied:
            off.append(norms_off(told_norms, update, before, after, plain))
        assert engine.target is not None
        forward = forward_weights(engine)
        rounded = {name: p.to(engine.target.dtype).float() for name, p in plain.items()}
        is_equal.append(all(torch.equal(forward[name], rounded[name]) for name in plain))
        losses.append(world.mean([total])[0])
        graphs.append(recompiles.take())
        if pictures:
            pictures.take(step + 1)
    if pictures:
        pictures.close()
    batches.close()
    told = world.gather_objects({"equal": all(is_equal), "applied": applied})
    return {
        "losses": losses,
        "compiles": engine.compiles,
        "graphs": graphs,
        "norms": norms,
        "norms_off": max(off),
        "some_rank_has_no_encoder": world.any(engine.ema is not None and not engine.ema.pairs()),
        "ema_equal": all(rank["equal"] for rank in told),
        "applied": applied,
        "agreed": all(rank["applied"] == applied for rank in told),
    }


def take(config: RunConfig, world: World, run: Path) -> dict[str, list[str]]:
    """Load a run's newest checkpoint; the tensors that differ from what its files hold, put together."""
    engine = build_engine(plan(config, world.size), world)
    folder, manifest, _ = newest_whole(run)
    files = [folder / name for name in manifest["files"]]
    engine.load(StoredFragments(files).read, manifest["optimizer_step"])
    stored = put_together({key: tensor for file in files for key, tensor in load_file(file).items()})
    loaded: dict[str, torch.Tensor] = {}
    for own in world.gather_objects({key: tensor.clone() for key, tensor in engine.tensors().items()}):
        loaded |= own
    found = put_together(loaded)
    assert len(found) > 100 and engine.optimizer_step() == manifest["optimizer_step"]
    both = stored.keys() & found.keys()
    differ = {key for key in both if not torch.equal(found[key], stored[key])}
    return {"differ": sorted(differ | (stored.keys() ^ found.keys()))}


def put_together(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Whole flat tensors from fragments, by kind and parameter."""
    found: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for key, part in parts.items():
        name, _, start = key.rpartition("@")
        found.setdefault(name, []).append((int(start), part))
    whole = {}
    for name, own in found.items():
        whole[name] = torch.cat([part for _, part in sorted(own, key=lambda pair: pair[0])])
    return whole


def torchrun(num_ranks: int, *arguments: str) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(num_ranks),
    ]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-9000:]


def on_ranks(num_ranks: int, folder: Path, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each of some jobs found (rank_jobs.py), all on the same ranks."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    names = (str(folder / "jobs.json"), str(folder / "found.json"))
    torchrun(num_ranks, "-m", "tests.distributed.rank_jobs", *names)
    found: list[dict[str, Any]] = json.loads((folder / "found.json").read_text())
    return found


def main(jobs: Path, out: Path) -> None:
    """Each job of a list, one after the other, on the same ranks."""
    torch.set_num_threads(1)
    world = join_world(torch.device("cpu"), 60.0)
    found = []
    for job in json.loads(jobs.read_text()):
        config = RunConfig.model_validate(job["config"])
        memory.BUCKET = job.get("bucket") or BUCKET
        if "takes" in job:
            found.append(take(config, world, Path(job["takes"])))
        elif job.get("measures_memory"):
            found.append(world.gather_objects(measure(config, world)))
        elif job.get("trains_noise"):
            found.append(train_noise(config, world))
        elif job.get("measures_step"):
            found.append(world.gather_objects(measure_step(config, world)))
        else:
            found.append(compare_ema(config, world, job.get("poisoned"), job.get("pictures")))
    if world.is_first:
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    end_rank()
