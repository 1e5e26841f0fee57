"""`foreframe status --watch` whose reader is gone ends by itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from launch import status
from launch.unread import Unbroken, silence_unread_output
from tests.launch.test_status import make_run


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("is_panel", [True, False])
def test_it_ends_when_nobody_reads_it(
    as_json: bool, is_panel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    os.close(read)
    run = make_run(tmp_path)
    waits = iter(range(4))  # what still goes on after so many looks would go on for good
    monkeypatch.setattr("launch.status.time.sleep", lambda _: next(waits))
    monkeypatch.setattr(status, "takes_panel", lambda _: is_panel)
    with open(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", sys.stderr)
        silence_unread_output()
        console = Console(file=Unbroken.of(sys.stdout), force_terminal=is_panel, width=80)
        status.show([run], as_json=as_json, watch=True, console=console)
    assert next(waits, None) is not None
