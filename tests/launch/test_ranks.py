"""Waiting for ranks, with processes that end when a test says so."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from launch.ranks import Asked, Rank, _wait
from launch.watchdog import Stillness


class Ends:
    """A process that is alive for some polls."""

    pid, returncode = 0, None

    def __init__(self, polls: int) -> None:
        self.left = polls

    def poll(self) -> int | None:
        self.left -= 1
        if self.left < 0:
            self.returncode = 0
        return self.returncode


@pytest.mark.parametrize("polls", range(4))
def test_a_rank_that_ends_between_two_polls_is_no_crash(tmp_path: Path, polls: int) -> None:
    rank = Rank(0, cast("object", Ends(polls)), Stillness(tmp_path / "pulse"))  # type: ignore[arg-type]
    assert _wait([rank], Asked(), tmp_path, tmp_path, hang_s=60.0, elsewhere=0) is None
