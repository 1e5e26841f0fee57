"""A real `foreframe train` in a terminal: what stands on the screen in the end, and after Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from data_pipeline.errors import EXIT_PREEMPTED
from launch.config import dump_config
from tests.small_dataset import tiny_config

ROOT = Path(__file__).parents[2]
COLUMNS, ROWS = 80, 40
PARTS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|([\r\n])|([^\x1b\r\n]+)")


class Screen:
    """As much of a terminal as rich needs: lines, up, erase, a cursor that may be hidden."""

    def __init__(self) -> None:
        self.rows: list[str] = [""]
        self.row = self.column = 0
        self.is_cursor_shown = True

    def feed(self, text: str) -> None:
        for found in PARTS.finditer(text):
            number, letter, control, plain = found.groups()
            if control == "\r":
                self.column = 0
            elif control == "\n":
                self.row += 1
                self.rows += [""] * (self.row + 1 - len(self.rows))
            elif plain:
                for start in range(0, len(plain), COLUMNS):
                    self._write(plain[start : start + COLUMNS])
            elif letter == "A":
                self.row = max(0, self.row - int(number or 1))
            elif letter == "K":
                self.rows[self.row] = ""
            elif letter in ("h", "l") and number == "?25":
                self.is_cursor_shown = letter == "h"

    def _write(self, plain: str) -> None:
        row = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = row[: self.column] + plain + row[self.column + len(plain) :]
        self.column += len(plain)

    @property
    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows)


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, arguments: list[str]) -> None:
        self.own, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color"}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch", *arguments],
            cwd=ROOT, stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(other)
        self.screen = Screen()
        self.printed = ""

    def read_until(self, words: str | None) -> None:
        """Until these words were printed; None: until it has ended."""
        deadline_s = time.monotonic() + 100
        while words is None or words not in self.screen.text:
            assert time.monotonic() < deadline_s, self.screen.text
            try:
                data = os.read(self.own, 1 << 16)
            except OSError:  # nobody writes there any more
                break
            self.printed += data.decode()
            self.screen.feed(data.decode())


@pytest.fixture
def config_file(small_dataset: Path, tmp_path: Path) -> str:
    train = {"steps": 100_000, "checkpoint_every": 100_000, "log_every": 5}
    config = tiny_config(small_dataset, tmp_path, train=train, health={"every": 5, "on_collapse": "note"})
    (tmp_path / "given.yaml").write_text(dump_config(config))
    return str(tmp_path / "given.yaml")


def test_one_panel_stands_there_and_a_stop_leaves_the_terminal_as_it_was(
    config_file: str, tmp_path: Path
) -> None:
    terminal = Terminal(["train", config_file])
    terminal.read_until("clips/s")
    assert not terminal.screen.is_cursor_shown
    end_s = time.monotonic() + 1.5
    while time.monotonic() < end_s:
        terminal.screen.feed(os.read(terminal.own, 1 << 16).decode())
    assert len(terminal.screen.rows) < 20, "it is drawn in place"
    os.killpg(terminal.process.pid, signal.SIGINT)  # Ctrl-C
    terminal.read_until(None)
    assert terminal.process.wait(60) == EXIT_PREEMPTED
    text = terminal.screen.text
    assert terminal.screen.is_cursor_shown
    for label in ("train", "loss", "speed", "optim", "saved", "run"):
        assert len(re.findall(rf"^  {label} ", text, re.MULTILINE)) == 1, text
    assert re.search(r"saved   step \d", text), "the last look sees the checkpoint of the stop"
    assert "stopped: SIGINT received: saved at step" in text
    assert "Traceback" not in text and "step 1/" not in text
    assert all(len(row) <= COLUMNS for row in terminal.screen.rows)
