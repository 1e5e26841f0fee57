"""moto's S3 server in a process of its own, and a fresh bucket for each test.

It keeps objects in memory and takes any credentials; tests/servers/swift.py is a store that refuses some.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.servers.process import Server

if TYPE_CHECKING:
    from data_pipeline.storage import Storage

# A bucket that is there from the start, since filling one takes longer than a test should.
MANY_BUCKET = "many-objects"
MANY_NAMES = tuple(f"{number % 50}/{number}" for number in range(2500))
_numbers = itertools.count()


def use_s3(monkeypatch: pytest.MonkeyPatch, endpoint: str, key: str = "test", secret: str = "test") -> None:
    """Point this process, and those it starts, at `endpoint`: nothing of the machine's own AWS settings."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    forget_s3()


def forget_s3() -> None:
    """Let the next request read the AWS settings anew."""
    from data_pipeline.s3.requests import filesystem

    filesystem.cache_clear()


def make_bucket() -> str:
    """The s3:// address of a new bucket at the endpoint that is set."""
    from data_pipeline.s3.requests import filesystem

    bucket = f"bucket-{os.getpid()}-{next(_numbers)}"
    filesystem(os.getpid()).call_s3("create_bucket", Bucket=bucket)
    return f"s3://{bucket}"


def unfinished_uploads(storage: Storage) -> list[str]:
    """Keys of uploads that were begun and not completed, as the store lists them."""
    from data_pipeline.s3.requests import filesystem

    bucket = storage.root.split("/")[2]
    found = filesystem(os.getpid()).call_s3("list_multipart_uploads", Bucket=bucket)
    return [upload["Key"] for upload in found.get("Uploads", ())]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of moto's server, which runs until the session ends."""
    server = Server([sys.executable, "-m", "tests.servers.s3"], tmp_path_factory.mktemp("s3") / "log")
    yield server.endpoint
    server.kill()


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty bucket of moto's server, with the AWS settings to reach it."""
    use_s3(monkeypatch, s3_server)
    yield make_bucket()
    forget_s3()


def _serve() -> None:
    # So that small files go in parts too; what fits into a MiB stays in memory nevertheless.
    os.environ |= {"S3_UPLOAD_PART_MIN_SIZE": "4096", "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(1 << 20)}
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    WSGIRequestHandler.protocol_version = "HTTP/1.1"  # else a connection for each request
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(MANY_BUCKET, "us-east-1")
    for name in MANY_NAMES:
        backend.put_object(MANY_BUCKET, name, b"")
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    os.environ["MOTO_PORT"] = str(server.server_port)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve()
