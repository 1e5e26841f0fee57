"""A manifest handed over through kubectl: asked about first, refused in a sentence, and nothing left behind.

There is no cluster: a program stands in for kubectl, notes how it was called, and answers as that does.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

pytest.importorskip("kubeflow_trainer_api", reason="needs the extra `kubernetes`")

from data_pipeline.errors import UsageError
from launch.submit.base import Job
from launch.submit.kubernetes import KubernetesPlace
from launch.submit.kubernetes.shape import kinds
from tests.launch.kubernetes_jobs import place, sweep, training

STAND_IN = """#!/bin/sh
echo "$@" >> "$KUBECTL_CALLS"
case "$*" in
  *"get secret/away"*) exit 0;;
  *"get secret/hidden"*) echo 'Error from server (Forbidden): secrets is forbidden' >&2; exit 1;;
  *get*) echo "$5";;
  *"delete "*) ;;
  *$KUBECTL_REFUSES*) [ "$KUBECTL_REFUSES" = "create -o" ] && echo configmap/one-001
    echo 'error: admission webhook denied the request: no quota' >&2; exit 1;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the stand-in notes its calls; it is the only kubectl on PATH."""
    tool = tmp_path / "bin" / "kubectl"
    tool.parent.mkdir()
    tool.write_text(STAND_IN)
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    monkeypatch.setenv("KUBECTL_CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("KUBECTL_REFUSES", "nothing at all")
    return tmp_path / "calls"


def frozen(on: KubernetesPlace, workdir: Path) -> Job:
    job = training(workdir)
    job.folder.mkdir(parents=True)
    for name, text in on.files(job).items():
        (job.folder / name).write_text(text)
    return job


def test_the_server_is_asked_before_anything_is_made(calls: Path, tmp_path: Path) -> None:
    on = place(namespace="vision", context="big", secret_env={"HF_TOKEN": "hub/token"})
    job = frozen(on, tmp_path)
    started = on.start(job, detach=False)
    manifest = job.folder / "kubernetes.yaml"
    assert calls.read_text().splitlines() == [
        "--context big -n vision get secret/hub -o name --ignore-not-found",
        "--context big -n vision get persistentvolumeclaim/runs -o name --ignore-not-found",
        "--context big -n vision get persistentvolumeclaim/data -o name --ignore-not-found",
        f"--context big -n vision create --dry-run=server -f {manifest}",
        f"--context big -n vision create -o name -f {manifest}",
    ]
    assert started.id == "vision/one-001"
    told = dict(started.told)
    assert told["watch"].endswith("get pods -l app.kubernetes.io/instance=one-001 --watch")
    assert told["stop"] == f"kubectl --context big -n vision delete --wait=false -f {manifest}"


def test_a_secret_that_is_not_there_is_named_and_nothing_is_made(calls: Path, tmp_path: Path) -> None:
    on = place(secret_env={"A": "away/a", "B": "hidden/b"})
    with pytest.raises(UsageError, match="namespace default has no secret/away: make them there"):
        on.start(frozen(on, tmp_path), detach=False)
    assert "create" not in calls.read_text()


def test_where_one_may_not_look_at_secrets_the_server_decides(calls: Path, tmp_path: Path) -> None:
    on = place(secret_env={"B": "hidden/b"})
    on.start(frozen(on, tmp_path), detach=False)
    assert "create -o name -f" in calls.read_text()


@pytest.mark.parametrize(
    ("refuses", "last"),
    [
        ("--dry-run=server", "create --dry-run"),
        ("create -o", "delete --ignore-not-found --wait=false configmap/one-001"),
    ],
)
def test_what_the_server_refuses_is_told_and_not_left(
    refuses: str, last: str, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECTL_REFUSES", refuses)
    on = place()
    job = frozen(on, tmp_path)
    with pytest.raises(UsageError, match="no quota") as refused:
        on.start(job, detach=False)
    assert str(job.folder / "kubernetes.yaml") in str(refused.value)
    assert last in calls.read_text().splitlines()[-1]


def test_a_sweep_larger_than_an_annotation_is_not_copied_into_one(calls: Path, tmp_path: Path) -> None:
    """`kubectl apply` would keep it in an annotation, of which an object's may have 262144 bytes in all."""
    job, on = sweep(tmp_path, 120), place()
    job.folder.mkdir(parents=True)
    (text,) = on.files(job).values()
    (job.folder / "kubernetes.yaml").write_text(text)
    assert len(text.encode()) > 262_144
    on.start(job, detach=False)
    assert "apply" not in calls.read_text()


def test_without_kubectl_the_manifest_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = place()
    job = frozen(on, tmp_path)
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(UsageError, match="kubectl is not on PATH, nothing was started") as refused:
        on.start(job, detach=False)
    assert str(job.folder / "kubernetes.yaml") in str(refused.value)
    assert f"kubectl -n default create -f {job.folder / 'kubernetes.yaml'}" in str(refused.value)


def test_without_the_package_of_models_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds.cache_clear()
    monkeypatch.setitem(sys.modules, "kubeflow_trainer_api", None)
    with pytest.raises(UsageError, match=r"pip install 'foreframe\[kubernetes\]'"):
        place().files(training(tmp_path))
