"""The training loop."""

from __future__ import annotations

from pretrain import pulse
from pretrain.checkpoint import Checkpoints
from pretrain.config import Plan
from pretrain.data.stream import Batches
from pretrain.profiling import Profile
from pretrain.progress import Progress
from pretrain.schedule import knobs_at
from pretrain.stops import Stops
from pretrain.strategy.base import Engine
from pretrain.watch import Watch


def train(
    plan: Plan,
    engine: Engine,
    batches: Batches,
    checkpoints: Checkpoints,
    watch: Watch,
    stops: Stops,
    progress: Progress,
    profile: Profile | None = None,
) -> Progress:
    """Train from `progress` to the plan's last step, or until a stop that all ranks agree on.

    Every end but an error leaves a whole checkpoint of the last step behind.
    """
    batches.seek(progress.step, progress.samples)
    while progress.step < plan.steps:
        if profile is not None:
            profile.begin_step()
        knobs = progress.changes.of(knobs_at(progress.step, plan.config))  # lr, weight decay, momentum: pure
        for batch in batches.take(plan.micro_batches):
            targets = engine.targets(batch)  # target encoder, no gradient; None of those that need none
            output = engine.loss(batch, targets)  # context encoder, predictor
            pulse.beat("backward", batch.step + 1)
            engine.backward(output)
            watch.after_batch(batch, output)
            del targets, output  # else they were held beside those of the next forward
        pulse.beat("update", progress.step + 1)
        asked = engine.ask(stops.reason is not None)  # on all ranks, beside the step
        update = engine.step(knobs, measure=plan.looks_at(progress.step + 1))  # clip, agree, step or skip
        if update.applied:
            engine.update_target(knobs.momentum)  # moving average on local fragments
        progress = progress.after(update, plan)
        is_asked = asked()
        watch.after_step(progress, knobs, update, is_last=is_asked)  # metrics, health, tracker
        if watch.goes_back and (before := watch.go_back(progress, checkpoints)) is not None:
            progress = before  # weights, stream and tracker with it
            continue
        stop = is_asked or watch.stops
        if stop or plan.saves_at(progress.step):
            checkpoints.save(engine, progress, is_last=stop or progress.step == plan.steps)
        else:
            checkpoints.follow()  # what is written meanwhile: published once all ranks have
        if stop:
            break
    return progress
