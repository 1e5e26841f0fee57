"""provenance.json tells of foreframe's own code, and of no password."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch import provenance as ours
from pretrain.tracking.base import DatasetFacts

DATA = DatasetFacts("demo", "s3://key:hunter2@bucket/data", "f00d", 160, weight=0.5)


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
    found = ours.provenance([DATA], 1, "cpu")
    found["patch"] = None  # of this file, while it is being changed
    assert "hunter2" not in json.dumps(found)
    assert found["command"][-1] == "tracker.uri=http://***@host:5000"
    assert found["datasets"][0]["address"] == "s3://***@bucket/data"


def test_a_secret_in_uncommitted_code_stays_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch = '+AWS_SECRET_ACCESS_KEY = "hunter2hunter2"\n+tokens_M = packed(tokens_M)'
    monkeypatch.setattr(ours, "git", lambda what, *_: patch if what == "diff" else "abc123")
    facts = ours.provenance([DATA], 1, "cpu")
    files = ours.write_provenance(tmp_path, facts)
    assert [file.name for file in files] == ["provenance.json", "environment.txt", "code.patch"]
    assert not any("hunter2" in file.read_text() for file in files)
    assert "tokens_M = packed(tokens_M)" in files[2].read_text()
    assert facts["hardware"]["cores"] >= 1
    clean = ours.write_provenance(tmp_path, facts | {"patch": None})
    assert not (tmp_path / "code.patch").exists(), "of an earlier start"
    assert [file.name for file in clean] == ["provenance.json", "environment.txt"]


def test_a_patch_that_is_too_long_says_where_it_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "MAX_PATCH_CHARS", 100)
    patch = "+a line of code\n" * 20 + '+password = "hunter2hunter2"'
    kept, _, said = ours.cleaned(patch).rpartition("\n")
    assert kept == "\n".join(["+a line of code"] * 6), "whole lines"
    assert said == "# cut by foreframe after 95 of 348 characters: the rest is not written down"
    assert ours.cleaned(patch[:95]) == patch[:95]


def test_files_that_git_does_not_know_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("launch/provenance.py", "launch/added.py", "pretrain/ü b.py", "runs/x/config.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text("runs/\n")
    who = ["-c", "user.name=ann", "-c", "user.email=ann@example.org"]
    first = ["add", ".gitignore", "launch/provenance.py"]
    for command in (["init", "-q"], first, [*who, "commit", "-qm", "ours"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(ours, "OURS", (tmp_path / "launch" / "provenance.py").resolve())
    found = ours.provenance([DATA], 1, "cpu")
    assert found["untracked"] == ["launch/added.py", "pretrain/ü b.py"]
    assert found["num_untracked"] == 2
    assert ours.say_uncommitted(found) == "none; 2 files that git does not know, named in provenance.json"
    monkeypatch.setattr(ours, "MAX_UNTRACKED", 1)
    found = ours.provenance([DATA], 1, "cpu")
    assert (found["untracked"], found["num_untracked"]) == (["launch/added.py"], 2)
    # code in another encoding is told of, too
    (tmp_path / "launch" / "provenance.py").write_bytes("# Grüße\n".encode("latin-1"))
    assert "+# Gr" in ours.provenance([DATA], 1, "cpu")["patch"]
