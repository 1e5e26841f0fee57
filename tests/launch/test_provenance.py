"""provenance.json tells of foreframe's own code, and of no password."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.format import DatasetInfo
from launch import provenance as ours

INFO = DatasetInfo(
    format_version=2,
    name="demo",
    fingerprint="f00d",
    revision=0,
    num_videos=1,
    num_clips={"train": 1, "eval": 0},
    num_shards={"train": 1, "eval": 0},
    num_filtered=0,
    num_failed=0,
    total_bytes=9,
    config_fingerprint="c",
    source_fingerprint="s",
    manifest_sha256="",
    versions={},
    state_names=(),
    action_names=(),
    shards=(),
)


@pytest.mark.parametrize(("place", "is_ours"), [("launch", True), (".venv/lib/site-packages/launch", False)])
def test_git_answers_for_our_own_tree_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, is_ours: bool
) -> None:
    file = tmp_path / place / "provenance.py"
    file.parent.mkdir(parents=True)
    file.touch()
    who = ["-c", "user.name=ann", "-c", "user.email=ann@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "theirs"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(ours, "OURS", file.resolve())
    assert (ours.git("rev-parse", "HEAD") is not None) == is_ours


def test_no_password_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["foreframe", "train", "tracker.uri=http://ann:hunter2@host:5000"])
    found = ours.provenance(INFO, "s3://key:hunter2@bucket/data", 1, "cpu")
    assert "hunter2" not in json.dumps(found)
    assert found["command"][-1] == "tracker.uri=http://***@host:5000"
    assert found["dataset"]["address"] == "s3://***@bucket/data"
