"""Ray: the same generator function over many items, bounded in flight, lost workers made good.

The only file of the pipeline that knows Ray; launch/ray_nodes.py starts it on several machines. Work is a
generator function of one item, so that its progress comes back while it runs; it must be idempotent and yield
the same things when run again.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import platform
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data_pipeline.config import RayConfig
from data_pipeline.encode import encoder_versions
from data_pipeline.errors import DataError, ForeframeError, UsageError, why

if TYPE_CHECKING:
    from ray.job_config import JobConfig

Item = TypeVar("Item")

OBJECT_STORE_BYTES = 200 << 20  # records and sizes only pass through it; the smallest that Ray likes
KNOCK_S = 5.0
NODE_ANSWERS_S = 120.0  # a node starts its first worker within seconds, a busy one within a minute
IN_FLIGHT = 2  # tasks handed out for each worker
COUNT_EVERY_S = 5.0  # nodes join a cluster, and leave it, while a job runs


def count_workers(config: RayConfig) -> int:
    """Workers asked for, or one for each core: of the cluster in use, else that this process may use."""
    import ray

    if config.workers:
        return config.workers
    if config.address and ray.is_initialized():
        return max(1, int(ray.cluster_resources().get("CPU", 1)))
    return len(os.sched_getaffinity(0))


def _guarded(
    work: Callable[..., Iterator[Any]], driver: tuple[str, int], item: Any, *shared: Any
) -> Iterator[Any]:
    """`work`, ended when the job that asked for it was killed: Ray's workers outlive it by half a minute, in
    which they would write into whatever the next job makes."""
    host, pid = driver
    for thing in work(item, *shared):
        if host == platform.node() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            raise SystemExit(f"the job with process {pid} was killed")
        yield thing


def ray_environment() -> dict[str, str]:
    """What Ray's processes are started with: no telemetry, and this package where workers look for it.

    What the environment says already stays.
    """
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # A node behind a cut link refuses nothing, it is silent; Ray would wait minutes for tasks there.
        "RAY_grpc_client_keepalive_time_ms": "10000",
        "RAY_grpc_client_keepalive_timeout_ms": "20000",
    }
    found = {name: os.environ.get(name, value) for name, value in settings.items()}
    return found | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, [code_folder(), *paths])))}


def code_folder() -> str:
    """The folder that this process imported data_pipeline from."""
    return str(Path(__file__).resolve().parent.parent)


class _WorkerPaths(list[str]):
    """Where workers look for modules before they look anywhere else: where this process found its own.

    Ray puts the folder that one works in first, whatever PYTHONPATH and PYTHONSAFEPATH say, and workers would
    run what lies there: an edited checkout, in place of the code that was submitted. No setting is against
    it; `connect` of ray/_private/worker.py extends this list, and workers look into the last of it first.
    Where code travels as working_dir of a job Ray extends nothing, and workers look into that. A node without
    this folder goes on to what is installed there.
    """

    def extend(self, folders: Iterable[str]) -> None:
        super().extend([*(folder for folder in folders if folder != os.getcwd()), code_folder()])


def _job_config() -> JobConfig:
    from ray.job_config import JobConfig

    found = JobConfig()
    found._py_driver_sys_path = _WorkerPaths()
    return found


@contextlib.contextmanager
def _same_sigterm() -> Iterator[None]:
    """Ray's start replaces what SIGTERM does, and a job would end with a code of Ray's; its end makes it kill
    outright, unseen by Python.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if is_main and before is not None:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def cluster(config: RayConfig) -> Iterator[None]:
    """Ray for the length of a `with`: a fresh local one, or a connection to `config.address`.

    Inside another `cluster` it is that one, which stays up when this one ends.
    Raises: UsageError when the cluster at that address does not answer.
    """
    os.environ.update(ray_environment())
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "configure_logging": True,
    }
    hushed = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with _same_sigterm(), hushed[0], hushed[1]:
        try:
            if config.address:
                _knock(config.address)
                ray.init(address=config.address, job_config=_job_config(), **quiet)
            else:
                ray.init(
                    address="local",
                    num_cpus=count_workers(config),
                    num_gpus=0,
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    job_config=_job_config(),
                    **quiet,
                )
        except (OSError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
            where = f"the Ray cluster at {config.address}" if config.address else "Ray on this machine"
            raise UsageError(f"{where} could not be reached or started: {error}") from error
    _silence_obituaries()
    try:
        if config.address:
            check_nodes()
        yield
    finally:
        with _same_sigterm():
            ray.shutdown()


def _knock(address: str) -> None:
    """Raises: OSError when nothing listens at host:port; Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?\[?([^\[\]]+?)\]?:(\d+)", address)
    if found:
        socket.create_connection((found[1], int(found[2])), timeout=KNOCK_S).close()


def check_nodes() -> None:
    """Hold each node's libraries against this one's: others would write other bytes for the same clip.

    Raises: UsageError with the nodes that differ or have no foreframe.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(num_cpus=0, max_retries=0)(encoder_versions)
    asked = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU"):
            there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            asked[node["NodeManagerHostname"], node["NodeID"]] = probe.options(
                scheduling_strategy=there
            ).remote()
    here, wrong = encoder_versions(), []
    for (host, node_id), answer in asked.items():
        try:
            found = ray.get(answer, timeout=NODE_ANSWERS_S)
        except ray.exceptions.RayError as error:
            if not any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes()):
                continue  # lost meanwhile: it does no work
            words = str(error).strip().splitlines()[-1]
            wrong.append(f"{host} cannot run foreframe ({words})")
            continue
        if found != here:
            differ = ", ".join(
                f"{n} {found.get(n)} (here {here[n]})" for n in here if found.get(n) != here[n]
            )
            wrong.append(f"{host} has {differ}")
    if wrong:
        listed = "".join(f"\n  {line}" for line in sorted(set(wrong)))
        raise UsageError(
            f"the nodes of the Ray cluster must have the libraries of this one, or clips would come out "
            f"otherwise from node to node:{listed}\nInstall the same release of foreframe on them"
        )


def _silence_obituaries() -> None:
    """Ray prints a page for each worker that dies, with no setting against it; the work is done again, and
    when it cannot be, `stream` says so. Should Ray move this function, the pages are back, nothing else."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_, **__: None


def stream(
    work: Callable[..., Iterator[Any]], items: Sequence[Item], shared: tuple[Any, ...], config: RayConfig
) -> Iterator[tuple[int, Any]]:
    """(index of the item, thing) for each thing that `work(item, *shared)` yields, as they come.

    Things of one item keep their order. Inside a `cluster`.
    Raises: the ForeframeError that `work` raised; DataError when workers died past `max_retries`.
    """
    import ray

    remote = ray.remote(num_cpus=1, num_returns="streaming", max_retries=config.max_retries)(_guarded)
    driver = (platform.node(), os.getpid())
    common = [ray.put(value) for value in shared]
    limit, counted_s = IN_FLIGHT * count_workers(config), time.monotonic()
    running: dict[Any, int] = {}
    waiting = iter(enumerate(items))
    try:
        while True:
            if time.monotonic() - counted_s > COUNT_EVERY_S:
                limit, counted_s = IN_FLIGHT * count_workers(config), time.monotonic()
            while len(running) < limit and (entry := next(waiting, None)) is not None:
                running[remote.remote(work, driver, entry[1], *common)] = entry[0]
            if not running:
                return
            ready, _ = ray.wait(list(running), num_returns=1, timeout=0.5, fetch_local=False)
            for task in ready:
                try:
                    yield running[task], ray.get(next(task))
                except StopIteration:
                    del running[task]
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ForeframeError):
            raise error.cause from None
        if isinstance(error.cause, OSError):
            raise DataError(f"{error.cause.filename or 'a file'} on a worker: {why(error.cause)}") from error
        raise
    except ray.exceptions.RayError as error:
        words = str(error).strip().splitlines()[0]
        if isinstance(error, (ray.exceptions.LocalRayletDiedError, ray.exceptions.RaySystemError)):
            raise DataError(f"Ray itself came to an end ({words}); the same command goes on") from error
        raise DataError(
            f"workers died {config.max_retries + 1} times over the same task ({words}); "
            f"the machine may be short of memory: fewer `ray.workers` help. The same command goes on"
        ) from error
    finally:
        for task in running:
            with contextlib.suppress(ray.exceptions.RayError):  # ending anyway; shutdown follows
                ray.cancel(task, force=False)
