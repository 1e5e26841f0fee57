"""What the nodes of a job tell each other: notes in the store that Ray's first node keeps anyway."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

from data_pipeline.errors import LostPeerError, UsageError

NAMESPACE = b"foreframe"
JOB, END = "job", "end"  # who the job is, from its start on; how it ended, for its last moments
CALL_S = 10.0
KNOCK_S = 3.0
SILENT_S = 30.0  # a first node that refuses connections is gone at once; one that is silent may be busy
REFUSED = 3  # connections in a row
POLL_S = 1.0


class Board:
    """Of the Ray whose first node is at host:port. Its calls raise LostPeerError when it does not answer."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._client: Any = None
        self._refused, self._silent_since_s = 0, time.monotonic()

    def read(self, key: str) -> dict[str, Any] | None:
        found = self._call(lambda client: client.internal_kv_get(key.encode(), NAMESPACE, CALL_S))
        return None if found is None else dict(json.loads(found))

    def write(self, key: str, note: dict[str, Any], within_s: float, gives_up: Callable[[], bool]) -> None:
        """As soon as Ray has time for it. gives_up: asked while it has none."""
        data, deadline_s = json.dumps(note).encode(), time.monotonic() + within_s
        while True:
            try:
                self._call(lambda client: client.internal_kv_put(key.encode(), data, True, NAMESPACE, CALL_S))
                return
            except LostPeerError:
                if gives_up() or time.monotonic() > deadline_s:
                    raise
            time.sleep(POLL_S)

    def nodes(self) -> set[str]:
        """Names of the nodes that are there."""
        found = self._call(lambda client: client.get_all_node_info(timeout=CALL_S))
        return {str(node.node_name) for node in found.values() if node.state == 0}  # GcsNodeInfo.ALIVE

    def is_there(self) -> bool:
        """Whether the first node can still be counted on, as a TCP connection tells at once."""
        try:
            self.knock()
        except ConnectionRefusedError:
            self._refused += 1
            return self._refused < REFUSED
        except OSError:
            return time.monotonic() - self._silent_since_s < SILENT_S
        self._refused, self._silent_since_s = 0, time.monotonic()
        return True

    def knock(self) -> str:
        """The address of this machine from which the first one is reached. Raises: OSError."""
        with socket.create_connection((self._host, self._port), timeout=KNOCK_S) as way:
            return str(way.getsockname()[0])

    def _call(self, ask: Callable[[Any], Any]) -> Any:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.exceptions import AuthenticationError, RayError

        try:
            self.knock()  # Ray's client would wait for half a minute
            if self._client is None:
                host = f"[{self._host}]" if ":" in self._host else self._host
                self._client = GcsClient(address=f"{host}:{self._port}")
            return ask(self._client)
        except AuthenticationError as error:
            raise UsageError(
                f"the Ray at {self._host}:{self._port} refuses this node's token: it is another user's, or "
                f"RAY_AUTH_MODE or ~/.ray/auth_token are not the same on all nodes"
            ) from error
        except (OSError, RayError) as error:
            words = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise LostPeerError(
                f"the first node, {self._host}:{self._port}, does not answer: {words}"
            ) from error
