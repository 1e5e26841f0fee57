"""What a config names elsewhere: S3 addresses, local data, and MLflow."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from data_pipeline.errors import ForeframeError, MissingError, RefusedError, StorageError
from launch.doctor.check import Check
from launch.figures import in_bytes
from pretrain.tracking.base import without_credentials

ANSWER_S = 10.0
FULL_BYTES, QUICK_BYTES = 64 << 20, 8 << 20
RANGE_BYTES, AT_ONCE = 2 << 20, 8
SLOW_BYTES_S = 20e6
SQLITE = "sqlite:///"


def check_bucket(
    name: str, address: str, *, is_quick: bool, is_written: bool = False, holds: str | None = None
) -> list[Check]:
    """Reach an s3:// address once, without the patience of a job, and read from it.

    name: of the setting; is_written: jobs write there, so a small object is put and removed again. holds:
    what must lie there, as a finished data set's dataset.json.
    """
    reached = _reach(name, address, is_written=is_written, holds=holds)
    return [reached] if reached.state == "fail" else [reached, *_read(name, address, is_quick)]


def _reach(name: str, address: str, *, is_written: bool, holds: str | None) -> Check:
    started_s = time.perf_counter()
    try:
        listed = _list(address)
        took_s = time.perf_counter() - started_s
        found = f"{address}: answers in {1000 * took_s:.0f} ms, {_count(listed)}"
        if is_written:
            _try_to_write(address)
            found += "; takes and removes an object"
    except ForeframeError as error:
        return _refusal(name, error)
    if not listed and not is_written:
        remedy = "see that the address is right: nothing lies below it"
        return Check(name, "fail", found, remedy)
    if holds is not None and not any(item["Key"] == f"{_parts(address)[1]}{holds}" for item in listed):
        remedy = "write it with `foreframe shard`, or run that again if it was interrupted"
        return Check(name, "fail", f"{address} is no finished data set: it has no {holds}", remedy)
    return Check(name, "pass", found)


def _count(listed: list[dict[str, Any]]) -> str:
    if len(listed) >= 1000:
        return "1,000 objects and more below"
    return f"{len(listed):,} object{'' if len(listed) == 1 else 's'} below"


def _refusal(name: str, error: ForeframeError) -> Check:
    """The store's refusal, told apart: credentials, no such bucket, unreachable."""
    text, _, more = str(error).partition("; ")
    remedy = more.partition("; ")[0]
    if isinstance(error, MissingError):
        text, _, remedy = str(error).partition(": ")
    elif isinstance(error, StorageError):
        text, remedy = str(error).partition("; tried")[0], "check AWS_ENDPOINT_URL, the network and proxies"
    elif isinstance(error, RefusedError):
        remedy = remedy or "check the AWS settings"
    return Check(name, "fail", text, remedy or "see the store's own log")


def _once(address: str, attempt: Callable[[Any], Awaitable[Any]]) -> Any:
    """What one request to S3 returns. Raises: our errors, with the full address."""
    from botocore.exceptions import BotoCoreError

    from data_pipeline.s3.errors import TROUBLE, named, settings_error
    from data_pipeline.s3.requests import client_of_s3, run

    async def ask() -> Any:
        try:
            client = await client_of_s3()
        except (BotoCoreError, OSError, ValueError) as error:  # ValueError: an endpoint that is no address
            raise settings_error(error, address) from error
        try:
            return await asyncio.wait_for(attempt(client), ANSWER_S)
        except TimeoutError as error:
            raise StorageError(f"{address}: the store does not answer within {ANSWER_S:.0f} s") from error
        except TROUBLE as error:
            raise named(error, address, 1, 0.0) from error

    return run(ask())


def _parts(address: str) -> tuple[str, str]:
    """Bucket, and prefix with a slash at its end; empty for the whole bucket."""
    bucket, _, folder = address.removeprefix("s3://").partition("/")
    return bucket, f"{folder.strip('/')}/" if folder.strip("/") else ""


def _list(address: str) -> list[dict[str, Any]]:
    """The first thousand objects below an address."""
    bucket, prefix = _parts(address)
    found = _once(address, lambda client: client.list_objects_v2(Bucket=bucket, Prefix=prefix))
    return list(found.get("Contents", ()))


def _try_to_write(address: str) -> None:
    bucket, prefix = _parts(address)
    key = f"{prefix}.foreframe-doctor-{uuid.uuid4().hex}"
    _once(address, lambda client: client.put_object(Bucket=bucket, Key=key, Body=b"1"))
    _once(address, lambda client: client.delete_object(Bucket=bucket, Key=key))


def _read(name: str, address: str, is_quick: bool) -> list[Check]:
    """How fast ranges of the largest object listed there come, several at once; nothing where none is."""
    bucket, _ = _parts(address)
    try:
        largest = max(_list(address), key=lambda item: int(item["Size"]), default=None)
        if largest is None or not largest["Size"]:
            return []
        size, key = int(largest["Size"]), largest["Key"]
        wanted = min(size, QUICK_BYTES if is_quick else FULL_BYTES)

        async def read(client: Any) -> int:
            gate = asyncio.Semaphore(AT_ONCE)

            async def one(start: int) -> int:
                span = f"bytes={start}-{min(start + RANGE_BYTES, wanted) - 1}"
                async with gate:
                    answer = await client.get_object(Bucket=bucket, Key=key, Range=span)
                    async with answer["Body"] as body:
                        return len(await body.read())

            return sum(await asyncio.gather(*(one(start) for start in range(0, wanted, RANGE_BYTES))))

        started_s = time.perf_counter()
        got = _once(f"s3://{bucket}/{key}", read)
        took_s = time.perf_counter() - started_s
    except ForeframeError as error:
        return [] if isinstance(error, MissingError) else [_refusal(f"{name}, read", error)]
    speed = got / max(took_s, 1e-9)
    found = f"{in_bytes(speed)}/s ({in_bytes(got)} of {key.rsplit('/', 1)[-1]}, {AT_ONCE} ranges at once)"
    if speed < SLOW_BYTES_S and got >= RANGE_BYTES:
        remedy = "place nodes and store in one region; data.remote=cache brings shards once"
        return [Check(f"{name}, read", "warn", found, remedy)]
    return [Check(f"{name}, read", "pass", found)]


def check_local_data(name: str, address: str) -> Check:
    """A data set in a folder of this machine."""
    from data_pipeline.format import read_info
    from data_pipeline.storage import Storage

    try:
        info = read_info(Storage(address))
    except ForeframeError as error:
        text, _, remedy = str(error).partition(": ")
        return Check(name, "fail", text, remedy or "write it with `foreframe shard`")
    return Check(name, "pass", f"{address}: {info.name}, a finished data set")


def check_source(name: str, address: str) -> Check:
    """A folder, file or glob of videos on this machine."""
    path = Path(address).expanduser()
    there = path.exists() or any(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    if there:
        return Check(name, "pass", address)
    return Check(name, "fail", f"{address} is not there", "name a folder, a file, a glob, or s3://…")


def check_mlflow(uri: str | None, ours: str | None) -> list[Check]:
    """Whether the tracker's address takes points, with its version. ours: the client's version, if any."""
    if uri is None:
        return [Check("MLflow", "pass", "no server: mlflow.db in the run's folder")]
    if uri.startswith(SQLITE):
        return [_check_sqlite(uri)]
    if not uri.startswith(("http://", "https://")):
        return [Check("MLflow", "skipped", f"{without_credentials(uri)} is not looked at")]
    shown = without_credentials(uri)
    try:
        told = _ask(f"{uri.rstrip('/')}/version").strip()
        _ask(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search", {"max_results": 1})
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            return [Check("MLflow", "fail", f"{shown} refuses access ({error.code})", remedy)]
        found = f"{shown} answers {error.code} {error.reason}: no MLflow server, or one that fails"
        return [Check("MLflow", "fail", found, "check tracker.uri and the server's log")]
    except (OSError, ValueError) as error:  # urllib's URLError is an OSError; ValueError: no address
        reason = getattr(error, "reason", None) or error
        found = f"{shown} does not answer ({without_credentials(str(reason))})"
        return [Check("MLflow", "fail", found, "start it or correct tracker.uri: a first start needs it")]
    if ours is not None and told.split(".")[:2] != ours.split(".")[:2]:
        remedy = f"run mlflow=={ours} there: others were not tried"
        return [Check("MLflow", "warn", f"{shown}: version {told}, the client is {ours}", remedy)]
    return [Check("MLflow", "pass", f"{shown}: version {told}")]


def _check_sqlite(uri: str) -> Check:
    path = Path(uri.removeprefix(SQLITE))
    place = path if path.exists() else path.parent
    if not place.exists():
        return Check("MLflow", "fail", f"{path.parent} does not exist", f"`mkdir -p {path.parent}`")
    if not os.access(place, os.W_OK):
        return Check("MLflow", "fail", f"{place} may not be written", "mend its permissions")
    return Check("MLflow", "pass", f"{path}, {'there' if path.exists() else 'made by the first run'}")


def _ask(address: str, body: dict[str, Any] | None = None) -> str:
    """The text that a server answers, with the credentials that MLflow's own client would send."""
    request = urllib.request.Request(address, method="GET" if body is None else "POST")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    user, token = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user is not None:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
    elif token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        return bytes(answer.read(1 << 20)).decode("utf-8", "replace")
