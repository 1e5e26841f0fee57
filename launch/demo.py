"""`foreframe demo`: the whole road once, by the same functions that the single commands call.

<out>/videos   rendered videos (not with --videos)     <out>/data   shards
<out>/run      the run's folder, with report.html      <out>/demo.json   what was asked for, what is done
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UsageError
from launch.config import read_config, shipped_config
from launch.console import Stages, make_console, make_table, probe_table, timed
from pretrain.config import RunConfig, plan

if TYPE_CHECKING:
    from data_pipeline.config import DataConfig
    from launch.run_folder import TrainResult

DEMO_FILE = "demo.json"
VIDEOS, DATA, RUN = "videos", "data", "run"
NUM_RANKS = 2
NEEDED_BYTES = 1_000_000_000
SEED = 0
MIN_EVAL_VIDEOS = 4  # a probe wants clips of several videos that the encoder has not seen


@dataclass
class Progress:
    """`demo.json`: what the demo was asked for, and the seconds of each stage when it was first done."""

    videos: str | None
    num_videos: int
    steps: int | None
    seconds: dict[str, float] = field(default_factory=dict)
    finished: bool = False

    @property
    def asked(self) -> dict[str, Any]:
        return {"videos": self.videos, "num_videos": self.num_videos, "steps": self.steps}

    def write(self, out: Path) -> None:
        from data_pipeline.storage import Storage

        Storage(out).publish(DEMO_FILE, json.dumps(asdict(self), indent=1).encode())


def run_demo(
    out: Path,
    videos: Path | None = None,
    steps: int | None = None,
    num_videos: int = 200,
    force: bool = False,
) -> None:
    """Render or take videos, shard them, train over two ranks, probe, report; goes on where it was cut short.

    Raises: UsageError for an `out` in other use, an empty folder of videos, too little disk space; and what
    the stages raise.
    """
    # Any machine can walk this road, so it is walked on the CPU; set before torch looks for devices.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    asked = Progress(str(videos.resolve()) if videos else None, num_videos, steps)
    if videos is not None:
        check_videos(videos)
    config = train_config(out, steps)
    progress = open_folder(out, asked, force)
    check_disk(out)
    progress.write(out)

    console = make_console()
    console.print(f"[bold]foreframe demo[/bold] into {out}, on {len(os.sched_getaffinity(0))} CPU cores")
    stages = Stages(console)
    if videos is None and "render" not in progress.seconds:
        _render(out, num_videos, stages)
        _done(progress, out, "render", stages.seconds["render"])
    taken: dict[str, float] = {}
    with timed(taken, "shard"):
        _shard(data_config(out, videos, num_videos), stages)
    _done(progress, out, "shard", taken["shard"])
    with timed(taken, "train"):
        # A run that its time limit has ended is done here, though `foreframe train` would go on with it.
        result = (_read_result(out / RUN) if "train" in progress.seconds else None) or _train(config)
    _done(progress, out, "train", taken["train"])
    with timed(taken, "probe"):
        found = _read_probe(out / RUN) if "probe" in progress.seconds else None
        if found is None or found["step"] != result.step:
            found = _probe(out / RUN, stages)
    _done(progress, out, "probe", taken["probe"])
    with timed(taken, "report"):
        report = _report(out / RUN, stages)
    progress.finished = True
    _done(progress, out, "report", taken["report"])
    _print_end(progress, result, found, report)


def check_videos(videos: Path) -> None:
    """Raises: UsageError when it is no folder, or an empty one; DataError when it holds no video."""
    from data_pipeline.sources import list_sources

    if not videos.is_dir():
        what = "is a file, not a folder" if videos.exists() else "does not exist"
        raise UsageError(f"--videos {videos} {what}: name a folder with video files in it")
    if not any(path.is_file() for path in videos.rglob("*")):
        raise UsageError(f"--videos {videos} is empty: put videos there (mp4, webm, mkv, avi, mov)")
    list_sources((str(videos),), None)


def check_disk(out: Path) -> None:
    """Raises: UsageError when the disk of `out` has less than 1 GB free."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < NEEDED_BYTES:
        raise UsageError(
            f"{there} has {free / 1e9:.2f} GB free and the demo needs about {NEEDED_BYTES / 1e9:g} GB: "
            f"make room, or choose another disk with --out"
        )


def open_folder(out: Path, asked: Progress, force: bool) -> Progress:
    """What an interrupted demo of the same settings has done in `out`, or a fresh start.

    force: remove what an earlier demo wrote there, and nothing else.
    Raises: UsageError when `out` holds a finished demo, one of other settings, or something else.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file: name a folder")
    known = out / DEMO_FILE
    if not known.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise UsageError(f"--out {out} holds something that no demo wrote: choose another --out")
        return asked
    if force:
        for name in (VIDEOS, DATA, RUN):
            shutil.rmtree(out / name, ignore_errors=True)
        known.unlink()
        return asked
    try:
        earlier = Progress(**json.loads(known.read_bytes()))
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{known} cannot be read: start over with --force, or choose another --out"
        ) from error
    if earlier.finished:
        raise UsageError(
            f"--out {out} holds a finished demo: look at {out / RUN / 'report.html'}, choose another --out, "
            f"or remove it with --force"
        )
    if earlier.asked != asked.asked:
        before = ", ".join(f"{key} {value}" for key, value in earlier.asked.items() if value is not None)
        raise UsageError(
            f"--out {out} holds an interrupted demo of other settings ({before}): give the same to go on, "
            f"choose another --out, or start over with --force"
        )
    return earlier


def data_config(out: Path, videos: Path | None, num_videos: int) -> DataConfig:
    """configs/data/demo.yaml, pointed at the demo's folders."""
    from data_pipeline.config import DataConfig

    overrides = [f"out={_quoted(out / DATA)}", f"sources=[{_quoted((videos or out / VIDEOS).resolve())}]"]
    config = read_config(shipped_config("data/demo.yaml"), overrides, DataConfig)
    share = min(0.5, MIN_EVAL_VIDEOS / num_videos)
    if videos is None and share > config.split.eval_fraction:
        overrides.append(f"split.eval_fraction={share:.3f}")
    return read_config(shipped_config("data/demo.yaml"), overrides, DataConfig)


def train_config(out: Path, steps: int | None) -> RunConfig:
    """configs/train/tiny-cpu.yaml, pointed at the demo's folders; a shorter run warms up for less."""
    path = shipped_config("train/tiny-cpu.yaml")
    overrides = [f"data.shards={_quoted(out / DATA)}", f"out={_quoted(out)}", f"name={RUN}"]
    if steps is not None:
        warmup = min(read_config(path, [], RunConfig).optim.warmup_steps, steps // 10)
        overrides += [f"train.steps={steps}", f"optim.warmup_steps={warmup}"]
    return read_config(path, overrides, RunConfig, [lambda config: plan(config, NUM_RANKS)])


def _quoted(path: Path) -> str:
    """A path as a YAML value that means itself, whatever is in it."""
    return json.dumps(str(path), ensure_ascii=False)


def _done(progress: Progress, out: Path, stage: str, seconds: float) -> None:
    progress.seconds.setdefault(stage, seconds)
    progress.write(out)


def _render(out: Path, num_videos: int, stages: Stages) -> None:
    from data_pipeline.synthetic import render_videos

    with stages.showing() as report:
        render_videos(out / VIDEOS, num_videos, seed=SEED, progress=report)


def _shard(config: DataConfig, stages: Stages) -> None:
    from launch.data import run_shard

    run_shard(config, progress=stages)


def _train(config: RunConfig) -> TrainResult:
    from launch.train import run_train

    return run_train(config, nproc=NUM_RANKS)


def _read_result(run: Path) -> TrainResult | None:
    """What training has left; None when that cannot be read, as then training tells it anew."""
    from launch.run_folder import TrainResult

    try:
        return TrainResult.read(run)
    except (OSError, ValueError):
        return None


def _probe(run: Path, stages: Stages) -> dict[str, Any]:
    from launch.results import probe_run

    with stages.showing() as report:
        return probe_run(run, progress=report)


def _read_probe(run: Path) -> dict[str, Any] | None:
    from pretrain.probe import read_probe

    return read_probe(run)


def _report(run: Path, stages: Stages) -> Path:
    from launch.results import report_run

    with stages.showing() as report:
        return report_run(run, progress=report)


def _print_end(progress: Progress, result: TrainResult, found: dict[str, Any], report: Path) -> None:
    """The result, the time of each stage, and the two things to open."""
    console = make_console()
    console.print()
    for table in probe_table(found):
        console.print(table)
    console.print()
    total = sum(progress.seconds.values())
    times = [[stage, f"{seconds:.1f}"] for stage, seconds in progress.seconds.items()]
    console.print(make_table("Seconds", ["stage", "s"], [*times, ["in all", f"{total:.1f}"]]))
    speed = f"{result.clips_per_s:.1f} clips/s" if result.clips_per_s else ""
    loss = f", loss {result.loss:.4f}" if result.loss is not None else ""
    if result.stopped is not None:
        console.print(f"\ntraining stopped early: {result.stopped}; what follows is of {result.step} steps")
    console.print(f"\n{NUM_RANKS} ranks, {result.step} steps{loss}, {speed}")
    command = "foreframe" if shutil.which("foreframe") else os.path.relpath(sys.argv[0])
    console.print(f"open   [bold]{report}[/bold]\nor     [bold]{command} ui {result.run}[/bold]")
