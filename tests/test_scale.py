"""What docs/scale.md concludes in words follows from the estimate; its tables are held by test_tables.py."""

from __future__ import annotations

import re

import pytest

from benchmarks.scale import AS_ADVISED, OVERLAPPED, SCALE, worked_out
from benchmarks.tables import ROOT
from data_pipeline.errors import ConfigError

PAGE = ROOT / "docs" / "scale.md"


def test_the_network_binds_first() -> None:
    """Equal to computing at 512 GPUs, most of the step at 1,024; the others are far below."""
    speed = worked_out().speed
    assert 0.9 < speed.network_s / speed.compute_s < 1.1
    assert max(speed.loader_s, speed.storage_s) < 0.2 * speed.work_s
    twice = worked_out(("train.micro_batch=3",), 128).speed
    assert twice.binds == "network" and twice.network_s > 0.6 * twice.step_s
    hours = {nodes: worked_out(nodes=nodes).gpu_hours for nodes in (1, 32, 64)}
    assert hours[64] == pytest.approx(2 * hours[1], rel=0.1)
    assert hours[32] == pytest.approx(0.75 * hours[64], rel=0.05)
    assert worked_out(nodes=32).days == pytest.approx(1.5 * worked_out().days, rel=0.05)


def test_memory_data_and_failures_do_not() -> None:
    advised = worked_out(AS_ADVISED)
    assert all(column.most < 0.5 * advised.stated.usable for column in advised.columns)
    assert all(column.room >= 2 * advised.micro_batch for column in advised.columns)
    mp4, jpeg = worked_out().loadings
    assert mp4.cores / worked_out().ranks < 1
    assert jpeg.bytes_per_s == pytest.approx(10 * mp4.bytes_per_s, rel=0.1)
    assert worked_out().saving.lost_own < 0.01


def test_zero_3_would_hide_what_it_sends_and_a_larger_batch_sends_no_more() -> None:
    found = worked_out()
    three = found.speeds[-1]
    assert three.step_s == pytest.approx(three.compute_s) and three.compute_s > three.network_s
    overlapped = worked_out(OVERLAPPED).speed
    assert overlapped.step_s == pytest.approx(0.8 * found.speed.step_s, rel=0.02)
    larger = worked_out(("train.global_batch=6144", "train.micro_batch=12"))
    assert larger.speed.network_s == found.speed.network_s
    assert found.parts["target encoder"].model / found.flops == pytest.approx(1 / 3, abs=0.05)


def test_the_recipe_s_micro_batch_is_refused_with_one_that_divides() -> None:
    with pytest.raises(ConfigError, match=r"train\.micro_batch=6"):
        worked_out(())


def test_every_part_of_the_page_is_drawn() -> None:
    marks = re.findall(r"<!-- table: ([a-z-]+) -->\n(.*?)<!-- end -->", PAGE.read_text(), re.DOTALL)
    assert [name for name, _ in marks] and {name for name, _ in marks} == set(SCALE)
    assert all(drawn.strip() for _, drawn in marks)
