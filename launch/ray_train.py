"""`python -m launch.ray_train`: a training run on nodes of a Ray cluster, as the job that was sent there.

Ray finds the nodes and holds them; what runs on each is the node's command of every other place,
`launch supervise`, in a process of its own. An actor on each node starts it and says how it ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.errors import EXIT_LOST_PEER, ForeframeError, LostPeerError, UsageError
from launch.processes import SUPERVISOR_VARIABLE, send
from launch.ray_start import free_port
from launch.submit.ray import CONFIG
from launch.submit.shell import DUMPS, DUMPS_VARIABLE, GPU_VARIABLES

PLACED_S = 600.0  # nodes that others use may be free so much later
POLL_S = 1.0
ENDS_S = 60.0  # after one node ended, the others see that their peers are gone
ANSWERS_S = 60.0


class NodeProcess:
    """An actor that holds one node: starts a command there and tells of it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> tuple[str, int]:
        """Of this node, and a port that is free there."""
        import ray

        return str(ray.util.get_node_ip_address()), free_port()

    def start(self, words: Sequence[str], workdir: str, logs: str | None) -> str:
        """Start `python -m launch WORDS`; what is wrong with this node, "" when nothing is.

        logs: of nodes with GPUs; where ranks leave their last collectives after a hang.
        """
        if not Path(workdir).is_dir():
            return f"{os.uname().nodename} has no folder {workdir}, which must be shared between the nodes"
        code = str(Path(__file__).resolve().parents[1])
        given = [f"{code}/{CONFIG}" if word == CONFIG else word for word in words]
        environment = {
            **(GPU_VARIABLES if logs else {}),
            **({DUMPS_VARIABLE: f"{logs}/{DUMPS}"} if logs and Path(logs).is_dir() else {}),
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")])),
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",
            SUPERVISOR_VARIABLE: str(os.getpid()),  # it ends when this actor does, however that ends
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "launch", *given], cwd=workdir, env=environment, start_new_session=True
        )
        return ""

    def poll(self) -> int | None:
        """Its exit code, 6 when a signal ended it; None while it runs."""
        code = None if self._process is None else self._process.poll()
        return EXIT_LOST_PEER if code is not None and code < 0 else code

    def stop(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            send(self._process.pid, number)


class _Stop:
    number: int | None = None

    def received(self, number: int, _: object) -> None:
        self.number = number


def train_on_nodes(
    words: Sequence[str], workdir: str, logs: str | None, nodes: int, resources: dict[str, float]
) -> int:
    """Run the node's command on that many nodes; the exit code of the first.

    words: with NODE and HOST:PORT where a node's number and the first one's address belong.
    Raises: LostPeerError when the nodes are not to be had, or one is lost; UsageError.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    stop = _Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop.received)
    group = placement_group([dict(resources) for _ in range(nodes)], strategy="STRICT_SPREAD")
    try:
        _wait_for_nodes(group, nodes, resources, stop)
        actor = ray.remote(NodeProcess)
        held = [
            actor.options(
                num_cpus=resources["CPU"],
                num_gpus=resources.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, number),
            ).remote()
            for number in range(nodes)
        ]
        try:
            host, port = ray.get(held[0].address.remote(), timeout=ANSWERS_S)
            at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            commands = [
                [{"NODE": str(number), "HOST:PORT": at}.get(word, word) for word in words]
                for number in range(nodes)
            ]
            started = [
                each.start.remote(own, workdir, logs) for each, own in zip(held, commands, strict=True)
            ]
            wrong = [told for told in ray.get(started, timeout=ANSWERS_S) if told]
            if wrong:
                raise UsageError(wrong[0])
            return _until_end(held, stop)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            _stop_all(held, signal.SIGTERM)
            _all_ended(held, ENDS_S)
            raise LostPeerError("a node of the cluster was lost: the same submission goes on") from error
    finally:
        remove_placement_group(group)


def _wait_for_nodes(group: Any, nodes: int, resources: dict[str, float], stop: _Stop) -> None:
    deadline_s = time.monotonic() + PLACED_S
    while not group.wait(timeout_seconds=POLL_S):
        if stop.number is not None:
            raise SystemExit(128 + stop.number)
        if time.monotonic() > deadline_s:
            each = " and ".join(f"{num:g} {what}" for what, num in resources.items())
            raise LostPeerError(f"{nodes} nodes with {each} were not free within {PLACED_S:.0f} s")


def _until_end(held: Sequence[Any], stop: _Stop) -> int:
    """Wait for the first node's end; the others end with it, and it with them."""
    import ray

    is_forwarded, failed_s = False, float("inf")
    while True:
        codes = ray.get([each.poll.remote() for each in held], timeout=ANSWERS_S)
        if codes[0] is not None:
            _all_ended(held, ENDS_S)
            return int(codes[0])
        failed = [code for code in codes if code]
        if failed and failed_s == float("inf"):
            failed_s = time.monotonic()
        if time.monotonic() - failed_s > ENDS_S and not is_forwarded:
            is_forwarded = True
            _stop_all(held, signal.SIGTERM)
        if stop.number is not None and not is_forwarded:
            is_forwarded = True
            _stop_all(held, signal.SIGTERM)
        time.sleep(POLL_S)


def _stop_all(held: Sequence[Any], number: int) -> None:
    import ray

    for each in held:
        with suppress(ray.exceptions.RayError):  # lost: nothing of it runs
            ray.get(each.stop.remote(number), timeout=ANSWERS_S)


def _all_ended(held: Sequence[Any], within_s: float) -> None:
    """Wait until every node's command has ended; what is left then ends with its actor."""
    import ray

    deadline_s = time.monotonic() + within_s
    left = list(held)
    while left and time.monotonic() < deadline_s:
        for each in list(left):
            try:
                if ray.get(each.poll.remote(), timeout=ANSWERS_S) is not None:
                    left.remove(each)
            except ray.exceptions.RayError:
                left.remove(each)
        time.sleep(POLL_S)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.ray_train", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus", type=int, required=True, help="of each node")
    parser.add_argument("--cpus", type=int, required=True, help="of each node")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--logs", help="a folder for what NCCL leaves after a hang; of nodes with GPUs")
    parser.add_argument("words", nargs="+", help="of `python -m launch` on each node")
    given = parser.parse_args(arguments)
    resources = {"CPU": float(given.cpus), **({"GPU": float(given.gpus)} if given.gpus else {})}
    import ray

    ray.init(address="auto", log_to_driver=True)
    try:
        return train_on_nodes(given.words, given.workdir, given.logs, given.nodes, resources)
    except ForeframeError as error:
        print(f"{error.label}: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
