"""What the pipeline must come through: SIGKILL at random moments, lost nodes, heaps of rubbish, long runs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import shard
from data_pipeline.synthetic import Look, render_videos
from data_pipeline.verify import verify
from tests.data_pipeline.conftest import tiny_config

ROOT = Path(__file__).parents[2]
NUM_VIDEOS = 80
# Ray's own agents are left out: its node dies with them, as it does with a machine.
WORKERS = ("ray::IDLE", "ray::_guarded", "data_pipeline.isolate")
SCRIPT = """
import sys
from data_pipeline.config import DataConfig
from data_pipeline.dataset import shard
shard(DataConfig.model_validate_json(sys.argv[1]), lambda stage, done, total, note: None)
"""

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(1800)]


def make_config(videos: Path, out: Path, **changes: object) -> DataConfig:
    """`tiny_config` of larger pictures in larger shards, with near-duplicates left out."""
    larger: dict[str, object] = {
        "encode": {"short_side": 64, "fps": 8.0},
        "shards": {"target_bytes": 256 * 1024},
        "split": {"eval_fraction": 0.2},
        "filters": {"max_distance": 2},
        "inspect": {},
    }
    return tiny_config(videos, out, **(larger | changes))


def start(config: DataConfig) -> subprocess.Popen[bytes]:
    """The job in a process of its own, with a Ray of its own unless the config names one."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, config.model_dump_json()],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )


def contents(out: Path) -> dict[str, bytes]:
    """Every byte of a data set but videos.parquet, which tells when files were written."""
    paths = [
        path for path in out.rglob("*") if path.is_file() and path.name not in ("videos.parquet", ".lock")
    ]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    render_videos(folder, NUM_VIDEOS, seed=5, workers=2, look=Look(size=96, fps=16.0, duration_s=4.0))
    return folder


@pytest.fixture(scope="module")
def reference(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """An uninterrupted run: its bytes, and how long it took."""
    out = tmp_path_factory.mktemp("reference") / "out"
    began = time.monotonic()
    process = start(make_config(videos, out))
    assert process.wait() == 0
    took_s = time.monotonic() - began
    assert verify(str(out), deep=True).problems == ()
    found = contents(out)
    assert sum(name.endswith(".tar") for name in found) >= 4
    return found, took_s


def descendants(pid: int, marks: tuple[str, ...]) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if any(mark in " ".join(process.cmdline()) for mark in marks):
                found.append(process)
        except psutil.Error:  # it ended while we looked
            continue
    return found


@pytest.mark.parametrize("moment", range(20))
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(
    moment: int, videos: Path, reference: tuple[dict[str, bytes], float], tmp_path: Path
) -> None:
    """Even moments: the driver; odd ones: a worker or the child that decodes for it, again and again."""
    wanted, took_s = reference
    rng = random.Random(moment)
    config = make_config(videos, tmp_path / "out")
    process = start(config)
    kills = 0
    if moment % 2 == 0:
        time.sleep(rng.uniform(0.2, 0.98) * took_s)
        process.kill()
        process.wait()
        assert not (tmp_path / "out" / "dataset.json").exists() or verify(config.out).problems == ()
        process = start(config)
    else:
        while process.poll() is None and kills < 3:
            time.sleep(rng.uniform(0.1, 0.4) * took_s)
            if process.poll() is None and (found := descendants(process.pid, WORKERS)):
                victim = rng.choice(found)
                victim.kill()
                kills += 1
    assert process.wait(300) == 0, process.stderr and process.stderr.read()[-6000:].decode()
    assert contents(tmp_path / "out") == wanted


@pytest.mark.parametrize("moment", range(3))
def test_a_lost_node_costs_time_only(
    moment: int, videos: Path, reference: tuple[dict[str, bytes], float], tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    path, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH"), str(ROOT)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        lost = cluster.add_node(num_cpus=1)
        config = make_config(videos, tmp_path / "out", ray={"address": cluster.address})
        process = start(config)
        time.sleep(random.Random(moment).uniform(0.3, 0.8) * reference[1])
        for each in lost.all_processes["raylet"]:
            each.process.send_signal(signal.SIGKILL)
        assert process.wait(300) == 0, process.stderr and process.stderr.read()[-6000:].decode()
    finally:
        cluster.shutdown()
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
    assert contents(tmp_path / "out") == reference[0]


def test_a_hundred_thousand_files_that_are_no_videos_do_not_hide_the_one_that_is(
    videos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "heap"
    folder.mkdir()
    rubbish = random.Random(0).randbytes(100)
    for number in range(100_000):
        below = folder / f"{number // 1000:03d}"
        below.mkdir(exist_ok=True)
        (below / f"{number:06d}.mp4").write_bytes(rubbish if number % 2 else b"")
    (folder / "050" / "film.mp4").write_bytes((videos / "video-000000.mp4").read_bytes())
    began = time.monotonic()
    outcome = shard(make_config(folder, tmp_path / "out", max_failed_fraction=1.0), lambda *_: None)
    print(f"100,001 files in {time.monotonic() - began:.0f} s")
    assert sum(outcome.info.num_clips.values()) == 8
    letters = (tmp_path / "out" / "dead_letters.jsonl").read_text().splitlines()
    assert len(letters) == 100_000
    assert sum("is empty" in line for line in letters) == 50_000
    began = time.monotonic()
    assert not shard(make_config(folder, tmp_path / "out", max_failed_fraction=1.0), lambda *_: None).is_new
    print(f"a second look in {time.monotonic() - began:.0f} s")


def test_a_workers_memory_is_flat_over_two_thousand_clips(videos: Path, tmp_path: Path) -> None:
    """Worker and decoding child together, over the same parts again and again under other names."""
    from data_pipeline.clips import PartPlan
    from data_pipeline.dataset import cut_all, plan_all
    from data_pipeline.index import build_index
    from data_pipeline.stages import build_part

    config = make_config(videos, tmp_path / "out")
    sources = build_index(config, lambda *_: None).sources()
    plans = plan_all(config, cut_all(config, sources), sources)
    me, samples, num_clips = psutil.Process(), [], 0
    while num_clips < 2400:
        for plan in plans:
            again = PartPlan(f"{plan.stem}-{num_clips}", plan.clips)
            for _ in build_part(again, dict(sources), config, config.out):
                num_clips += 1
            samples.append(
                me.memory_info().rss
                + sum(c.memory_info().rss for c in descendants(me.pid, ("data_pipeline.isolate",)))
            )
    early = sorted(samples[len(samples) // 4 : len(samples) // 2])
    late = sorted(samples[-len(samples) // 4 :])
    middle = [part[len(part) // 2] / 2**20 for part in (early, late)]
    print(
        f"{num_clips} clips; medians {middle[0]:.1f} and {middle[1]:.1f} MiB, most {max(samples) / 2**20:.1f}"
    )
    assert middle[1] < middle[0] * 1.05 + 2
