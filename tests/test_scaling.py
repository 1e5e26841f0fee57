"""What the rows of benchmarks/scaling.py say, from times that are known."""

from __future__ import annotations

import pytest

from benchmarks.scaling import CLIPS, rows_of


def of(step_s: float, alone_s: float = 0.0) -> dict[str, float]:
    return {"step_s": step_s, "alone_s": alone_s, "bytes": 8.0}


@pytest.mark.parametrize(
    ("two_s", "weak", "strong", "hidden"),
    [
        (1.0, 1.0, 1.0, 100.0),  # as if nothing was sent
        (1.5, 0.6667, 0.6667, 0.0),  # one after the other, as the model has it
        (1.25, 0.8, 0.8, 50.0),
    ],
)
def test_efficiency_and_what_is_hidden(two_s: float, weak: float, strong: float, hidden: float) -> None:
    rows = rows_of("ZeRO-1", [of(1.0)], [of(2.0)], [of(two_s, 0.5)])
    found = {row["metric"]: row for row in rows}
    assert found["weak scaling, clips a second of two ranks"]["efficiency"] == pytest.approx(weak, abs=1e-3)
    strongly = found["strong scaling, clips a second of two ranks"]
    assert strongly["efficiency"] == pytest.approx(strong, abs=1e-3)
    assert strongly["ours"] == pytest.approx(2 * CLIPS / two_s, rel=1e-3)
    assert found["of the collectives, hidden behind the step"]["ours"] == pytest.approx(hidden, abs=0.1)
    assert found["steps a second of two ranks"]["ratio"] == pytest.approx(1.5 / two_s, rel=1e-3)
