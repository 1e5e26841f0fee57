"""What the batch script of Slurm holds, and what a cluster's answers mean; no Slurm is needed."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data_pipeline.config import DataConfig
from data_pipeline.errors import ConfigError, UsageError
from launch.config import shipped_config
from launch.submit.base import Job
from launch.submit.places import read_place
from launch.submit.slurm import SlurmPlace
from launch.submit.slurm.cluster import (
    check_constraint,
    check_partition,
    need_commands,
    read_partition,
    seconds_of,
    time_of,
)
from launch.submit.slurm.script import OWN_OPTIONS, SCRIPT
from launch.submit.submission import Asked, make_job, submit
from pretrain.config import RunConfig
from tests.small_dataset import tiny_config

LOW = (
    "PartitionName=low AllowGroups=ALL AllowAccounts=vision,audio DenyAccounts=guests Default=YES MaxNodes=8 "
    "MaxTime=1-00:00:00 State=UP TotalNodes=64"
)
WIDE = "PartitionName=wide AllowAccounts=ALL Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED TotalNodes=64"


def job_of(folder: Path, kind: str = "train", **changes: Any) -> Job:
    config = (
        tiny_config(folder / "data", folder)
        if kind == "train"
        else DataConfig(name="set", sources=("videos",), out="data/set")
    )
    facts = {"kind": kind, "name": config.name, "config": config, "workdir": folder / "work dir"}
    return Job(**{**facts, "folder": folder / "run" / "submissions" / "001", **changes})


def test_a_node_is_not_left_with_the_one_core_that_slurm_gives(tmp_path: Path) -> None:
    """Ranks and the workers of their loaders; srun has to be told again."""
    job = job_of(tmp_path)
    assert isinstance(job.config, RunConfig)
    data = job.config.data.model_copy(update={"workers": 3})
    job = replace(job, config=job.config.model_copy(update={"data": data}))
    script = SlurmPlace(gpus_per_node=4).files(job)[SCRIPT]
    assert options_of(script)["cpus-per-task"] == "16"
    assert "--cpus-per-task=16" in script[script.index("\nsrun --export") :]
    script = SlurmPlace(gpus_per_node=4, exclusive=True).files(job)[SCRIPT]
    assert "cpus-per-task" not in script, "all of them"
    with pytest.raises(UsageError, match="cpus_per_node is not set"):
        script_of(tmp_path, "shard")
    assert "cpus-per-task" not in script_of(tmp_path, "shard", exclusive=True)


def script_of(folder: Path, kind: str = "train", elements: int = 0, **settings: Any) -> str:
    return SlurmPlace(**settings).files(job_of(folder, kind, elements=elements))[SCRIPT]


def in_the_docs() -> str:
    """The script that docs/launch/slurm.md explains."""
    home = Path("/home/ann/foreframe")
    config = tiny_config(home / "data", home / "runs").model_copy(update={"name": "vits16-16f"})
    folder = home / "runs" / "vits16-16f" / "submissions" / "001"
    job = Job(kind="train", name=config.name, config=config, folder=folder, workdir=home)
    settings = {
        "partition": "gpu",
        "exclusive": True,
        "time_limit_s": 86400,
        "setup": ["module load cuda/12.8"],
    }
    own = str(home / ".venv" / "bin" / "python")
    place = SlurmPlace.model_validate({"nodes": 2, "gpus_per_node": 8, "python": own, **settings})
    return place.files(job)[SCRIPT]


def options_of(script: str) -> dict[str, str]:
    """Of the #SBATCH lines, which Slurm reads up to the first command."""
    head = script.split("\nset -euo pipefail\n")[0]
    assert all(line.startswith("#") or not line for line in head.splitlines())
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", head, re.MULTILINE)
    assert len(found) == head.count("#SBATCH")
    return {name: value.strip('"') for name, value in found}


def test_settings_stand_in_the_script_as_slurm_has_them(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "nodes": 16,
        "gpus_per_node": 8,
        "partition": "gpu,spare",
        "account": "vision",
        "qos": "long",
        "reservation": "maintenance-2",
        "constraint": "[rack1|rack2]",
        "time_limit_s": 86_400 + 90,
        "signal_before_s": 600,
        "cpus_per_node": 96,
        "memory": "0",
        "exclusive": True,
        "array_parallel": 3,
        "extra_sbatch": {"mail-type": "END", "overcommit": "", "comment": "a word # or two"},
    }
    script = script_of(tmp_path / "50% of", elements=12, **settings)
    logs = tmp_path / "50%% of" / "run" / "submissions" / "001" / "logs"
    assert options_of(script) == {
        "job-name": "tiny",
        "array": "0-11%3",
        "output": f"{logs}/%A_%a.log",
        "open-mode": "append",
        "partition": "gpu,spare",
        "account": "vision",
        "qos": "long",
        "reservation": "maintenance-2",
        "constraint": "[rack1|rack2]",
        "time": "1-00:02:00",
        "nodes": "16",
        "ntasks-per-node": "1",
        "cpus-per-task": "96",
        "gpus-per-node": "8",
        "mem": "0",
        "exclusive": "",
        "requeue": "",
        "signal": "TERM@600",
        "mail-type": "END",
        "overcommit": "",
        "comment": "a word # or two",
    }
    assert '--nproc 8 --nnodes 16 --node-rank "$SLURM_NODEID"' in script
    assert set(options_of(script)) - {"mail-type", "overcommit", "comment"} <= set(OWN_OPTIONS)


@pytest.mark.parametrize("kind", ["train", "shard"])
@pytest.mark.parametrize("elements", [0, 3])
@pytest.mark.parametrize("nodes", [1, 2])
def test_every_script_is_bash(tmp_path: Path, kind: str, elements: int, nodes: int) -> None:
    setup = ["module load cuda/12.8", "export A='b c'"]
    script = script_of(tmp_path, kind, elements, nodes=nodes, gpus_per_node=1, cpus_per_node=8, setup=setup)
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n".join(["set +u", *setup, "set -u"]) in script
    assert ("--rendezvous" in script) == (nodes > 1)
    assert ("supervise" if kind == "train" else "-m launch shard") in script


def test_nothing_of_a_network_is_written_down(tmp_path: Path) -> None:
    """No port, no address, no interface: the nodes know them."""
    script = script_of(tmp_path, nodes=2, gpus_per_node=8)
    assert "IFNAME" not in script
    assert not re.search(r"\d+\.\d+\.\d+\.\d+|:\d{4,5}\b|localhost", script)


def test_what_only_gpus_need_is_not_set_without_any(tmp_path: Path) -> None:
    assert "NCCL" not in script_of(tmp_path)
    script = script_of(tmp_path, gpus_per_node=8, env={"NCCL_DEBUG": "INFO"})
    assert script.index("export NCCL_DEBUG=INFO") < script.index('NCCL_DEBUG="${NCCL_DEBUG:-WARN}"')
    typed = options_of(script_of(tmp_path, gpus_per_node=8, gres="gpu:h100:8"))
    assert typed["gres"] == "gpu:h100:8"
    assert "gpus-per-node" not in typed


def test_no_requeue_is_slurms_own_option(tmp_path: Path) -> None:
    options = options_of(script_of(tmp_path, max_requeues=0))
    assert "no-requeue" in options
    assert "requeue" not in options


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"partition": "a b"}, "partition"),
        ({"partition": "low\n#SBATCH --uid=0"}, "partition"),
        ({"time_limit_s": 60, "signal_before_s": 60}, "need less than time_limit_s, 60"),
        ({"extra_sbatch": {"array": "0-3"}}, "array is '0-3': need it left out: it follows from the sweep"),
        ({"extra_sbatch": {"nodes": "3"}}, "need it left out: set nodes"),
        ({"extra_sbatch": {"--comment": "x"}}, "without its dashes"),
        ({"extra_sbatch": {"comment": "x\nrm -rf /"}}, "need text on one line"),
        ({"setup": ["export AWS_SECRET_ACCESS_KEY=abcdef0123456789"]}, "need no credentials"),
        ({"memory": "lots"}, "memory"),
        ({"partitions": "low"}, "partitions"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        SlurmPlace(**settings)


def test_a_secret_in_settings_is_not_shown_in_the_error(tmp_path: Path) -> None:
    lines = "setup=[export HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz012345]"
    with pytest.raises(ConfigError, match="need no credentials") as refused:
        read_place("slurm", [lines, "extra_sbatch={comment: password=hunter22}"])
    assert "hf_abc" not in str(refused.value)
    assert "hunter22" not in str(refused.value)


def test_the_shipped_place_is_one(tmp_path: Path) -> None:
    place = read_place(str(shipped_config("launch/slurm.yaml")), ["nodes=4"])
    assert isinstance(place, SlurmPlace)
    assert options_of(place.files(job_of(tmp_path))[SCRIPT])["nodes"] == "4"
    with pytest.raises(ConfigError, match="partition"):
        read_place("slurm", ["partitoin=gpu"])


def test_a_folder_that_slurm_cannot_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="quotes or backslashes"):
        script_of(tmp_path / 'a "run"')


def test_without_slurm_nothing_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no sbatch on PATH"):
        need_commands()
    config = tiny_config(tmp_path / "data", tmp_path / "out")
    with pytest.raises(UsageError, match="no sbatch on PATH") as refused:
        submit(make_job(config, SlurmPlace()), SlurmPlace(), Asked(checks_data=False), print)
    assert refused.value.exit_code == 2
    assert not (tmp_path / "out").exists()
    assert submit(make_job(config, SlurmPlace()), SlurmPlace(), Asked(is_dry=True), print) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("UNLIMITED", None),
        ("30", 30),
        ("15:00", 900),
        ("01:00:00", 3600),
        ("2-12:30:05", 2 * 86400 + 45005),
    ],
)
def test_times_are_read_as_slurm_writes_them(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("seconds", [60, 61, 3600, 86_400, 7 * 86_400 - 1])
def test_times_are_written_in_minutes_that_are_enough(seconds: float) -> None:
    again = seconds_of(time_of(seconds))
    assert again is not None
    assert seconds <= again < seconds + 60


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (("lwo", 1, None, None), "partition is 'lwo': Slurm has low, wide; did you mean low?"),
        ((None, 9, None, None), "nodes is 9: partition low gives a job at most 8"),
        (("wide", 65, None, None), "nodes is 65: partition wide gives a job at most 64"),
        (("low", 8, 90_000.0, None), "time_limit_s is 90000: partition low allows 86400 (1-00:00:00)"),
        (("low", 8, None, "text"), "account is 'text': partition low takes vision, audio only"),
        (("low,wide", 65, None, None), "partition low gives a job at most 8; nodes is 65"),
        ((None, 8, 86_400.0, "vision"), None),
        (("low,wide", 9, 90_000.0, "text"), None),
    ],
)
def test_what_a_partition_does_not_give_is_a_sentence(
    asked: tuple[str | None, int, float | None, str | None], sentence: str | None
) -> None:
    found = {each.name: each for each in map(read_partition, (LOW, WIDE))}
    if sentence is None:
        check_partition(found, *asked)
        return
    with pytest.raises(UsageError, match=re.escape(sentence)):
        check_partition(found, *asked)


def test_features_are_found_in_every_form_of_a_constraint() -> None:
    known = {"h100", "rack1", "rack2", "ib-400"}
    for good in ("h100", "h100&ib-400", "[rack1|rack2]", "[rack1*2&rack2*4]", "(h100|rack1)&ib-400"):
        check_constraint(good, known, "gpu")
    with pytest.raises(UsageError, match=r"nodes of partition gpu have .*, none 'a100'"):
        check_constraint("h100|a100", known, "gpu")


def test_the_docs_show_the_script_as_it_is() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "launch" / "slurm.md").read_text()
    assert f"```bash\n{in_the_docs()}```" in docs
