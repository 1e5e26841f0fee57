"""Hosts as a place: what of them is taken, and the script that they run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from data_pipeline.errors import ConfigError, UsageError
from launch.submit.base import Job, Place
from launch.submit.places import read_place
from launch.submit.ssh import SshPlace
from tests.small_dataset import tiny_config

THREE = "a slots=4\nb slots=4  # the new one\nc slots=2\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text(THREE)
    return tmp_path


def place_of(*settings: str) -> SshPlace:
    found: Place = read_place("ssh", settings)
    assert isinstance(found, SshPlace)
    return found


def job_in(folder: Path, place: Place) -> Job:
    config = tiny_config(folder / "data", folder / "runs", name="one")
    return Job("train", "one", config, folder / "runs/one/submissions/001", folder)


@pytest.mark.parametrize(
    ("settings", "taken", "ranks"),
    [
        (["hostfile=hosts", "exclude=c"], {"a": 4, "b": 4}, 4),
        (["hostfile=hosts", "include=b@a:0,3,1,2"], {"a": 4, "b": 4}, 4),
        (["hostfile=hosts", "include=a:1,3@c"], {"a": 2, "c": 2}, 2),
        (["hostfile=hosts", "nodes=2"], {"a": 4, "b": 4}, 4),
        (["hostfile=hosts", "gpus_per_node=2"], {"a": 2, "b": 2, "c": 2}, 2),
        (["hosts=[c,a]"], {"c": 1, "a": 1}, 1),
        (["hosts=[c,a]", "gpus_per_node=8"], {"c": 8, "a": 8}, 8),
        (["hosts=[c]", "ranks_per_node=3"], {"c": 3}, 3),
    ],
)
def test_nodes_and_ranks_are_those_of_the_hosts(
    here: Path, settings: list[str], taken: dict[str, int], ranks: int
) -> None:
    place = place_of(*settings)
    assert list(place.num_slots.items()) == list(taken.items())
    assert (place.nodes, place.ranks) == (len(taken), ranks)
    again = SshPlace.model_validate(place.model_dump(mode="json"))  # as a submission keeps it
    assert again.num_slots == place.num_slots


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ([], "hostfile: need a hostfile, or names of hosts"),
        (["hostfile=hosts", "hosts=[a]"], "need one of hosts and hostfile"),
        (["hostfile=hosts", "nodes=4"], "nodes is 4: need at most 3, the hosts there are; try 3"),
        (["hostfile=hosts", "ranks_per_node=3"], "ranks_per_node is 3: need at most 2, the slots of c"),
        (["hosts=[a,a]"], "each host once"),
        (["hostfile=nowhere"], "nowhere cannot be read: No such file or directory"),
        (["hostfile=hosts", "include=d"], "include names 'd': need one of a, b, c"),
        (["hosts=[a,b]", "prot=1"], "prot: need a key that exists; try port"),
        (["hosts=[a,b]", "env.WANDB_API_KEY=abc"], "WANDB_API_KEY looks like one"),
    ],
)
def test_what_does_not_fit_is_told(here: Path, settings: list[str], told: str) -> None:
    with pytest.raises((ConfigError, UsageError)) as raised:
        place_of(*settings)
    assert told in str(raised.value)


def test_hosts_with_other_numbers_of_ranks_are_refused_for_training_alone(here: Path) -> None:
    place = place_of("hostfile=hosts")
    with pytest.raises(UsageError, match="a has 4, b has 4, c has 2: set ranks_per_node=2"):
        place.files(job_in(here, place))


def ran(script: str, folder: Path, *arguments: str) -> list[str]:
    """What a script runs: its variables and words, told by an interpreter that only tells these."""
    path = folder / "node.sh"
    path.write_text(script)
    done = subprocess.run(["/bin/sh", path, *arguments], capture_output=True, text=True, check=True, env={})
    return done.stdout.splitlines()


def test_each_node_runs_its_part_with_its_own_interface_and_slots(here: Path) -> None:
    teller = here / "python"
    teller.write_text(
        '#!/bin/sh\nif [ "$2" = launch.submit.ssh.probe ]; then echo "eth-of-$4"; exit; fi\n'
        "pwd\nfor name in PYTHONPATH GLOO_SOCKET_IFNAME NCCL_SOCKET_IFNAME CUDA_VISIBLE_DEVICES NOTE; do\n"
        'eval "echo $name=\\${$name-unset}"\ndone\necho "$@"\n'
    )
    teller.chmod(0o755)
    settings = ["hostfile=hosts", "include=a:1,3@c", f"python={teller}", "env.NOTE=it's here"]
    place = place_of(*settings)
    job = job_in(here, place)
    (script,) = place.files(job).values()
    given = ["supervise", str(job.config_file), "--nproc", "2", "--nnodes", "2"]
    for node, devices in ((0, "1,3"), (1, "unset")):
        assert ran(script, here, str(node), "10.0.0.1:29400") == [
            str(here),
            f"PYTHONPATH={job.code}",
            "GLOO_SOCKET_IFNAME=eth-of-10.0.0.1",
            "NCCL_SOCKET_IFNAME=eth-of-10.0.0.1",
            f"CUDA_VISIBLE_DEVICES={devices}",
            "NOTE=it's here",
            " ".join(["-m launch", *given, "--node-rank", str(node), "--rendezvous", "10.0.0.1:29400"]),
        ]
    (named,) = place_of(*settings, "interface=ib0", "env.GLOO_SOCKET_IFNAME=eth1").files(job).values()
    told = ran(named, here, "1", "[fd00::1]:29400")
    assert told[2:4] == ["GLOO_SOCKET_IFNAME=eth1", "NCCL_SOCKET_IFNAME=ib0"]


def devices_of(here: Path, node: int, *settings: str) -> str:
    """What the ranks of a node see as GPUs, told by an interpreter that tells only that."""
    teller = here / "python"
    teller.write_text('#!/bin/sh\necho "${CUDA_VISIBLE_DEVICES-unset}"\n')
    teller.chmod(0o755)
    place = place_of(*settings, f"python={teller}", "interface=eth0")
    (script,) = place.files(job_in(here, place)).values()
    return ran(script, here, str(node), "10.0.0.1:29400")[0]


@pytest.mark.parametrize(
    ("settings", "devices"),
    [
        (["ranks_per_node=2"], ["0,1", "0,1", "unset"]),  # c has two
        (["ranks_per_node=1"], ["0", "0", "0"]),
        (["include=a:0,3@b@c", "ranks_per_node=2"], ["0,3", "0,1", "unset"]),
        (["exclude=a:3@b:3@c"], ["0,1,2", "0,1,2"]),
        (["exclude=c"], ["unset", "unset"]),
        (["exclude=c:0@a:0,1,2@b:0,1,2", "env.CUDA_VISIBLE_DEVICES=7"], ["7", "7", "7"]),
    ],
)
def test_ranks_see_the_gpus_of_their_slots_alone(here: Path, settings: list[str], devices: list[str]) -> None:
    assert [devices_of(here, k, "hostfile=hosts", *settings) for k in range(len(devices))] == devices


def test_the_pages_own_examples_fit_its_hostfile(here: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/launch/ssh.md").read_text()
    (printed,) = re.findall(r"^(printf .*) > hostfile$", page, re.MULTILINE)
    text = subprocess.run(["/bin/sh", "-c", printed], capture_output=True, text=True, check=True).stdout
    (here / "hostfile").write_text(text)
    settings = re.findall(r"^foreframe submit .*--with '?([^\s']+)", page, re.MULTILINE)
    assert len(settings) == 5
    for each in settings:
        other = [] if each.startswith("host") else ["hostfile=hostfile"]
        assert place_of(each, *other).ranks in (1, 7, 8)


def test_hosts_tell_what_nccl_does_in_the_folder_of_the_logs(here: Path) -> None:
    teller = here / "python"
    teller.write_text('#!/bin/sh\necho "$NCCL_DEBUG $TORCH_NCCL_DUMP_ON_TIMEOUT $TORCH_FR_DUMP_TEMP_FILE"\n')
    teller.chmod(0o755)
    place = place_of("hosts=[a]", f"python={teller}", "env.NCCL_DEBUG=INFO")
    job = job_in(here, place)
    (script,) = place.files(job).values()
    assert ran(script, here) == [f"INFO 1 {job.logs}/collectives-rank-"]


def test_one_host_needs_no_meeting(here: Path) -> None:
    place = place_of("hosts=[a]")
    (script,) = place.files(job_in(here, place)).values()
    assert "rendezvous" not in script and "SOCKET_IFNAME" not in script
