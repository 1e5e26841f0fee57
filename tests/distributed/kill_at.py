"""As a rank's sitecustomize: SIGKILL before the n-th file operation of a checkpoint's save.

KILL_AT names rank, number (from 1; 0 counts only) and a folder; there `operations` lists what was seen, and
`killed` keeps a second start from being killed. Audit events come from Python itself, before each operation.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

EVENTS = {
    "open": "write",
    "os.rename": "rename",
    "os.mkdir": "make",
    "os.remove": "remove",
    "os.rmdir": "remove folder",
}
FROM = "step-00000006"  # operations count from the first that names this checkpoint


def install(rank: int, number: int, folder: Path) -> None:
    seen: list[str] = []
    has_begun = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal has_begun
        if event not in EVENTS or not arguments:
            return
        if event == "open" and not (
            isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        has_begun = has_begun or FROM in path
        if not has_begun or "checkpoints" not in path or "-00000009" in path:
            return
        seen.append(f"{EVENTS[event]} {path.partition('checkpoints/')[2]}")
        if number == 0:
            (folder / f"operations-{rank}.json").write_text(json.dumps(seen))
        elif len(seen) == number and not (folder / "killed").exists():
            (folder / "killed").write_text(seen[-1])
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def begin() -> None:
    given = os.environ.get("KILL_AT")
    if given and os.environ.get("RANK") == given.split(":")[0]:
        rank, number, folder = given.split(":", 2)
        install(int(rank), int(number), Path(folder))
