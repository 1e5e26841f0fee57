"""`foreframe stop`, place by place: this terminal's job, hosts of another installation, and clusters."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UsageError
from launch import remote
from launch.remote import Ran
from launch.submit import native
from launch.submit.base import Job
from launch.submit.freeze import freeze, next_folder, read_record, update_record
from launch.submit.local import LocalPlace
from launch.submit.node_process import NodeState, read_node
from launch.submit.ssh import SshPlace, follow, nodes
from launch.submit.ssh.nodes import Answer, Nodes
from launch.submit.stop import newest_handed_over, stop
from tests.small_dataset import tiny_config

ROOT = Path(__file__).parents[2]
SOON_S = 60.0
BECOMES_THE_JOB = """
import sys
from pathlib import Path
from launch.submit.base import Job
from launch.submit.local import LocalPlace
LocalPlace().start(Job("train", "one", None, Path(sys.argv[1]), Path.cwd()), detach=False)
"""
SLURM = {
    "stop": "scancel 17",
    "save": "scontrol update JobId=17 Requeue=0 && scancel --signal=TERM 17",
}


def submission(run: Path, number: str, kind: str, told: Mapping[str, str] | None = None, **more: Any) -> Path:
    folder = run / "submissions" / number
    (folder / "logs").mkdir(parents=True)
    record = {"place": {"kind": kind}, "state": "submitted", "told": dict(told or {}), "id": "17", **more}
    (folder / "submission.json").write_text(json.dumps(record))
    return folder


def until(happens: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + SOON_S
    while not happens():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def frozen(folder: Path, place: LocalPlace | SshPlace, name: str = "one") -> Job:
    config = tiny_config(folder / "data", folder / "runs", name=name)
    return freeze(Job("train", name, config, next_folder(config), folder), place)


def test_a_job_in_a_terminal_is_stopped_from_another_and_then_counts_as_ended(tmp_path: Path) -> None:
    job = frozen(tmp_path, LocalPlace())
    (job.folder / "job.sh").write_text(
        f"trap 'exit 75' TERM; touch {tmp_path}/started; while :; do sleep 0.05; done"
    )
    update_record(job.folder, state="started")  # as submit does before it hands a job over
    own = subprocess.Popen([sys.executable, "-c", BECOMES_THE_JOB, str(job.folder)], cwd=ROOT)
    try:
        until((tmp_path / "started").exists)
        said: list[str] = []
        process = read_node(job.logs, 0)
        assert process is not None and process.pid == own.pid
        assert read_record(job.folder)["told"] == {
            "watch": f"foreframe status {job.run} --watch",
            "stop": f"foreframe stop {job.run}",
        }
        stop(job.run, said.append)
        assert own.wait(SOON_S) == 75
    finally:
        own.kill()
        own.wait()
    assert said == [f"node 0 on {socket.gethostname()} is asked to save and stop"]
    older = submission(job.run, "000", "slurm", SLURM)
    assert newest_handed_over(job.run).folder == older, "what has ended is not stopped again"


def test_hosts_are_asked_with_their_own_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/cluster/bin/python")
    job = frozen(tmp_path, SshPlace(hosts=["a"]))
    assert read_record(job.folder)["interpreter"] == "/opt/cluster/bin/python"
    submitted = json.loads((job.folder / "submission.json").read_text())
    (job.folder / "submission.json").write_text(json.dumps({**submitted, "state": "submitted"}))
    (job.logs / "node-0.pid").write_text("a 1 1\n")
    monkeypatch.setattr(sys, "executable", "/home/me/bin/python")
    asked: list[str] = []

    def run_on(hosts: Sequence[str], command: Mapping[str, str], **_: object) -> dict[str, Ran]:
        asked.extend(command.values())
        return {host: Ran(host, 0, '{"is_alive": true, "exit_code": null}\n', "") for host in hosts}

    monkeypatch.setattr(nodes, "run_on", run_on)
    stop(job.run, lambda _: None)
    assert len(asked) == 1 and "exec /opt/cluster/bin/python -m" in asked[0]


def test_odd_folders_and_damaged_records_are_passed_over(tmp_path: Path) -> None:
    newest = submission(tmp_path, "1000", "slurm", SLURM)
    submission(tmp_path, "999", "slurm", SLURM)
    (tmp_path / "submissions" / "001-old").mkdir()
    (tmp_path / "submissions" / "1001").mkdir()
    (submission(tmp_path, "1002", "slurm") / "submission.json").write_text("{")
    assert newest_handed_over(tmp_path).folder == newest


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands, which write down what they are asked; a line of `states` is what squeue tells."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("scancel", "scontrol", "squeue"):
        tells = 'read -r line < states; sed -i 1d states; printf "%s\\n" $line\n' if name == "squeue" else ""
        (folder / name).write_text(
            f'#!/bin/sh\nPATH=/usr/bin:/bin; cd {folder}; echo "{name} $*" >> calls\n{tells}'
        )
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(native, "POLL_S", 0.01)
    return folder


def stopped(slurm: Path, states: Sequence[str], **asked: bool) -> list[str]:
    """What Slurm was asked, besides how the job is."""
    submission(slurm.parent / "run", "001", "slurm", SLURM)
    (slurm / "states").write_text("".join(f"{line}\n" for line in states))
    stop(slurm.parent / "run", lambda _: None, **asked)
    calls = (slurm / "calls").read_text().splitlines()
    return [call for call in calls if not call.startswith("squeue")]


SAVES = ["scontrol update JobId=17 Requeue=0", "scancel --signal=TERM 17"]


@pytest.mark.parametrize(
    ("states", "asked"),
    [
        (["RUNNING"], SAVES),
        (["PENDING"], ["scancel 17"]),
        (["RUNNING PENDING"], ["scancel --state=PENDING 17", *SAVES]),
        ([""], []),
    ],
)
def test_a_job_of_slurm_saves_and_is_not_queued_again(
    slurm: Path, states: list[str], asked: list[str]
) -> None:
    assert stopped(slurm, states) == asked


def test_a_job_of_slurm_is_ended_at_once_or_waited_for(slurm: Path) -> None:
    assert stopped(slurm, [], now=True) == ["scancel 17"]


def test_a_job_of_slurm_is_waited_for_until_it_is_out_of_the_queue(slurm: Path) -> None:
    assert stopped(slurm, ["RUNNING", "RUNNING", "COMPLETING", "", "NEVER ASKED"], waits=True) == SAVES
    assert (slurm / "states").read_text() == "NEVER ASKED\n"


def test_an_array_of_which_some_elements_have_ended_saves(slurm: Path) -> None:
    with (slurm / "scontrol").open("a") as program:
        program.write("echo '17_0: No error' >&2; echo '(null): No error' >&2; exit 1\n")
    assert stopped(slurm, ["RUNNING"]) == SAVES


def test_a_slurm_that_does_not_answer_is_not_a_job_that_has_ended(slurm: Path) -> None:
    (slurm / "squeue").write_text("#!/bin/sh\necho cannot contact controller >&2\nexit 1\n")
    with pytest.raises(UsageError, match="cannot contact controller"):
        stopped(slurm, [])


@pytest.mark.parametrize(("option", "name"), [("--now", "now"), ("--wait", "waits")])
@pytest.mark.parametrize("kind", ["kubernetes", "ray"])
def test_what_a_cluster_cannot_do_is_refused_and_nothing_is_done(
    tmp_path: Path, slurm: Path, kind: str, option: str, name: str
) -> None:
    submission(tmp_path / "run", "001", kind, {"stop": "scancel 17", "watch": "look 17"})
    with pytest.raises(UsageError, match=f"{option} cannot be done for a job on {kind}"):
        stop(tmp_path / "run", lambda _: None, now=name == "now", waits=name == "waits")
    assert not (slurm / "calls").exists()


def test_a_ctrl_c_as_following_begins_asks_the_nodes_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run already: untold, they would run on without a word."""
    place = SshPlace(hosts=["a"])
    job = frozen(tmp_path, place)
    interrupts = iter([KeyboardInterrupt()])
    update = follow.update_record

    def interrupted(folder: Path, **changes: object) -> None:
        for interrupt in interrupts:
            raise interrupt
        update(folder, **changes)

    def ask(self: Nodes, verb: str, only: object = None, connections: object = None) -> dict[int, Answer]:
        (job.logs / "node-0.exit").write_text("75\n")
        return {0: Answer("a", NodeState(True, None))}

    monkeypatch.setattr(follow, "update_record", interrupted)
    monkeypatch.setattr(Nodes, "ask", ask)
    assert follow.follow(place, job).exit_code == 75
    assert read_record(job.folder)["state"] == "submitted"


def test_leaving_does_not_wait_for_a_host_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a look in flight; the interpreter would wait for its threads as it exits."""
    program = tmp_path / "ssh"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 300\n")
    program.chmod(0o755)
    monkeypatch.setattr(remote, "ssh_command", lambda host, config: [str(program)])
    monkeypatch.setattr(remote, "_check", lambda hosts, config: None)
    monkeypatch.setattr(follow, "LOOK_S", 0.0)
    following = follow.Following(
        Nodes(tmp_path, {0: "a"}, "python", None), needs_all=True, say=lambda _: None
    )
    monkeypatch.setattr(follow, "Following", lambda *_, **__: following)

    def left() -> int:
        following._look()
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
        return 75

    monkeypatch.setattr(following, "until_the_end", left)
    place = SshPlace(hosts=["a"])
    assert follow.follow(place, frozen(tmp_path, place)).exit_code == 75
    pid = int((tmp_path / "pid").read_text())
    until(lambda: following._looking is not None and following._looking.answers is not None)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
