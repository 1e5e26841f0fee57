"""The doctor on what ended jobs left: locks, folders, processes."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from data_pipeline.scratch import scratch_folder
from launch.doctor import leftovers
from launch.doctor.leftovers import Process


def python(started_s: float, *words: str) -> Process:
    return Process(4000 + int(started_s), 1, started_s, ("/usr/bin/python3", *words))


def test_a_lock_is_stale_when_nothing_that_runs_is_as_old(tmp_path: Path) -> None:
    folder = tmp_path / "extensions" / "py311" / "fused_adam"
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    os.utime(folder / "lock", (1000.0, 1000.0))
    extensions = tmp_path / "extensions"

    def state(named: str | None, *running: Process) -> str:
        return leftovers.check_extension_locks([extensions], named, running).state

    younger, older = python(2000.0), python(500.0)
    assert state(str(extensions), younger) == "fail"
    assert state(None, younger) == "warn"  # jobs of ours have a folder of their own
    assert state(str(extensions), younger, older) == "warn"
    assert state(str(extensions), Process(1, 0, 1.0, ("/sbin/init",))) == "fail"
    (folder / "lock").unlink()
    assert state(str(extensions), younger) == "pass"


def test_torch_waits_for_such_a_lock_so_it_is_the_right_file(tmp_path: Path) -> None:
    from torch.utils.file_baton import FileBaton

    baton = FileBaton(str(tmp_path / "lock"))
    assert baton.try_acquire()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert not FileBaton(str(tmp_path / "lock")).try_acquire()
    assert leftovers.check_extension_locks([tmp_path], str(tmp_path), []).state == "fail"
    baton.release()


def test_temporary_folders_of_killed_commands_are_found_and_those_at_work_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    now_s = time.time()
    (tmp_path / "foreframe-shards-0").mkdir()
    os.utime(tmp_path / "foreframe-shards-0", (1000.0, 1000.0))  # the cache stays
    with scratch_folder() as held:
        os.utime(held, (now_s - 1000, now_s - 1000))
        assert leftovers.check_temporary_folders(tmp_path, [], now_s).state == "pass"
    left = Path(tempfile.mkdtemp(prefix="foreframe-smoke-"))
    os.utime(left, (now_s - 7200, now_s - 7200))
    found = leftovers.check_temporary_folders(tmp_path, [], now_s)
    assert (found.state, found.remedy) == ("warn", f"`rm -r {left}`")
    old = python(now_s - 9000, "-m", "launch", "smoke")
    assert leftovers.check_temporary_folders(tmp_path, [old], now_s).state == "pass"  # it may be that one's


def made(base: Path, name: str, age_s: float = 7200.0, mode: int = 0o700) -> Path:
    folder = base / name
    folder.mkdir(mode=mode)
    folder.chmod(mode)
    os.utime(folder, (time.time() - age_s,) * 2)
    return folder


@pytest.mark.parametrize("count", [1, 6])
def test_what_is_told_to_remove_folders_removes_those_that_commands_left_alone(
    count: int, tmp_path: Path
) -> None:
    base = tmp_path / "it's a $(folder)"
    base.mkdir()
    for number in range(count):
        made(base, f"foreframe-extensions-abcdef_{number}")
    kept = [
        made(base, "foreframe-shards-0"),  # the cache
        made(base, "foreframe-extensions-abcdefgh", age_s=10.0),
        *(made(base, f"foreframe-{name}") for name in ("checkout", "checkout-b", "ui-2", "smoke-a.b-cd-e")),
        made(base, "foreframe-extensions-checkout", mode=0o755),  # not as mkdtemp makes them
        made(base, "foreframe-scratch-abcdefgh"),
        made(base, "other"),
    ]
    found = leftovers.check_temporary_folders(base, [], time.time())
    assert found.found.startswith(f"{count} left")
    subprocess.run(["sh", "-c", found.remedy.strip("`")], check=True)
    assert sorted(base.iterdir()) == sorted(kept)


def test_what_is_told_to_remove_locks_removes_those(tmp_path: Path) -> None:
    lock = tmp_path / "a b; touch c" / "lock"
    lock.parent.mkdir()
    lock.touch()
    found = leftovers.check_extension_locks([tmp_path], None, [])
    subprocess.run(["sh", "-c", found.remedy.split("`")[1]], check=True, cwd=tmp_path)
    assert list(lock.parent.iterdir()) == []
    assert list(tmp_path.iterdir()) == [lock.parent]


def test_other_jobs_are_named_and_the_asking_process_with_its_shell_is_not() -> None:
    shell = Process(10, 1, 100.0, ("sh", "-c", "python -m launch train x"))
    asking = Process(11, 10, 100.0, ("python", "-m", "launch", "doctor"))
    wrapped = Process(20, 1, 40.0, ("timeout", "9", "python", "-m", "launch", "train", "a.yaml"))
    job = Process(21, 20, 40.0, ("python", "-m", "launch", "train", "a.yaml"))
    viewer = Process(22, 1, 40.0, ("python", "-m", "launch", "ui", "runs/a"))
    assert leftovers.check_jobs([shell, asking, viewer], 11, 100.0).state == "pass"
    found = leftovers.check_jobs([shell, asking, wrapped, job], 11, 100.0)
    assert found.state == "warn"
    assert found.found == "train (process 20, 60 s)"


def test_processes_are_read_from_proc_with_their_start() -> None:
    own = next(each for each in leftovers.processes() if each.pid == os.getpid())
    assert own.parent == os.getppid()
    assert abs(own.started_s - os.stat(f"/proc/{os.getpid()}").st_ctime) < 60
