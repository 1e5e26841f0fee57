"""OpenStack Swift behind its S3 face: a real store, which refuses wrong credentials and survives a kill -9.

It needs Debian's or Ubuntu's package python3-swift; without it, tests that ask for it are skipped.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.faults import FaultProxy
from tests.servers.process import Server
from tests.servers.s3 import forget_s3, make_bucket, use_s3

# The one that apt's packages are for; -I, or this file would be taken for the package swift.
PYTHON = ["/usr/bin/python3", "-I"]
KEY, SECRET = "test:tester", "a-key-of-swift"
# Fixtures that give an empty bucket: the parameters of what is to run on both stores.
BUCKETS = (
    pytest.param("s3_bucket", id="moto"),
    pytest.param("swift_bucket", id="swift", marks=pytest.mark.cluster),
)


@functools.cache
def _is_installed() -> bool:
    script = "import swift.common.middleware.s3api.s3api, swift.proxy.server"
    try:
        return not subprocess.run([*PYTHON, "-c", script], capture_output=True, check=False).returncode
    except OSError:
        return False


@pytest.fixture(scope="session")
def swift_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running Swift, which a test may kill, and must start again."""
    if not _is_installed():
        pytest.skip("needs OpenStack Swift: apt-get install python3-swift")
    folder = tmp_path_factory.mktemp("swift")
    node = str(Path(__file__).with_name("swift_node.py"))
    server = Server([*PYTHON, node, str(folder), KEY, SECRET], folder / "log")
    yield server
    server.kill()


@pytest.fixture
def swift_bucket(swift_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty bucket of Swift, with the AWS settings to reach it."""
    use_s3(monkeypatch, swift_server.endpoint, KEY, SECRET)
    yield make_bucket()
    forget_s3()


@pytest.fixture
def swift_proxy(swift_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before Swift, with the AWS settings to reach it; Swift runs again afterwards."""
    proxy = FaultProxy(swift_server.endpoint)
    use_s3(monkeypatch, proxy.endpoint, KEY, SECRET)
    yield proxy
    proxy.close()
    forget_s3()
    if not swift_server.is_alive:
        swift_server.start()
