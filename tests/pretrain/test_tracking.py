"""Trackers: metrics.jsonl survives crashes and resumes, and no address keeps its password."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.tracking.base import Several, flatten, run_title, without_credentials
from pretrain.tracking.jsonl import JsonlTracker, read_metrics, truncate_after
from tests.pretrain.tracked_run import FACTS, log_steps


def test_metrics_are_read_back_in_order_and_text_is_kept(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.start(FACTS)
    log_steps(tracker, range(1, 4))
    tracker.close("done")
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[2]["batch_digest"] == "d3"


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.start(FACTS)
    log_steps(tracker, range(1, 2))
    assert read_metrics(tmp_path)[0]["loss"] == 1.0


def test_values_that_json_cannot_hold_become_null(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.start(FACTS)
    tracker.log_metrics(1, {"loss": math.nan, "optim/grad_norm": math.inf})
    tracker.close("failed")
    strict = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert strict == {"step": 1, "loss": None, "optim/grad_norm": None}


def test_resume_drops_later_steps_and_a_half_written_line(tmp_path: Path) -> None:
    whole = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 8))
    (tmp_path / "metrics.jsonl").write_text(whole + '{"step": 8, "lo')
    assert truncate_after(tmp_path, 5) == 5
    assert (tmp_path / "metrics.jsonl").read_text() == whole[: whole.index('{"step": 6')]


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    for resumed_at, steps in ((0, range(1, 8)), (5, range(6, 11))):
        tracker = JsonlTracker(tmp_path)
        tracker.start(FACTS, resumed_at)
        log_steps(tracker, steps)
        tracker.close("done")
    raw = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in raw] == list(range(1, 11))


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    assert truncate_after(tmp_path, 3) == 0
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://ann:pw@host:5000", "http://***@host:5000"),
        ("postgresql://u:p%40s@h/db?password=x&a=1", "postgresql://***@h/db?password=***&a=1"),
        ("s3://key:secret@bucket/a b", "s3://***@bucket/a b"),
        ("https://host/?access_token=abc", "https://host/?access_token=***"),
        ("sqlite:////runs/a@b/mlflow.db", "sqlite:////runs/a@b/mlflow.db"),
        ("write to ann@example.org", "write to ann@example.org"),
    ],
)
def test_credentials_leave_every_address(text: str, clean: str) -> None:
    assert without_credentials(text) == clean


def test_parameters_get_dotted_keys_without_credentials() -> None:
    config = {"seed": 0, "data": {"shards": "s3://ann:pw@bucket/x"}, "masks": [{"blocks": 8}, {"blocks": 2}]}
    assert flatten(config) == {
        "seed": "0",
        "data.shards": "s3://***@bucket/x",
        "masks.0.blocks": "8",
        "masks.1.blocks": "2",
    }


def test_a_jsonl_tracker_imports_no_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pretrain.config import TrackerConfig;"
        "from pretrain.tracking.base import make_tracker;"
        f"make_tracker(TrackerConfig(kind='jsonl'), Path({str(tmp_path)!r}));"
        "assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_trackers_are_a_silent_one(tmp_path: Path) -> None:
    silent = Several()
    silent.start(FACTS)
    silent.log_metrics(1, {"loss": 1.0})
    silent.log_file(tmp_path / "x")
    silent.flush()
    silent.close("done")


def test_a_run_called_run_is_shown_with_its_folder(tmp_path: Path) -> None:
    assert run_title(tmp_path / "tiny", "tiny") == "tiny"
    assert run_title(tmp_path / "demo" / "run", "run") == "demo/run"
