"""A stream whose reader is gone, as a bar, sentences and prints meet it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from launch.train_display import TrainDisplay
from launch.unread import Unbroken, silence_unread_output
from pretrain.sentinel import Verdict
from pretrain.watch import Line

ROOT = Path(__file__).parents[2]
LINE = Line(1, 9, 0.5, 3.0, 0.1, Verdict("healthy", ""))


@pytest.fixture
def unread() -> Iterator[TextIO]:
    """A pipe whose reader is gone."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        yield stream


def test_what_nobody_reads_is_dropped_once_and_for_good(unread: TextIO) -> None:
    stream = Unbroken.of(unread)
    print("a line", file=stream, flush=True)
    print("another", file=stream, flush=True)
    assert os.readlink(f"/proc/self/fd/{unread.fileno()}") == os.devnull  # for what children write, too


def test_the_display_goes_on_in_silence(unread: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", unread)
    display = TrainDisplay(enabled=True)
    with display:
        display.say("a sentence")
        display.show(LINE)
        display.say("another")


def test_a_full_disk_costs_a_line_and_not_the_stream() -> None:
    full = io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True)  # type: ignore[type-var]
    stream = Unbroken.of(full)
    for _ in range(3):
        print("a line", file=stream, flush=True)
    assert os.readlink(f"/proc/self/fd/{full.fileno()}") == "/dev/full"


def test_a_stream_that_is_read_gets_every_word() -> None:
    sink = io.StringIO()
    stream = Unbroken.of(sink)
    print("a line", file=stream)
    assert Unbroken.of(stream) is stream
    assert (sink.getvalue(), stream.isatty()) == ("a line\n", False)


def test_a_process_ends_with_its_own_code_whatever_was_left_to_print() -> None:
    """The interpreter itself writes what is left in the buffer at its end, and would end with 120."""
    code = "from launch.unread import silence_unread_output as s; s(); print('x' * 99); raise SystemExit(75)"
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=write, stderr=write, check=False)
    os.close(write)
    assert ended.returncode == 75


def test_it_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    silence_unread_output()
    first = sys.stdout
    silence_unread_output()
    assert sys.stdout is first
