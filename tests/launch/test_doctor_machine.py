"""The doctor on this machine: each check with a fault that was put there."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from launch.doctor import disk, gpus, limits, network
from launch.doctor.check import Check, Group, Report, Task, make, report_of
from launch.doctor.needs import needs_of
from launch.doctor.versions import check_packages, check_python, pins, ranges
from tests.small_dataset import tiny_config

ROOT = Path(__file__).parents[2]
GB = 10**9


def filesystem(free: int, total: int) -> Callable[[str], os.statvfs_result]:
    told = SimpleNamespace(f_bavail=free // 4096, f_blocks=total // 4096, f_frsize=4096)
    return lambda _: cast(os.statvfs_result, told)


def test_a_check_that_hangs_or_breaks_is_a_line_and_holds_up_nothing() -> None:
    released = threading.Event()

    def hang() -> Check:
        released.wait(60)
        return Check("late", "pass", "")

    (hung,) = make(Task("mount", hang, 0.05))
    released.set()
    assert (hung.name, hung.state) == ("mount", "fail")
    assert "no answer within" in hung.found
    (broken,) = make(Task("driver", lambda: [][0]))
    assert broken.state == "fail"
    assert "IndexError" in broken.found


def test_a_report_is_read_back_from_its_json_and_anything_else_is_refused() -> None:
    report = Report((Group("a", (Check("x", "warn", "y", "z"),)),), {"torch": "2"})
    assert report_of(report.plain()) == report
    for plain in ({}, {"groups": [{}], "facts": {}}, {"groups": [], "facts": 3}):
        with pytest.raises(ValueError, match="no report"):
            report_of(plain)


@pytest.mark.parametrize(
    ("free", "needed", "state"),
    [(20 * GB, None, "pass"), (64 << 20, None, "warn"), (20 * GB, 30 * GB, "fail"), (20 * GB, GB, "pass")],
)
def test_shared_memory_is_held_against_what_loaders_need(free: int, needed: int | None, state: str) -> None:
    found = limits.check_shared_memory(needed, filesystem(free, 2 * free))
    assert found.state == state, found
    assert ("--shm-size" in found.remedy) == (state != "pass")


def test_the_need_of_shared_memory_is_that_of_the_slots_that_loaders_take(
    small_dataset: Path, tmp_path: Path
) -> None:
    """Beside what the loaders themselves allocate."""
    import torch

    from pretrain.config import plan
    from pretrain.data.stream import Batches

    config = tiny_config(
        small_dataset,
        tmp_path,
        data={"workers": 3, "prefetch": 2},
        strategy={"kind": "deepspeed", "zero_stage": 1, "timeout_s": 500.0},
    )
    made = Batches(plan(config, 2), 0, torch.device("cpu"))
    needs = needs_of(config, 2)
    assert needs.shared_bytes == 2 * made._slots._clips.nbytes
    assert needs.processes == 2 * 4
    made.close()


def test_a_low_limit_of_open_files_is_found_where_it_is_set() -> None:
    script = (
        "import resource, sys; from launch.doctor.limits import check_open_files\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), 8192))\n"
        "print(check_open_files().state)"
    )

    def state(limit: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, str(limit)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 8192:
        pytest.skip("the hard limit of open files here is below 8192")
    assert [state(256), state(2048), state(8192)] == ["fail", "warn", "pass"]


def test_the_limits_of_a_container_count_not_those_of_the_machine(tmp_path: Path) -> None:
    own = tmp_path / "job"
    (own / "step").mkdir(parents=True)
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "self").write_text("0::/job/step\n")
    (own / "memory.max").write_text("8000000000\n")
    (own / "step" / "memory.max").write_text("max\n")
    (own / "cpu.max").write_text("150000 100000\n")
    folders = limits.own_cgroup(tmp_path, tmp_path / "self")
    assert folders == [own / "step", own, tmp_path]
    assert limits.cgroup_value("memory.max", folders) == 8 * GB
    assert limits.cgroup_value("pids.max", folders) is None
    quota = limits.cgroup_cores(folders)
    assert quota == 1.5
    assert limits.check_cores(None, total=64, usable=16, quota=quota).state == "warn"
    assert limits.check_cores(8, total=64, usable=16).state == "pass"
    assert limits.check_cores(40, total=64, usable=16).state == "warn"
    machine = limits.meminfo("MemTotal: 64000000 kB\nMemAvailable: 60000000 kB\nSwapTotal: 0 kB\n")
    assert machine["MemTotal"] == 64_000_000 * 1024
    assert limits.check_memory(machine, None, None)[0].state == "pass"
    assert limits.check_memory(machine, 8 * GB, 79 * GB // 10)[0].state == "warn"


def test_a_clogged_swap_and_a_forbidden_overcommit_are_warned_of() -> None:
    swapping = {"MemTotal": 64 * GB, "MemAvailable": 30 * GB, "SwapTotal": 8 * GB, "SwapFree": GB}
    assert [check.state for check in limits.check_memory(swapping, None, None)] == ["pass", "warn"]
    assert [limits.check_overcommit(mode).state for mode in ("0", "1", "2", None)] == [
        "pass", "pass", "warn", "skipped",
    ]  # fmt: skip


NVIDIA_SMI = """\
#!/bin/sh
case "$1" in
--query-gpu=*) printf '%s' "$GPUS"; exit ${CODE:-0};;
--query-compute-apps=*) printf '%s' "$APPS";;
esac
"""
TWO = (
    "0, NVIDIA H100 80GB HBM3, 81559, 4, 550.54.15, 0\n1, NVIDIA H100 80GB HBM3, 81559, 40000, 550.54.15, 3\n"
)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "nvidia-smi"
    path.write_text(NVIDIA_SMI)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


@pytest.mark.usefixtures("nvidia_smi")
def test_gpus_are_told_with_their_errors_and_with_who_else_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUS", TWO)
    monkeypatch.setenv("APPS", "4242, 39000\n")
    monkeypatch.setattr(gpus, "seen_by_torch", lambda: gpus.Seen(2, "12.8"))
    checks, facts = gpus.look_at_gpus(4)
    states = {check.name: check.state for check in checks}
    assert states == {
        "GPUs": "pass", "torch on GPUs": "pass", "--nproc": "fail", "GPU memory errors": "fail",
        "GPUs in use": "warn",
    }  # fmt: skip
    told = {check.name: check.found for check in checks}
    assert told["GPUs"].startswith("2 × NVIDIA H100 80GB HBM3")
    assert "GPU 1: 3" in told["GPU memory errors"]
    assert "4242" in told["GPUs in use"]
    assert facts["driver"] == "550.54.15"


@pytest.mark.usefixtures("nvidia_smi")
@pytest.mark.parametrize(
    ("seen", "state"),
    [(gpus.Seen(0, None), "fail"), (gpus.Seen(0, "12.8"), "fail"), (gpus.Seen(1, "12.8"), "warn")],
)
def test_gpus_that_torch_does_not_see_are_told(
    monkeypatch: pytest.MonkeyPatch, seen: gpus.Seen, state: str
) -> None:
    monkeypatch.setenv("GPUS", TWO.replace(", 3\n", ", [N/A]\n"))
    monkeypatch.setattr(gpus, "seen_by_torch", lambda: seen)
    found = {check.name: check.state for check in gpus.look_at_gpus(None)[0]}
    assert found["torch on GPUs"] == state


def test_an_xformers_whose_kernels_do_not_load_is_told_with_what_it_may_lack() -> None:
    why = "its kernels do not load: libcudart.so.12: cannot open shared object file"
    seen = gpus.Seen(1, "13.0", why)
    (found,) = (check for check in gpus.check_gpus([], "", seen, [], 1) if check.name == "xformers")
    assert (found.state, found.found) == ("skipped", why)
    assert "pip install nvidia-cuda-runtime-cu12" in str(found.remedy)
    names = [check.name for check in gpus.check_gpus([], "", gpus.Seen(1, "12.8"), [], 1)]
    assert "xformers" not in names


@pytest.mark.usefixtures("nvidia_smi")
def test_a_driver_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUS", "NVIDIA-SMI has failed because it couldn't communicate with the driver")
    monkeypatch.setenv("CODE", "9")
    (found,) = gpus.look_at_gpus(None)[0]
    assert found.state == "fail"
    assert "couldn't communicate" in found.found


def test_no_gpu_is_no_fault() -> None:
    assert [check.state for check in gpus.check_gpus([], "", gpus.Seen(0, None), [], 2)] == ["pass", "pass"]


def test_a_name_that_stands_for_loopback_is_warned_of_with_the_interface_to_name() -> None:
    addresses = {"lo": "127.0.0.1", "docker0": "172.17.0.1", "eth0": "10.0.0.7"}
    routes = "Iface\tDestination\tGateway\neth0\t00000000\t0100000A\ndocker0\t000011AC\t00000000\n"
    best = network.interface_to_name(addresses, network.default_interface(routes))
    assert best == "eth0"

    def check(resolved: list[str], named: str | None = None) -> Check:
        return network.check_hostname("node1", resolved, addresses, named, best)

    trapped = check(["127.0.1.1"])
    assert trapped.state == "warn"
    assert "GLOO_SOCKET_IFNAME=eth0" in trapped.remedy
    assert [check(["10.0.0.7"]).state, check([]).state] == ["pass", "warn"]
    assert check(["127.0.1.1"], "eth0").state == "pass"
    wrong = check(["10.0.0.7"], "ib0")
    assert wrong.state == "fail"
    assert "no interface ib0" in wrong.found


def test_interfaces_are_those_that_the_kernel_tells_of() -> None:
    found = network.interfaces()
    assert found["lo"] == "127.0.0.1"
    assert set(found) <= {name for _, name in socket.if_nameindex()}


def test_a_port_that_is_taken_is_found_and_one_of_a_range_is_enough() -> None:
    with socket.socket() as taken, socket.socket() as other:
        for each in (taken, other):
            each.bind(("", 0))
        taken.listen()
        port, free = taken.getsockname()[1], other.getsockname()[1]
        other.close()
        assert [network.is_free(port), network.is_free(free)] == [False, True]
        ports = {"MLflow": (port,), "rendezvous": (port, free)}
        assert [check.state for check in network.check_ports(ports)] == ["pass", "warn"]
        (failed,) = network.check_ports({"rendezvous": (port,)})
        assert failed.state == "fail"
        assert network.free_ports(2, (port, free)) == [free]


def test_the_clock_passes_warns_or_is_not_known() -> None:
    assert [network.check_clock(kept).state for kept in (True, False, None)] == ["pass", "warn", "skipped"]


def test_the_disk_is_measured_and_nothing_is_left_there(tmp_path: Path) -> None:
    found = disk.look_at_disk(str(tmp_path / "runs" / "x"), is_quick=True, checkpoint=10**6, kept=2)
    assert [check.name for check in found] == ["disk speed", "disk room"]
    assert "a checkpoint of 1 MB takes" in found[0].found
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_the_disk_is_measured_leaves_no_file(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from launch.doctor import disk\n"
        "os.fsync = lambda _: (print('written', flush=True), sys.stdin.read())\n"
        "disk.measure(Path(sys.argv[1]), 8 << 20)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "kept", "state"), [(50 * GB, 2, "pass"), (29 * GB, 2, "fail"), (4 * GB, 0, "warn")]
)
def test_room_is_held_against_the_checkpoints_that_a_run_keeps(free: int, kept: int, state: str) -> None:
    checkpoint = 10 * GB if kept else None
    assert disk.check_room(Path("/x"), free, 100 * GB, checkpoint, kept).state == state


def test_a_slow_disk_and_a_long_save_are_warned_of() -> None:
    fast = disk.Speed(1e9, 1e9)
    assert disk.check_speed(Path("/x"), fast, 10 * GB).state == "pass"
    assert disk.check_speed(Path("/x"), fast, 200 * GB).state == "warn"
    assert disk.check_speed(Path("/x"), replace(fast, write=2e7), None).state == "warn"


def test_a_checkpoint_is_as_large_as_the_one_that_a_run_writes(small_dataset: Path, tmp_path: Path) -> None:
    from launch.train import run_train

    encoder = {"preset": "vit_tiny", "width": 96, "depth": 2, "heads": 2, "patch": 8}  # more than headers
    config = tiny_config(
        small_dataset, tmp_path, train={"steps": 1}, optim={"warmup_steps": 1}, model={"encoder": encoder}
    )
    run = run_train(config, quiet=True).run
    written = sum(path.stat().st_size for path in run.glob("checkpoints/step-*/*.safetensors"))
    assert needs_of(config, 1).checkpoint_bytes == pytest.approx(written, rel=0.05)


def test_packages_out_of_their_range_fail_and_those_that_were_not_tried_warn() -> None:
    needed = ranges(
        [
            "torch>=2.11,<2.14; extra == 'train'",
            "ray==2.60.*; extra == 'data'",
            "numpy>=2.0",
            "pytest>=8; extra == 'dev'",
        ]
    )
    assert set(needed) == {"torch", "ray", "numpy"}
    pinned = pins("# why\ntorch==2.13.0  # reason\nray==2.60.0\nnumpy==2.4.6\n")
    wanted = ["torch", "ray", "numpy"]

    def states(found: dict[str, str], *required: str) -> dict[str, str]:
        return {each.name: each.state for each in check_packages(found, needed, pinned, wanted, required)}

    right = {"torch": "2.13.0+cpu", "ray": "2.60.0", "numpy": "2.4.6"}
    assert states(right) == {"packages": "pass"}
    assert states(right | {"torch": "2.12.1"}) == {"packages": "pass", "torch": "warn"}
    assert states(right | {"torch": "2.14.0"}) == {"packages": "pass", "torch": "fail"}
    assert states({"torch": "2.13.0", "numpy": "2.4.6"}) == {"packages": "pass", "for sharding": "skipped"}
    assert states({"torch": "2.13.0", "numpy": "2.4.6"}, "ray")["for sharding"] == "fail"
    assert [check_python(version, ">=3.11").state for version in ("3.11.2", "3.14.0rc1", "3.10.9")] == [
        "pass", "pass", "fail",
    ]  # fmt: skip
