"""Progress lines where there is no terminal, with a clock of our own."""

from __future__ import annotations

import io

from rich.console import Console

from launch.console import Stages, probe_table


def lines_of(reports: list[tuple[float, int, str]], total: int = 10) -> tuple[list[str], dict[str, float]]:
    """What is printed when a stage reports (time, done, note)."""
    sink = io.StringIO()
    now = [0.0]
    stages = Stages(Console(file=sink, width=200), clock=lambda: now[0])
    with stages.showing() as report:
        for now[0], done, note in reports:
            report("shard", done, total, note)
    return sink.getvalue().splitlines(), stages.seconds


def test_a_stage_prints_its_end_once_with_its_rate() -> None:
    lines, seconds = lines_of([(0, 0, "clips"), (1, 5, "clips"), (2, 10, "clips"), (3, 10, "clips")])
    assert [line.strip() for line in lines] == ["shard     10/10 in 2.0 s, 5 clips/s"]
    assert seconds == {"shard": 3.0}


def test_a_long_stage_speaks_every_ten_seconds() -> None:
    lines, _ = lines_of([(0, 0, ""), *((second, 1, "") for second in range(1, 26))])
    assert len(lines) == 2


def test_a_job_s_own_rate_is_not_doubled() -> None:
    lines, _ = lines_of([(0, 0, ""), (2, 10, "3.1 videos/s · 2 MB/s")])
    assert lines[0].endswith("in 2.0 s, 3.1 videos/s · 2 MB/s")


def test_the_probe_table_has_a_row_an_encoder_and_a_dash_for_no_score() -> None:
    rows = [
        {"encoder": "trained", "scores": {"position": 0.91234, "velocity": None}},
        {"encoder": "untrained", "scores": {"position": 0.4}},
    ]
    sink = io.StringIO()
    found = {"kind": "states", "step": 3, "num_train_clips": 9, "num_eval_clips": 5, "rows": rows}
    Console(file=sink, width=200).print(*probe_table(found))
    cells = [line.split() for line in sink.getvalue().splitlines()]
    assert ["trained", "0.912", "—"] in cells
    assert ["untrained", "0.400", "—"] in cells


def test_the_probe_table_says_of_each_score_what_it_is() -> None:
    rows = [{"encoder": "trained", "scores": {"position": 0.9, "shape": 0.4, "old": 0.1}}]
    found = {"kind": "states", "step": 3, "num_train_clips": 9, "num_eval_clips": 5, "rows": rows}
    sink = io.StringIO()
    Console(file=sink, width=200).print(
        *probe_table(found | {"units": {"position": "R²", "shape": "share right"}})
    )
    *title, names, units, _ = sink.getvalue().splitlines()
    assert "R²" not in " ".join(title)
    assert names.split() == ["position", "shape"]
    assert units.split() == ["encoder", "R²", "share", "right", "old"]
