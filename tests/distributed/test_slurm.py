"""The batch script of a job on a real Slurm: preempted, cancelled, failing somewhere, an array.

A stand-in for Python runs on the nodes here, and does what a test says; runs are in test_slurm_runs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UsageError
from launch.submit.freeze import read_record
from launch.submit.slurm import SlurmPlace
from launch.submit.stop import stop
from launch.submit.submission import Asked, make_job, submit
from launch.submitted import End, end_of
from tests.servers.slurm import Slurm
from tests.small_dataset import tiny_config

pytestmark = [pytest.mark.cluster, pytest.mark.distributed]
SOON_S = 60.0  # on a loaded machine; on a quiet one moments
STAND_IN = """\
#!/bin/bash
# Stands for Python: writes down what it is called with, and does what the test says.
echo "$*" > "$SEEN/$SLURM_NODEID-${SLURM_RESTART_COUNT:-0}"
until_asked() { touch "$SEEN/ready-$SLURM_NODEID-${SLURM_RESTART_COUNT:-0}"; while :; do sleep 0.1; done; }
eval "$ACT"
"""


@dataclass(frozen=True)
class Submitted:
    """A job in Slurm. seen: where stand-ins leave files. folder: of the submission."""

    slurm: Slurm
    id: str
    seen: Path
    folder: Path

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted((self.folder / "logs").glob("*.log")))

    def is_ready(self, nodes: int = 1, start: int = 0) -> None:
        """Wait until stand-ins wait for a signal on so many nodes."""
        files = [self.seen / f"ready-{node}-{start}" for node in range(nodes)]
        self.slurm.until(lambda: all(file.exists() for file in files), SOON_S, self.log)

    def signal(self, name: str) -> None:
        self.slurm.run("scancel", f"--signal={name}", self.id)

    def starts_again(self) -> None:
        self.slurm.starts_again(self.id, SOON_S, self.log)

    def end(self, job: str | None = None) -> tuple[str, str, str]:
        """State, exit code and restarts, once the job is at an end."""
        facts = self.slurm.ended(job or self.id, SOON_S, self.log)
        code, _, _ = facts["ExitCode"].partition(":")
        return facts["JobState"], code, facts["Restarts"]


@pytest.fixture
def start(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Submitted]]:
    """Submits a job of stand-ins; `act` is what each of them does, in bash."""
    for name, value in slurm.variables.items():
        monkeypatch.setenv(name, value)
    python = tmp_path / "stand-in"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def submitted(act: str, *, elements: int = 0, **settings: Any) -> Submitted:
        config = tiny_config(tmp_path / "data", tmp_path / f"out {len(list(tmp_path.glob('out*')))}")
        seen = Path(config.out) / "seen"
        seen.mkdir(parents=True)
        seen.with_name("act.sh").write_text(act)
        env = {"SEEN": str(seen), "ACT": '. "$SEEN/../act.sh"'}  # a variable of a place is one line
        place = SlurmPlace.model_validate({"partition": "low", "python": str(python), "env": env, **settings})
        job = make_job(config, place, elements=elements)
        told = submit(job, place, Asked(checks_data=False), print, [config] * elements)
        assert told is not None and told.id is not None
        return Submitted(slurm, told.id, seen, job.folder)

    yield submitted
    slurm.end_jobs()


def test_a_preempted_job_saves_on_all_nodes_and_comes_back(
    slurm: Slurm, start: Callable[..., Submitted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that has saved does not end one that has not: 2 s are more than it would have then."""
    monkeypatch.setenv("SBATCH_PARTITION", "high")  # a user's default, which the place overrules
    act = """
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0
    echo "${PYTHONPATH%%:*}" > "$SEEN/code"
    [ "$SLURM_NODEID" = 0 ] || trap 'exit 75' TERM
    [ "$SLURM_NODEID" = 1 ] || trap 'sleep 2; touch "$SEEN/saved"; exit 75' TERM
    until_asked
    """
    job = start(act, nodes=2)
    job.is_ready(nodes=2)
    slurm.run("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 0.1")
    job.starts_again()
    assert (job.seen / "saved").exists()
    assert job.end() == ("COMPLETED", "0", "1")
    assert "saved: queued again, 1 of at most 100 times" in job.log()
    assert (job.seen / "code").read_text() == f"{job.folder / 'code'}\n"
    words = [(job.seen / f"{node}-0").read_text().split() for node in (0, 1)]
    assert [each[each.index("--node-rank") + 1] for each in words] == ["0", "1"]
    assert words[0][-1] == words[1][-1], "one place to meet"
    port = int(words[0][-1].rpartition(":")[2])
    assert port == 10_000 + int(job.id) % 20_000


def test_only_slurms_own_wish_brings_a_job_back_and_not_without_end(start: Callable[..., Submitted]) -> None:
    saves = "trap 'exit 75' TERM USR1; until_asked"
    cancelled, for_good, limited = start(saves), start(saves), start(saves, max_requeues=1)
    unheard = start('[ "${SLURM_RESTART_COUNT:-0}" = 1 ] || until_asked')  # as a Python that still starts
    by_itself = start("exit 75")  # as with train.time_limit_s
    assert by_itself.end() == ("FAILED", "75", "0")
    cancelled.is_ready()
    cancelled.slurm.run("scancel", cancelled.id)
    for_good.is_ready()
    for_good.slurm.run("scontrol", "update", f"JobId={for_good.id}", "Requeue=0")
    for_good.signal("TERM")
    assert for_good.end() == ("FAILED", "75", "0")
    limited.is_ready()
    limited.signal("USR1")
    unheard.is_ready()
    unheard.signal("USR1")
    unheard.starts_again()
    limited.starts_again()
    limited.is_ready(start=1)
    limited.signal("USR1")
    assert limited.end() == ("FAILED", "75", "1")
    assert "max_requeues is 1" in limited.log()
    assert unheard.end() == ("COMPLETED", "0", "1")
    state, _, restarts = cancelled.end()
    assert (state, restarts) == ("CANCELLED", "0")


@pytest.mark.slow
def test_a_node_that_fails_ends_the_others_and_the_job_with_its_code(start: Callable[..., Submitted]) -> None:
    job = start("[ $SLURM_NODEID = 0 ] || exit 3; trap 'exit 6' TERM; until_asked", nodes=2)
    assert job.end() == ("FAILED", "3", "0")
    assert "ended with exit code 3, first on n1" in job.log()


@pytest.mark.slow
def test_stop_lets_jobs_save_and_takes_those_that_wait_out_of_the_queue(
    slurm: Slurm, start: Callable[..., Submitted]
) -> None:
    """The save takes longer than Slurm's own end of a job would leave it; none comes back."""
    saves = """trap 'sleep 2; touch "$SEEN/saved-$SLURM_ARRAY_TASK_ID"; exit 75' TERM; until_asked"""
    job, array = start(saves), start(saves, elements=3, array_parallel=1)
    waiting = start(saves, extra_sbatch={"begin": "now+1hour"})
    job.is_ready()
    array.is_ready()
    said: list[str] = []
    for each in (job, array, waiting):
        stop(each.folder, said.append, waits=True)
        assert said[-1] == "all has ended"
    assert job.end() == ("FAILED", "75", "0") and (job.seen / "saved-").exists()
    assert end_of(job.folder, read_record(job.folder)) == End(75)
    assert [path.name for path in array.seen.glob("saved-*")] == ["saved-0"]
    assert waiting.end()[0] == "CANCELLED" and not list(waiting.seen.iterdir())


def test_a_failing_element_of_an_array_is_seen_and_stops_no_other(start: Callable[..., Submitted]) -> None:
    act = 'case "$*" in *elements/001.yaml*) exit 5;; esac; sleep 0.5'
    job = start(act, elements=3, array_parallel=2)
    ends = [job.end(f"{job.id}_{number}") for number in range(3)]
    assert ends == [("COMPLETED", "0", "0"), ("FAILED", "5", "0"), ("COMPLETED", "0", "0")]
    last = [
        (job.folder / "logs" / f"{job.id}_{number}.log").read_text().splitlines()[-1].partition(" ")[2]
        for number in range(3)
    ]
    assert last[0] == last[2] == "ended with exit code 0"
    assert last[1].startswith("ended with exit code 5, first on n")


@pytest.mark.slow
def test_an_element_comes_back_alone(slurm: Slurm, start: Callable[..., Submitted]) -> None:
    """The last element's own id is that of the whole array."""
    act = """
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0
    trap 'exit 75' USR1
    touch "$SEEN/up-$SLURM_ARRAY_TASK_ID"
    until_asked
    """
    job = start(act, elements=2)
    slurm.until(lambda: len(list(job.seen.glob("up-*"))) == 2, SOON_S, job.log)
    first, last = (f"{job.id}_{number}" for number in range(2))
    assert slurm.facts(last)["JobId"] == job.id
    slurm.run("scancel", "--signal=USR1", last)
    slurm.starts_again(last, SOON_S, job.log)
    assert job.end(last) == ("COMPLETED", "0", "1")
    assert (slurm.state(first), slurm.facts(first)["Restarts"]) == ("RUNNING", "0")
    slurm.run("scancel", first)


REFUSED = {
    "partition": ({"partition": "lo"}, "partition is 'lo': Slurm has low, high; did you mean low?"),
    "nodes": ({"nodes": 3}, "nodes is 3: partition low gives a job at most 2"),
    "its nodes": ({"nodes": 2, "partition": "high"}, "partition high gives a job at most 1"),
    "time": ({"time_limit_s": 7200}, r"time_limit_s is 7200: partition low allows 3600 \(01:00:00\)"),
    "feature": ({"constraint": "fast&h100"}, "nodes of partition low have fast, none 'h100'"),
    "gpus": ({"gpus_per_node": 3}, "Slurm would refuse the job: Requested node configuration"),
    "array": ({}, "Slurm would refuse the job: Invalid job array"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_slurm_cannot_run_is_a_sentence_and_nothing_is_queued(
    slurm: Slurm, start: Callable[..., Submitted], what: str, tmp_path: Path
) -> None:
    settings, sentence = REFUSED[what]
    before = slurm.jobs()
    with pytest.raises(UsageError, match=sentence) as refused:
        start("exit 0", elements=2000 if what == "array" else 0, **settings)
    assert refused.value.exit_code == 2
    assert slurm.jobs() == before
    assert not list(tmp_path.glob("out*/tiny/submissions/*"))


@pytest.mark.slow
def test_gpus_are_asked_for_as_slurm_has_them(slurm: Slurm, start: Callable[..., Submitted]) -> None:
    for settings in ({"gpus_per_node": 2}, {"gpus_per_node": 1, "gres": "gpu:2"}):
        job = start('echo "$TORCH_FR_DUMP_TEMP_FILE" > "$SEEN/dumps"', **settings)
        assert job.end() == ("COMPLETED", "0", "0")
        assert slurm.facts(job.id)["TresPerNode"] == "gres:gpu:2"
        assert (job.seen / "dumps").read_text().startswith(str(job.folder / "logs" / job.id))
