"""A real Slurm on this machine: munge, a controller, and nodes that are slurmds with ports of their own.

It needs root and Debian's slurmctld, slurmd, slurm-client and munge; tests that ask for it skip without.
Nothing under /etc is read or written: the key, the settings and all state lie in a test's folder. All of it,
and whatever jobs start, lives in a process namespace that ends with pytest, however that ends.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.servers.process import READY_WITHIN_S, die_with_parent

PACKAGES = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
GPUS = 2  # of each node, in name only: jobs can ask for them


@dataclass(frozen=True)
class Slurm:
    """Two partitions over all nodes: in `high` lie jobs that preempt those in `low`, which are requeued.

    variables: with which Slurm's commands reach it. pid: of the process above all of its processes.
    """

    folder: Path
    num_nodes: int
    pid: int
    variables: dict[str, str] = field(repr=False)

    def run(self, *words: str) -> str:
        """What one of Slurm's commands prints. Raises: CalledProcessError."""
        done = subprocess.run(words, env=self.environment(), capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def environment(self) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        return {**own, **self.variables}

    def facts(self, job: str) -> dict[str, str]:
        """What the controller knows of a job, by its own names: JobState, Restarts, ExitCode, …"""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: str) -> str:
        """Such as PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, CANCELLED, TIMEOUT."""
        return self.facts(job)["JobState"]

    def starts_again(self, job: str, seconds: float, told: Callable[[], str] = str) -> None:
        """Wait until a job was queued again; it need not wait two minutes then, as Slurm has it."""

        def is_pending() -> bool:
            state = self.state(job)
            assert state not in ENDED, f"{self.facts(job)} {told()}"
            return state == "PENDING"

        self.until(is_pending, seconds, lambda: f"{self.facts(job)} {told()}")
        self.run(
            "scontrol", "update", f"JobId={job}", "StartTime=now+2"
        )  # a node refuses it within the second

    def jobs(self) -> list[str]:
        """Ids of all that are queued or run."""
        return self.run("squeue", "--noheader", "--format=%i").split()

    def until(self, is_so: Callable[[], bool], seconds: float, told: Callable[[], str] = str) -> None:
        """Wait for something. told: what to print when it does not come."""
        deadline_s = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline_s, f"not within {seconds:g} s: {told()}"
            time.sleep(0.1)

    def ended(self, job: str, seconds: float, told: Callable[[], str] = str) -> dict[str, str]:
        """The facts of a job, once it has ended for good."""
        self.until(lambda: self.state(job) in ENDED, seconds, lambda: f"{self.facts(job)} {told()}")
        return self.facts(job)

    def end_jobs(self) -> None:
        """All of them, so that none of a test that failed is in the way of the next."""
        self.run("scancel", "--user=root")
        self.until(lambda: not self.jobs(), READY_WITHIN_S, lambda: str(self.jobs()))

    def processes(self, *words: str) -> list[psutil.Process]:
        """Those of jobs that have all of these words in their command."""
        found = []
        for each in psutil.Process(self.pid).children(recursive=True):
            try:
                command = each.cmdline()
            except psutil.Error:
                continue
            if all(word in command for word in words):
                found.append(each)
        return found


def need_slurm() -> None:
    """Skip the test where a package is missing, or it is not run by root."""
    missing = [package for name, package in PACKAGES.items() if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs Slurm: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("needs root, for Slurm's daemons")


@contextmanager
def slurm_in(folder: Path, num_nodes: int = 2, grace_s: int = 30) -> Iterator[Slurm]:
    """A Slurm until the end of the block; its jobs are ended with it.

    grace_s: that a preempted job has before it is ended. Skips the test where it cannot be had.
    """
    need_slurm()
    _write_settings(folder, num_nodes, grace_s)
    variables = {"SLURM_CONF": str(folder / "slurm.conf")}
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
    own = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with (folder / "daemons.log").open("wb") as log:
        process = subprocess.Popen(
            [*own, "sh", "-c", DAEMONS, str(folder), *(f"n{number}" for number in range(num_nodes))],
            env={**clean, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,  # and with its first process everything in the namespace
        )
    slurm = Slurm(folder, num_nodes, process.pid, variables)
    try:
        _wait_for_nodes(slurm, process)
        yield slurm
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _wait_for_nodes(slurm: Slurm, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + READY_WITHIN_S
    asking = ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%T"]
    while True:
        found = subprocess.run(asking, env=slurm.environment(), capture_output=True, text=True)
        if found.stdout.split() == ["idle"] * slurm.num_nodes:
            return
        printed = (slurm.folder / "daemons.log").read_text()
        if "unshare" in printed and process.poll() is not None:
            pytest.skip(f"process namespaces cannot be made here: {printed.strip()}")
        is_late = time.monotonic() > deadline_s
        assert process.poll() is None and not is_late, f"Slurm did not start: {found} {printed}"
        time.sleep(0.05)


def _write_settings(folder: Path, num_nodes: int, grace_s: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    ports = _free_ports(num_nodes + 1)
    nodes = "".join(
        NODE.format(number=number, host=host, port=port, gpus=GPUS) for number, port in enumerate(ports[1:])
    )
    first = 1000 + secrets.randbelow(18_000)
    text = SETTINGS.format(
        folder=folder, host=host, port=ports[0], nodes=nodes, grace_s=grace_s, first_job=first
    )
    (folder / "slurm.conf").write_text(text)
    devices = "".join(f"Name=gpu File={folder}/gpu{number}\n" for number in range(GPUS))
    (folder / "gres.conf").write_text(devices)
    for number in range(GPUS):
        (folder / f"gpu{number}").touch()
    for name in ("state", *(f"spool.n{number}" for number in range(num_nodes))):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)


def _free_ports(count: int) -> list[int]:
    """All are held until the last is found, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


DAEMONS = """\
munged --foreground --force --key-file "$0/munge.key" --socket "$0/munge.sock" --pid-file "$0/munged.pid" \
  --log-file "$0/munged.log" --seed-file "$0/munged.seed" &
until [ -S "$0/munge.sock" ]; do sleep 0.02; done
slurmctld -D -c &
for node in "$@"; do slurmd -D -N "$node" & done
wait
"""
NODE = """\
NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000 \
Gres=gpu:{gpus} Feature=fast State=UNKNOWN
"""
# The scheduler looks at once and often; what is ended by it has little time for that. Jobs of several such
# clusters on a machine, beside each other, have ports by their ids: these begin anywhere.
SETTINGS = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
KillWait=1
MinJobAge=3600
FirstJobId={first_job}
DefMemPerCPU=100
InactiveLimit=0
SlurmdParameters=config_overrides
{nodes}\
PartitionName=low Nodes=ALL Default=YES MaxTime=1:00:00 PriorityTier=1 GraceTime={grace_s}
PartitionName=high Nodes=ALL MaxTime=1:00:00 MaxNodes=1 PriorityTier=10 PreemptMode=OFF
"""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of two nodes, for all tests; each ends the jobs that it leaves."""
    with slurm_in(tmp_path_factory.mktemp("slurm")) as started:
        yield started
