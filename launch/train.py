"""`foreframe train`: starts its own ranks, or joins those that torchrun or DeepSpeed's launcher has started.

The composition root of a run.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.errors import (
    FULL_DISK,
    DataError,
    ForeframeError,
    LostPeerError,
    UsageError,
    why,
)
from data_pipeline.scratch import scratch_folder
from launch.config import CONFIG_FILE, read_config
from launch.ending import ERRORS_VARIABLE, how_to_go_on, leave_rank_error
from launch.environment import processor
from launch.failure import telling_failure
from launch.fitting import check_device, check_memory
from launch.lock import is_bare, lock_run, run_folder
from launch.meeting import Job
from launch.notes import notes
from launch.processes import Asked, die_with_parent
from launch.provenance import provenance, source, versions, write_provenance
from launch.ranks import (
    QUIET_VARIABLE,
    Options,
    PreemptedError,
    end_rank,
    given_options,
    ranks_here,
    spawn_ranks,
    threads_for,
    use_threads,
)
from launch.run_facts import probe_dataset, run_facts
from launch.run_folder import (
    RESULT_FILE,
    TrainResult,
    check_data,
    finished,
    make_run,
    open_run,
    refuse_changes,
)
from launch.train_display import TrainDisplay
from launch.unread import is_unread, silence_unread_output
from launch.watchdog import Watchdog, watching
from pretrain.checkpoint import is_sent
from pretrain.config import RunConfig, plan
from pretrain.parts import check_profile

SAVE_WAIT_S = 1.0  # of a save for a tracker: what a server lacks is sent when the run is resumed
# gloo and NCCL: a connection closed or reset, a collective that ran into strategy.timeout_s
LOST_PEER_WORDS = ("by peer", "Connection closed", "NCCL communicator was aborted")
TIMEOUT_WORDS = ("Timed out waiting", "timed out", "wait timeout")


class StopRequests(Asked):
    """Signals, the time limit, a launcher that is gone: a reason that the loop asks for after each step.

    has_launcher: another program started this rank and reads its output; without that nobody would see it.
    """

    def __init__(self, time_limit_s: float | None, *, has_launcher: bool = False) -> None:
        super().__init__()
        self._has_launcher, self._is_alone = has_launcher, False
        self._deadline_s = time.monotonic() + time_limit_s if time_limit_s else None

    @property
    def left_s(self) -> float | None:
        """Until the run's time is over; None without a limit."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    @property
    def is_asked(self) -> bool:
        return self.number is not None or self._is_alone

    @property
    def reason(self) -> str | None:
        if self.number is not None:
            return f"{self.number.name} received"
        self._is_alone = self._is_alone or (self._has_launcher and is_unread())
        if self._is_alone:
            return "nobody reads what it prints any more"
        is_late = self._deadline_s is not None and time.monotonic() > self._deadline_s
        return "train.time_limit_s is over" if is_late else None


def run_train(
    config: RunConfig,
    *,
    nproc: int = 1,
    nnodes: int = 1,
    node_rank: int = 0,
    rendezvous: str | None = None,
    fresh: bool = False,
    quiet: bool = False,
    allow_change: Sequence[str] = (),
    profile: int | None = None,
) -> TrainResult:
    """Train to the end, from the newest whole checkpoint if there is one.

    Inside torchrun or DeepSpeed's launcher (RANK and WORLD_SIZE are set) this process is one of its ranks and
    nproc is ignored.
    nnodes, node_rank: machines of the job, which share the run's folder, and which of them this is.
    rendezvous: HOST:PORT of the first.
    fresh: refuse a run's folder that exists. allow_change: settings that may differ from the run there.
    profile: steps to record (pretrain/profiling.py).
    Raises: ConfigError and UsageError before anything is started; DataError, CheckpointError, DivergedError,
    CollapsedError, LostPeerError from the ranks; PreemptedError after a stop with a save.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        is_quiet = quiet or bool(os.environ.get(QUIET_VARIABLE))
        return run_rank(config, quiet=is_quiet, allow_change=allow_change, profile=profile)
    job = Job(nproc, nnodes, node_rank, rendezvous)
    check_profile(profile, plan(config, job.world_size))
    check_device(config, nproc)
    check_memory(config)
    run = run_folder(config)
    if fresh and job.is_first and run.exists() and not is_bare(run):
        raise UsageError(f"{run} exists; choose another name=..., or leave --fresh out to go on with it")
    check_data(config)
    if job.is_first:
        make_run(config, allow_change)
    with lock_run(run) if job.is_first else nullcontext():
        if job.is_first:
            open_run(config, allow_change)
        already = finished(run, config.train.steps)
        if already is not None and is_sent(run, config.train.checkpoint_store):
            return already
        if job.is_first:
            (run / RESULT_FILE).unlink(missing_ok=True)
        with telling_failure(run) if job.is_first else nullcontext():
            if config.strategy.kind == "single":
                result = run_rank(config, quiet=quiet, allow_change=allow_change, profile=profile)
            else:
                spawn_ranks(run, config, job, quiet=quiet, allow_change=allow_change, profile=profile)
                result = TrainResult.read(run)
        if already is None:
            return result
        if job.is_first:  # no step was taken, its last checkpoint was sent
            already.write()
        return already


def run_rank(
    config: RunConfig, *, quiet: bool = False, allow_change: Sequence[str] = (), profile: int | None = None
) -> TrainResult:
    """One rank of a run; every rank of the job calls this. Errors are left for the starting process too."""
    rank = int(os.environ.get("RANK", "0"))
    # Packed rows have a new length each step; oneDNN keeps compiled code for the last 1024 shapes, which
    # grew a rank of the demo from 0.7 to 2.3 GB in 280 steps. Read once, at its first use.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    run, shared = run_folder(config), os.environ.get(ERRORS_VARIABLE)
    has_launcher = "RANK" in os.environ and not shared
    here = ranks_here() if shared else 1  # that share the folder
    elsewhere = int(os.environ.get("WORLD_SIZE", "1")) - here
    try:
        with (
            StopRequests(config.train.time_limit_s, has_launcher=has_launcher) as stops,
            ExitStack() as holding,
            nullcontext(Path(shared)) if shared else scratch_folder() as folder,
            watching(run, folder, rank, config.train.hang_s, elsewhere) as watchdog,
        ):
            if config.strategy.kind == "deepspeed":
                os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(folder / "extensions"))
            # who starts ranks of ours holds the run's folder for them
            hold = partial(_hold, run, holding) if has_launcher else None
            options = Options(quiet, allow_change, profile)
            return _train_or_say_why(config, stops, watchdog, hold, options)
    except ForeframeError as error:
        if leave_rank_error(rank, error):
            raise SystemExit(error.exit_code) from error
        raise
    except Exception as error:  # a crash: who started this rank is told, the traceback goes on
        leave_rank_error(rank, error)
        raise


def _hold(run: Path, holding: ExitStack) -> None:
    holding.enter_context(lock_run(run))
    holding.enter_context(telling_failure(run))


def _train_or_say_why(
    config: RunConfig,
    stops: StopRequests,
    watchdog: Watchdog,
    hold: Callable[[], None] | None,
    options: Options,
) -> TrainResult:
    """`_train`; a disk that is full by the time of a metric, and a rank that went away, are named errors."""
    run = run_folder(config)
    try:
        return _train(config, stops, hold, options)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise DataError(f"{error.filename or run} could not be written: {why(error)}") from error
    except RuntimeError as error:
        from pretrain.data.stream import gone

        if (without_worker := gone(error)) is not None:
            raise without_worker from error
        if config.strategy.kind == "deepspeed" and any(words in str(error) for words in TIMEOUT_WORDS):
            raise watchdog.timed_out(error, config.strategy.timeout_s, "strategy.timeout_s") from error
        if not any(words in str(error) for words in LOST_PEER_WORDS):
            raise
        raise LostPeerError(f"another rank went away; {how_to_go_on(run)}") from error


def _train(
    config: RunConfig,
    stops: StopRequests,
    hold: Callable[[], None] | None,
    options: Options,
) -> TrainResult:
    """hold: keeps others out of the run's folder from then on; called by the first rank."""
    import torch

    from pretrain import pulse
    from pretrain.build import build_engine, settle
    from pretrain.checkpoint import Checkpoints, is_begun, patiently
    from pretrain.data.stream import Batches
    from pretrain.kernels import ATTENTION_FILE, kernels_for
    from pretrain.loop import train
    from pretrain.probe.online import OnlineProbe
    from pretrain.profiling import Profile
    from pretrain.step_pictures import StepPictures
    from pretrain.strategy.base import World
    from pretrain.tracking.base import DatasetFacts, Several, make_tracker
    from pretrain.tracking.pictures import take_back_pictures
    from pretrain.watch import Watch

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
    use_threads(threads_for(config.train.threads, ranks_here()))
    world = World(0, 1, device)
    if config.strategy.kind == "deepspeed":
        from pretrain.strategy.deepspeed import join_world

        world = join_world(device, config.strategy.timeout_s)
    laid_out = plan(config, world.size)
    check_profile(options.profile, laid_out)
    run, allow_change = run_folder(config), options.allow_change

    def check_and_open() -> None:
        if world.is_first:
            check_device(config, ranks_here())
            check_memory(config)
            check_data(config)
            make_run(config, allow_change)
            if hold is not None:
                hold()
            open_run(config, allow_change)
            if hold is not None:
                (run / RESULT_FILE).unlink(missing_ok=True)

    world.together(check_and_open)
    begin_s = time.perf_counter()

    display = TrainDisplay(
        enabled=world.is_first and not options.quiet,
        run=run,
        steps=laid_out.steps,
        limit_s=stops.left_s,
    )
    batches = world.own(lambda: Batches(laid_out, world.rank, device))
    store = config.train.checkpoint_store
    takes_init = config.init.weights is not None and not any(
        patiently(world, lambda _: is_begun(run, store if world.is_first else None))
    )
    kernels = kernels_for(config, world, run)
    laid_out = settle(laid_out, device.type, kernels)
    pulse.beat()
    engine = build_engine(laid_out, world, kernels, takes_init=takes_init)
    tracker = make_tracker(config.tracker, run, say=display.say) if world.is_first else Several()
    fingerprint = batches.corpus.fingerprint
    code = {"foreframe": versions().get("foreframe"), "commit": source()["commit"]}
    checkpoints = Checkpoints(
        run, laid_out, world, fingerprint, code, display.say, partial(tracker.flush, SAVE_WAIT_S)
    )

    def accept(folder: Path, manifest: dict[str, Any]) -> None:
        refuse_changes(RunConfig.model_validate(manifest["config"]), config, allow_change, folder)

    with display:
        actions = {name for reader in batches.corpus.readers for name in reader.info.action_names}
        for sentence in (*kernels.sentences, *notes(laid_out, actions, config, device.type)):
            display.say(sentence)
        pulse.beat()
        progress = checkpoints.resume(engine, accept)
        pulse.beat()

        def start_tracker(_: object) -> None:
            if not world.is_first:
                return
            data = tuple(
                DatasetFacts(r.info.name, each.shards, r.info.fingerprint, len(r), each.weight)
                for each, r in zip(config.data.sources, batches.corpus.readers, strict=True)
            )
            data += probe_dataset(config)
            facts = provenance(data, world.size, device_name(device))
            files = write_provenance(run, facts)
            tracker.start(run_facts(config, run, data, facts), progress.step)
            timed = run / ATTENTION_FILE  # where attention was to be chosen
            for file in (run / CONFIG_FILE, *files, *([timed] if timed.is_file() else [])):
                tracker.log_file(file)

        probe = OnlineProbe(run, laid_out, engine, display.say, progress.step)
        every = config.probe.every
        shows = every is not None and progress.step // every < laid_out.steps // every  # at least once more
        if world.is_first:  # whether or not any are drawn from now on
            take_back_pictures(run, after=progress.step)
        pictures = StepPictures(run, laid_out, engine, tracker, display.say) if shows else None
        watch = Watch(
            run,
            laid_out,
            engine,
            batches,
            tracker,
            progress,
            display.show,
            display.say,
            checkpoints.take_metrics,
            probe,
            pictures,
        )
        profile = Profile(run, options.profile, engine, progress, display.say)
        ended = False
        try:
            patiently(world, start_tracker)  # a server may take longer than a collective
            progress = train(laid_out, engine, batches, checkpoints, watch, stops, progress, profile)
            profile.end()
            ended = progress.step >= laid_out.steps
            display.end(None if ended else stops.reason or "another rank was asked to stop")
            patiently(world, lambda _: watch.wait())
            watch.finish()
        except BaseException:  # however it ended, the tracker is told; the error goes on
            tracker.close("failed")
            raise
        finally:
            profile.drop()
            batches.close()
        pulse.beat("ending")
        patiently(world, lambda _: tracker.close("done" if ended else "stopped"))
    reason = None if ended else stops.reason or "another rank was asked to stop"
    line = watch.line
    result = TrainResult(
        run=run,
        step=progress.step,
        loss=line.loss if line else None,
        clips_per_s=line.clips_per_s if line else None,
        seconds=time.perf_counter() - begin_s,
        stopped=reason,
        bad_samples=len(progress.bad_ids),
    )
    if world.is_first:
        result.write()
    is_preempted = world.any(stops.is_asked) and not ended
    if world.size > 1:
        torch.distributed.destroy_process_group()
    if is_preempted:
        raise PreemptedError(f"{reason}: saved at step {progress.step}; {how_to_go_on(run)}")
    return result


def device_name(device: object) -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(torch.device(str(device)))
    return f"CPU: {processor()}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":  # one rank, started by spawn_ranks
    die_with_parent(int(sys.argv[2]))
    silence_unread_output()
    given = read_config(sys.argv[1], [], RunConfig)
    run_rank(given, **given_options()._asdict())
    end_rank()
