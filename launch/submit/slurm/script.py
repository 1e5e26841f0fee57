"""The batch script of a Slurm job, to be read from top to bottom before it is run."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from data_pipeline.errors import EXIT_PREEMPTED, UsageError
from launch.submit.base import ELEMENTS_FOLDER, Job
from launch.submit.shell import DUMPS, command, gpu_variables, interpreter, preamble
from launch.submit.slurm.cluster import time_of
from pretrain.config import RunConfig

if TYPE_CHECKING:
    from launch.submit.slurm.place import SlurmPlace

SCRIPT = "job.sbatch"
LOWEST_PORT, NUM_PORTS = 10_000, 20_000  # below those that systems give out by themselves

# Options that the script sets, and what sets them; the first are settings of the same name.
SETTINGS = ("partition", "account", "qos", "reservation", "constraint", "nodes", "gres", "exclusive")
OWN_OPTIONS = {
    **{name: f"set {name}" for name in SETTINGS},
    "job-name": "it is the name of the run",
    "output": "logs lie in the submission's folder",
    "error": "logs lie in the submission's folder",
    "open-mode": "logs are appended to",
    "requeue": "set max_requeues",
    "no-requeue": "set max_requeues: 0",
    "array": "it follows from the sweep; set array_parallel",
    "ntasks": "it follows from nodes",
    "ntasks-per-node": "a node has one task, the supervisor; set ranks_per_node",
    "cpus-per-task": "set cpus_per_node",
    "gpus-per-node": "set gpus_per_node",
    "mem": "set memory",
    "time": "set time_limit_s",
    "signal": "set signal_before_s",
    "chdir": "nodes work where submit was called",
    "wrap": "the script is what runs",
    "wait": "sbatch returns at once",
    "test-only": "use --dry-run",
    "parsable": "foreframe reads the job's id itself",
}


def render(job: Job, place: SlurmPlace) -> str:
    """The whole script.

    Raises: UsageError when the submission's folder has a name that Slurm cannot take.
    """
    if any(letter in str(job.folder) for letter in '\\"\n'):
        raise UsageError(f"{job.folder}: Slurm takes no folder with quotes or backslashes in its name")
    return "\n".join(
        [
            _options(job, place),
            _beginning(job, place),
            *([gpu_variables(f'"${{note%.note}}-{DUMPS}"')] if place.gpus_per_node else []),
            *([_meeting()] if place.nodes > 1 else []),
            _on_node(job, place),
            _steps(job, place),
            _ending(job, place),
        ]
    )


def cores(job: Job, place: SlurmPlace) -> int | None:
    """Of a node for this job; None where it has all of them.

    Unless told, Slurm gives a task one core: ranks and loaders would share it.
    Raises: UsageError for a sharding job that says nowhere how many it takes.
    """
    if place.cpus_per_node is not None or place.exclusive:
        return place.cpus_per_node
    if isinstance(job.config, RunConfig):
        return place.ranks * (1 + job.config.data.workers)
    if job.config.ray.workers is not None:
        return job.config.ray.workers
    raise UsageError(
        "cpus_per_node is not set, and Slurm would give each node of the job one core: "
        "--with cpus_per_node=N, as many as nodes have (`sinfo --format='%P %c'`), or --with exclusive=true"
    )


def _options(job: Job, place: SlurmPlace) -> str:
    what = "trains" if job.kind == "train" else "shards"
    nodes = f"{place.nodes} nodes" if place.nodes > 1 else "one node"
    elements = f" {job.elements} elements, each" if job.elements else ""
    gpus = None if place.gres or not place.gpus_per_node else str(place.gpus_per_node)
    parallel = f"%{place.array_parallel}" if place.array_parallel else ""
    options: dict[str, str | None] = {
        "job-name": job.name,
        "array": f"0-{job.elements - 1}{parallel}" if job.elements else None,
        "output": f"{_pattern(job)}.log",
        "open-mode": "append",
        "partition": place.partition,
        "account": place.account,
        "qos": place.qos,
        "reservation": place.reservation,
        "constraint": place.constraint,
        "time": None if place.time_limit_s is None else time_of(place.time_limit_s),
        "nodes": str(place.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": None if (wanted := cores(job, place)) is None else str(wanted),
        "gpus-per-node": gpus,
        "gres": place.gres,
        "mem": place.memory,
        "exclusive": "" if place.exclusive else None,
        "requeue" if place.max_requeues else "no-requeue": "",
        "signal": f"TERM@{place.signal_before_s}",
        **place.extra_sbatch,
    }
    notes = {
        "open-mode": "A job that is queued again goes on in the same log.",
        "ntasks-per-node": "One task a node, which starts that node's processes.",
        "signal": "All tasks, but not this shell, get SIGTERM so many seconds before the time limit.",
    }
    lines = [f"#!/bin/bash\n# {job.name}: {what}{elements} on {nodes}. Written by foreframe submit."]
    for name, value in options.items():
        if value is None:
            continue
        lines += [f"# {notes[name]}"] if name in notes else []
        lines.append(f"#SBATCH --{name}={_quoted(value)}" if value else f"#SBATCH --{name}")
    return "\n".join(lines) + "\n"


def _pattern(job: Job) -> str:
    """Path of the job's logs up to their ends, with Slurm's own signs for its id."""
    folder = str(job.logs).replace("%", "%%")
    return f"{folder}/{'%A_%a' if job.elements else '%j'}"


def _quoted(value: str) -> str:
    return value if shlex.quote(value) == value else f'"{value}"'


def _beginning(job: Job, place: SlurmPlace) -> str:
    job_id = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' if job.elements else '"$SLURM_JOB_ID"'
    element = ""
    if job.elements:
        folder = shlex.quote(str(job.folder / ELEMENTS_FOLDER))
        element = f'config={folder}/$(printf %03d "$SLURM_ARRAY_TASK_ID").yaml\nexport config\n'
    setup = ""
    if place.setup:
        lines = "\n".join(line.rstrip() for line in place.setup)
        setup = (
            f"# As the place's settings have it; not all such scripts bear set -u.\nset +u\n{lines}\nset -u\n"
        )
    return (
        "set -euo pipefail\n"
        f"{setup}{preamble(job, place)}"
        f"id={job_id} restarts=${{SLURM_RESTART_COUNT:-0}}\n"
        f'export note={shlex.quote(str(job.logs))}/"$id-$restarts.note"\n'
        f"{element}"
        'say() { echo "$(date +%FT%T) $*"; }\n'
        'say "job $id on $SLURM_JOB_NODELIST, start $((restarts + 1))"\n'
    )


def _meeting() -> str:
    return f"""\
# The nodes meet at the first of them. Its port is of the job's id, as several jobs may run there.
head=$(srun --nodes=1 --ntasks=1 --relative=0 hostname) || head=$(hostname) # preempted already
port=$(({LOWEST_PORT} + SLURM_JOB_ID % {NUM_PORTS}))
export head port
"""


def _on_node(job: Job, place: SlurmPlace) -> str:
    config = '"$config"' if job.elements else None
    words = job.arguments(place, node_rank='"$SLURM_NODEID"', rendezvous='"$head:$port"', config=config)
    runs = command([interpreter(place), "-m", "launch", *words], indent="    ")
    why, which = (
        ("Killed by the signal, as it was still starting: nothing is lost.", "-gt 128")
        if job.kind == "train"
        else ("However Ray took the signal, what is published stays: it goes on from there.", "!= 0")
    )
    others = (
        "  # The others lend their cores: one that fails is not missed by the first.\n"
        '  if [ "$SLURM_NODEID" != 0 ]; then exit 0; fi\n'
    )
    return f"""\
# What each node runs.
# shellcheck disable=SC2317 # by way of srun
on_node() {{
  # Slurm signals every process of a task, this shell too, which waits for the end all the same.
  # SIGTERM comes at a preemption and before the time limit: the job is to go on later.
  asked=no
  trap 'asked=yes' TERM USR1
  trap : HUP INT
  {runs}
  code=$?
  if [ "$code" = 0 ]; then exit 0; fi
  if [ "$asked" = no ]; then sleep 1; fi # this shell may be the last to get the signal
  # {why}
  if [ "$asked" = yes ] && [ "$code" {which} ]; then code={EXIT_PREEMPTED}; fi
{others if job.kind == "shard" and place.nodes > 1 else ""}\
  # Of nodes that end otherwise, the first says how.
  (set -o noclobber; echo "$code $asked $SLURMD_NODENAME" > "$note") 2> /dev/null
  # {EXIT_PREEMPTED}: saved. The other nodes do so too, and may still be writing: not to be ended.
  if [ "$code" = {EXIT_PREEMPTED} ] && [ -s "$note" ]; then exit 0; fi
  exit "$code"
}}
"""


def _steps(job: Job, place: SlurmPlace) -> str:
    wanted = cores(job, place)
    own = [f"--cpus-per-task={wanted}"] if wanted else []  # srun does not take it from the job
    output = f"{_pattern(job)}-node-%n.log"
    words = [
        *("srun", "--export=ALL", "--wait=0", "--kill-on-bad-exit=1", *own),
        *("--open-mode=append", f"--output={output}", "bash", "-c"),
    ]
    several = (
        "Where one node fails the others would wait for it, so they are ended; one that is done ends none."
    )
    return f"""\
# {several if place.nodes > 1 else "What the node prints has a log of its own."}
code=0 asked=no where=""
export -f on_node
{command(words)} on_node || code=$?
if [ -s "$note" ]; then read -r code asked where < "$note"; fi
"""


def _ending(job: Job, place: SlurmPlace) -> str:
    return f"""\
# Saved, and asked for by Slurm: queued again, unless it was cancelled meanwhile.
if [ "$code" = {EXIT_PREEMPTED} ] && [ "$asked" = yes ]; then
  if [ "$restarts" -ge {place.max_requeues} ]; then
    say "not queued again: max_requeues is {place.max_requeues}"
  elif [ "$(squeue --noheader --jobs="$id" --format=%T)" = RUNNING ]; then
    say "saved: queued again, $((restarts + 1)) of at most {place.max_requeues} times"
    if scontrol requeue "$id"; then sleep 600; fi # until Slurm ends this shell
  fi
fi
say "ended with exit code $code${{where:+, first on $where}}"
exit "$code"
"""
