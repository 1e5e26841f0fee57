"""What ranks do about each other's disks: threads that stand for ranks, and folders that stand for hosts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import CheckpointError, DataError
from pretrain import pulse
from pretrain.checkpoint import checkpoints as module
from pretrain.checkpoint import step_folders
from pretrain.checkpoint.checkpoints import Checkpoints
from pretrain.checkpoint.publish import publish
from pretrain.checkpoint.sending import Sending
from pretrain.checkpoint.sharing import find_sharing
from pretrain.checkpoint.store import Store
from pretrain.checkpoint.task import Task, patiently, wait_for_all
from pretrain.checkpoint.whole import file_hash
from pretrain.config import plan
from pretrain.progress import Progress
from pretrain.strategy.base import World
from tests.small_dataset import tiny_config

WAITS_S = 30.0


class Meeting:
    """Where threads that stand for ranks exchange values; one that does not come breaks it for all."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=WAITS_S)
        self.values: list[Any] = [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found


class ThreadWorld(World):
    meeting: Meeting

    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__(rank, len(meeting.values), torch.device("cpu"))
        object.__setattr__(self, "meeting", meeting)

    def any(self, flag: bool) -> bool:
        return True in self.meeting.exchange(self.rank, bool(flag))

    def gather_objects(self, value: Any) -> list[Any]:
        return self.meeting.exchange(self.rank, value)


def on_ranks(size: int, work: Callable[[World], Any]) -> list[Any]:
    """What `work` returns on each rank, or the error that it raised."""
    meeting = Meeting(size)
    found: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            found[rank] = work(ThreadWorld(rank, meeting))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAITS_S)
    assert not any(isinstance(each, threading.BrokenBarrierError) for each in found), "not all came"
    return found


def test_ranks_that_see_one_folder_have_one_keeper(tmp_path: Path) -> None:
    found = on_ranks(3, lambda world: find_sharing(tmp_path / "run", world))
    assert [(each.index, each.count, each.is_keeper) for each in found] == [
        (0, 3, True),
        (1, 3, False),
        (2, 3, False),
    ]
    assert list((tmp_path / "run").iterdir()) == [], "nothing is left behind"


def test_a_host_that_shares_no_folder_has_a_keeper_of_its_own(tmp_path: Path) -> None:
    found = on_ranks(4, lambda world: find_sharing(tmp_path / f"host-{world.rank // 2}" / "run", world))
    assert [(each.index, each.count) for each in found] == [(0, 2), (1, 2), (0, 2), (1, 2)]


def begun(folder: Path, text: bytes) -> tuple[Path, Path]:
    part, final = folder / "step-00000004.part", folder / "step-00000004"
    part.mkdir(parents=True)
    (part / "rank-00000-of-00001.safetensors").write_bytes(text)
    return part, final


def test_what_was_published_is_never_removed_by_a_host_with_a_stale_view(tmp_path: Path) -> None:
    """Its cached name of the folder, a link here, still leads to what rank 0 has renamed."""
    part, final = begun(tmp_path, b"a")
    publish(part, final, b"{1}")
    before = {path.name: path.read_bytes() for path in final.iterdir()}
    part.symlink_to(final)
    publish(part, final, b"{1}")
    assert {path.name: path.read_bytes() for path in final.iterdir()} == before
    assert (tmp_path / "latest").read_text() == "step-00000004\n"


def test_a_kill_while_the_pointer_moved_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / ".latest.abcdefgh.part").write_text("step-0000")
    publish(*begun(tmp_path, b"a"), b"{1}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000004"]


def test_what_has_the_name_is_set_aside_until_the_new_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(*begun(tmp_path, b"old"), b"{1}")
    part, final = begun(tmp_path, b"new")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self == part:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fails)
        with pytest.raises(CheckpointError, match="could not be published"):
            publish(part, final, b"{2}")
    assert (final / "manifest.json").read_bytes() == b"{1}", "it has its name again"
    publish(part, final, b"{2}")
    assert (final / "manifest.json").read_bytes() == b"{2}"


def test_a_rank_that_waits_beats_while_anothers_work_moves_and_not_when_it_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beats: list[str] = []
    monkeypatch.setattr(pulse, "beat", lambda *_: beats.append(threading.current_thread().name))

    def wait(moves: bool) -> Callable[[World], str]:
        def work(world: World) -> str:
            def slow(moved: Callable[[int], None]) -> None:
                for _ in range(20 if world.rank == 1 else 0):
                    time.sleep(0.05)
                    moved(int(moves))

            wait_for_all(world, Task(slow))
            return threading.current_thread().name

        return work

    waiting = on_ranks(2, wait(True))[0]
    assert beats.count(waiting) >= 2
    beats.clear()
    on_ranks(2, wait(False))
    assert beats == []


def test_what_fails_on_one_rank_is_raised_on_every_rank() -> None:
    def work(world: World) -> list[None]:
        def fails(_: object) -> None:
            if world.rank == 0:
                raise OSError(5, "Input/output error")

        return patiently(world, fails)

    assert [type(each) for each in on_ranks(2, work)] == [OSError, DataError]


class Copied:
    """Stands for an engine whose state is one tensor."""

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"master/a@0": torch.arange(4.0)}

    def optimizer_step(self) -> int:
        return 4


def test_a_folder_that_rank_0_cannot_list_loses_neither_a_checkpoint_nor_the_other_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention and what is to be sent are chosen by rank 0 alone: the others learn that it could not."""
    said: list[str] = []

    def unlisted(*_: object) -> list[str]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "doomed", unlisted)
    monkeypatch.setattr(Sending, "_unsent", unlisted)
    config = tiny_config(tmp_path, tmp_path, train={"checkpoint_store": str(tmp_path / "store")})

    def work(world: World) -> int:
        say = said.append if world.is_first else lambda _: None
        checkpoints = Checkpoints(tmp_path / "tiny", plan(config, 1), world, "data", {}, say, lambda: None)
        checkpoints.save(Copied(), Progress(step=4), is_last=True)  # type: ignore[arg-type]
        return checkpoints.failed

    assert on_ranks(2, work) == [0, 0]
    assert [path.name for path in step_folders(tmp_path / "tiny")] == ["step-00000004"]
    assert len(said) == 2
    assert "earlier checkpoints were not removed: " in said[0]
    assert "not copied to train.checkpoint_store: " in said[1]


def test_every_host_that_shares_no_folder_publishes_and_lets_go_in_its_own(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path, train={"keep_checkpoints": 1})

    def work(world: World) -> None:
        run = tmp_path / f"host-{world.rank // 2}"
        checkpoints = Checkpoints(run, plan(config, 1), world, "data", {}, lambda _: None, lambda: None)
        for step in (4, 8):
            checkpoints.save(Copied(), Progress(step=step), is_last=True)  # type: ignore[arg-type]

    assert on_ranks(4, work) == [None] * 4
    for host in (0, 1):
        folder = tmp_path / f"host-{host}" / "checkpoints"
        assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000008"]
        files = {path.name for path in (folder / "step-00000008").iterdir()}
        own = {f"rank-{rank:05d}-of-00004.safetensors" for rank in (2 * host, 2 * host + 1)}
        assert files == {"manifest.json", *own}


def test_an_upload_tells_every_part_that_it_sends(tmp_path: Path, s3_bucket: str) -> None:
    size = 40 << 20
    path = tmp_path / "rank-00000-of-00001.safetensors"
    path.write_bytes(bytes(size))
    facts, store = {"bytes": size, "sha256": file_hash(path)}, Store(f"{s3_bucket}/moves")
    moved: list[int] = []
    store.send("step-00000004", path, facts, moved.append)
    assert sum(moved) == 2 * size, "hashed, then sent"
    assert moved.count(16 << 20) == 2
    moved.clear()
    store.fetch("step-00000004", path.name, facts, tmp_path / "back", moved.append)
    assert sum(moved) == 2 * size
