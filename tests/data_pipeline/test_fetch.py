import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from data_pipeline.errors import MissingError
from data_pipeline.fetch import Scratch
from data_pipeline.scratch import PREFIX
from data_pipeline.storage import Storage

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_local_file_is_its_own_copy(tmp_path: Path, scratch_folder: Path) -> None:
    with Scratch() as scratch:
        assert scratch.local(str(tmp_path / "a.mp4")) == tmp_path / "a.mp4"
        assert not any(scratch_folder.iterdir())


def test_a_remote_object_is_copied_once_and_removed(s3_bucket: str, scratch_folder: Path) -> None:
    Storage(s3_bucket).publish("deep/clip 1.mp4", b"video")
    with Scratch() as scratch:
        path = scratch.local(f"{s3_bucket}/deep/clip 1.mp4")
        assert (path.read_bytes(), path.suffix) == (b"video", ".mp4")
        assert scratch.local(f"{s3_bucket}/deep/clip 1.mp4") == path
        with pytest.raises(MissingError):
            scratch.local(f"{s3_bucket}/none.mp4")
        assert path.is_relative_to(scratch_folder)
    assert not any(scratch_folder.iterdir())


KILLED = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from data_pipeline.fetch import Scratch
with Scratch() as scratch:
    print(scratch._made(), flush=True)
    input()
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(
    scratch_folder: Path,
) -> None:
    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(scratch_folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    (dead, left), (alive, used) = start(), start()
    try:
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert left.is_dir()
        with Scratch() as scratch:
            scratch._made()
            assert not left.exists()
            assert used.is_dir()
            assert sum(path.name.startswith(PREFIX) for path in scratch_folder.iterdir()) == 2
    finally:
        alive.communicate("\n", timeout=10)
        dead.communicate()


def test_folders_that_come_and_go_meanwhile_disturb_nobody(scratch_folder: Path) -> None:
    """Many processes make and remove scratch folders while each sweeps."""
    script = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from data_pipeline.scratch import scratch_folder as one\n"
        "for _ in range(150):\n"
        "    with one() as folder: (folder / 'x').write_bytes(b'x')\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(scratch_folder)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert not any(scratch_folder.iterdir())
