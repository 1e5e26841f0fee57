"""OpenStack Swift with its S3 face, all four of its servers in one process: run by Debian's own python3.

python3 -I swift_node.py FOLDER KEY SECRET prints the port. The folder holds the data and what the next start
on it needs, so that a killed one comes back on the same port with what it had stored.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pwd
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LAYERS = ("account", "container", "object")
# In the order that a request meets them. s3api asks for tempauth behind it, copy, slo and dlo.
FILTERS: dict[str, dict[str, object]] = {
    "catch_errors": {},
    "gatekeeper": {},
    "listing_formats": {},
    "bulk": {},
    "s3api": {"location": "us-east-1", "s3_acl": "false", "min_segment_size": 4096},
    "tempauth": {},
    "copy": {},
    "slo": {"max_manifest_segments": 10_000},
    "dlo": {},
}


class Cache(dict):  # type: ignore[type-arg]
    """What tempauth keeps in memcached elsewhere; times to live are longer than a test."""

    __bool__ = lambda self: True  # noqa: E731  an empty one is one nevertheless

    def set(self, key: str, value: object, **_: object) -> None:
        self[key] = value

    def delete(self, key: str, **_: object) -> None:
        self.pop(key, None)

    def incr(self, key: str, delta: int = 1, **_: object) -> int:
        self[key] = int(self.get(key, 0)) + delta
        return int(self[key])


def with_cache(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """The proxy's app with a cache, and a length in answers to HEAD, to which eventlet would add a body."""
    cache = Cache()

    def call(env: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        def start_with_length(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            if "content-length" not in {name.lower() for name, _ in headers}:
                headers = [*headers, ("Content-Length", "0")]
            return start(status, headers, *more)

        env["swift.cache"] = cache
        return app(env, start_with_length if env["REQUEST_METHOD"] == "HEAD" else start)

    return call


def section(name: str, values: dict[str, object]) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items()) + "\n"


def write_configs(folder: Path, key: str, secret: str) -> None:
    common: dict[str, object] = {
        "swift_dir": folder,
        "devices": folder / "disk",
        "recon_cache_path": folder,
        "user": pwd.getpwuid(os.getuid()).pw_name,
        "mount_check": "false",
        "fallocate_reserve": 0,
        "disable_fallocate": "true",
        "log_level": "WARNING",
    }
    hashes = section("swift-hash", {"swift_hash_path_prefix": "a", "swift_hash_path_suffix": "b"})
    policy = section("storage-policy:0", {"name": "default", "default": "yes"})
    (folder / "swift.conf").write_text(hashes + policy)
    for layer in LAYERS:
        text = section("DEFAULT", common) + section("pipeline:main", {"pipeline": f"{layer}-server"})
        text += section(f"app:{layer}-server", {"use": f"egg:swift#{layer}"})
        (folder / f"{layer}-server.conf").write_text(text)
    account, _, user = key.partition(":")
    options = {**FILTERS, "tempauth": {f"user_{account}_{user}": f"{secret} .admin"}}
    text = section("DEFAULT", common) + section(
        "pipeline:main", {"pipeline": " ".join([*FILTERS, "proxy-server"])}
    )
    text += section(
        "app:proxy-server",
        # Of a single node there is no other to ask instead: errors must not put it aside.
        {"use": "egg:swift#proxy", "account_autocreate": "true", "error_suppression_limit": 1_000_000},
    )
    for name, values in options.items():
        text += section(f"filter:{name}", {"use": f"egg:swift#{name}", **values})
    (folder / "proxy-server.conf").write_text(text)


def write_rings(folder: Path, ports: dict[str, int]) -> None:
    """One device, one replica, for each of the three layers."""
    from swift.cli.ringbuilder import main

    for layer in LAYERS:
        builder = str(folder / f"{layer}.builder")
        steps = (
            ["create", "2", "1", "0"],
            ["add", f"r1z1-127.0.0.1:{ports[layer]}/d1", "1"],
            ["rebalance"],
        )
        for step in steps:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                main(["swift-ring-builder", builder, *step])


def listen(port: int) -> socket.socket:
    """A listening socket on `port`, or on a free one for 0; made after eventlet has patched sockets."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("127.0.0.1", port))
    found.listen(128)
    return found


def main(folder: Path, key: str, secret: str) -> None:
    os.environ["EVENTLET_NO_GREENDNS"] = "yes"
    import eventlet

    eventlet.monkey_patch()
    import eventlet.wsgi
    from swift.common import utils
    from swift.common.wsgi import SwiftHttpProtocol, loadapp

    ports_file = folder / "ports.json"
    ports = json.loads(ports_file.read_text()) if ports_file.exists() else {}
    (folder / "disk" / "d1").mkdir(parents=True, exist_ok=True)
    is_new = not ports
    sockets = {layer: listen(ports.get(layer, 0)) for layer in (*LAYERS, "proxy")}
    ports = {layer: found.getsockname()[1] for layer, found in sockets.items()}
    if is_new:
        write_configs(folder, key, secret)
    utils.set_swift_dir(str(folder))
    if is_new:
        write_rings(folder, ports)
        ports_file.write_text(json.dumps(ports))
    threads = []
    for layer, found in sockets.items():
        app = loadapp(str(folder / f"{layer}-server.conf"), global_conf={"log_name": layer})
        serving = eventlet.spawn(
            eventlet.wsgi.server,
            found,
            with_cache(app) if layer == "proxy" else app,
            utils.NullLogger(),
            protocol=SwiftHttpProtocol,
            capitalize_response_headers=False,  # AWS's clients look for ETag, not Etag
        )
        threads.append(serving)
    print(ports["proxy"], flush=True)
    for serving in threads:
        serving.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
