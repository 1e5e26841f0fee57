"""Waiting for ranks, with processes that end when a test says so."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from launch.ranks import Asked, Rank, _wait, use_threads
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


def test_a_rank_keeps_to_its_threads_in_numpy_as_in_torch() -> None:
    before = torch.get_num_threads()
    with threadpool_limits(2, user_api="blas"):  # gives back what there was
        try:
            for count in (2, 1):
                use_threads(count)
                blas = {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}
                assert (torch.get_num_threads(), blas) == (count, {count})
        finally:
            torch.set_num_threads(before)
