"""What counts as moving, which rank is blamed, and what is written down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.watchdog import Seen, Stillness, behind, dump_stacks, pulse_file, what_hangs
from pretrain import pulse


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def beating(tmp_path: Path) -> Iterator[Path]:
    path = pulse_file(tmp_path, 0)
    pulse.begin(path)
    yield path
    pulse.end()


def test_a_beat_of_the_rank_or_of_a_worker_is_a_move(beating: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.watchdog.bytes_moved", lambda _: ())
    clock = Clock()
    still = Stillness(beating, clock)
    assert still.seconds() == 0
    clock.now_s = 50
    assert still.seconds() == 50
    pulse.beat()
    assert still.seconds() == 0
    clock.now_s = 80
    assert still.seconds() == 30
    pulse.join(beating, 3)  # as a loader worker does in its own process
    pulse.beat()
    assert still.seconds() == 0
    clock.now_s = 100
    assert still.seconds() == 20


def test_bytes_that_a_save_writes_are_a_move(
    beating: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written = Clock(), [("write_bytes: 0",)]
    monkeypatch.setattr("launch.watchdog.bytes_moved", lambda _: written[-1])
    still = Stillness(beating, clock)
    still.seconds()
    clock.now_s = 50
    written.append(("write_bytes: 4096",))
    assert still.seconds() == 0


def test_what_a_rank_notes_is_read_by_others(beating: Path) -> None:
    pulse.beat("backward", 7)
    pulse.beat()
    (own,) = pulse.read(beating)
    assert (own.pid, own.step, own.place) == (os.getpid(), 7, "backward")


def seen(rank: int, place: str, step: int = 5, state: str = "S") -> Seen:
    return Seen(rank, 1000 + rank, state, step, place)


@pytest.mark.parametrize(
    ("ranks", "blamed"),
    [
        ([seen(0, "backward"), seen(1, "forward")], [1]),
        ([seen(0, "update", 4), seen(1, "forward")], [0]),
        ([seen(0, "backward"), seen(1, "backward", state="T")], [1]),
        ([seen(0, "forward"), seen(1, "backward", state="Z")], [1]),
        ([seen(0, "backward"), seen(1, "backward")], []),
        ([seen(0, "forward"), seen(1, "forward"), seen(2, "backward")], [0, 1]),
        ([seen(0, "forward")], [0]),
    ],
)
def test_the_rank_that_holds_the_others_up_is_blamed(ranks: list[Seen], blamed: list[int]) -> None:
    assert [each.rank for each in behind(ranks)] == blamed


def test_the_sentence_names_rank_time_limit_and_place() -> None:
    told = what_hangs([seen(0, "backward"), seen(1, "forward", state="T")], 901.2, "train.hang_s")
    assert told == (
        "rank 1 has not moved for 901 s (train.hang_s): rank 1 is stopped by a signal, at step 5 "
        "(forward), rank 0 is at step 5 (backward)"
    )


def test_ranks_that_wait_for_another_machine_are_not_blamed() -> None:
    told = what_hangs([seen(0, "backward"), seen(1, "backward")], 120.0, "strategy.timeout_s", elsewhere=2)
    assert told.startswith(
        "no rank of this machine has moved for 120 s (strategy.timeout_s), "
        "the 2 ranks on other machines may be gone or cut off: rank 0 is at step 5 (backward)"
    )


SLEEPER = """
import faulthandler, signal, sys, time
from pathlib import Path
from launch.watchdog import pulse_file, stacks_file
from pretrain import pulse
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
pulse.begin(pulse_file(folder, rank))
faulthandler.register(signal.SIGUSR2, stacks_file(folder, rank).open("wb"), all_threads=True)
def sleeps_for_ever():
    print("ready", flush=True)
    time.sleep(600)
sleeps_for_ever()
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_stacks_of_living_ranks_are_written_and_a_stopped_one_is_named(tmp_path: Path) -> None:
    folder, run = tmp_path / "ranks", tmp_path / "run"
    folder.mkdir()
    run.mkdir()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SLEEPER, str(folder), str(rank)], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            assert rank.stdout is not None
            assert rank.stdout.readline() == "ready\n"
        ranks[1].send_signal(signal.SIGSTOP)
        os.waitpid(ranks[1].pid, os.WUNTRACED)
        begin = Path(dump_stacks(folder, run))
        files = sorted(begin.parent.iterdir())
        assert [path.name.removeprefix(begin.name) for path in files] == [
            "-rank-00000.txt",
            "-rank-00001.txt",
        ]
        assert "in sleeps_for_ever" in files[0].read_text()
        assert "stopped by a signal" in files[1].read_text()
        assert "no stacks" in files[1].read_text()
        assert dump_stacks(folder, run) == str(begin), "once: who asks later is told where they are"
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
