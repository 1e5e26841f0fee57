"""failure.json: why a run ended before its time, for whoever looks later or from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from data_pipeline.errors import ForeframeError
from data_pipeline.storage import write_whole
from launch.ending import in_a_line

FAILURE_FILE = "failure.json"
EXIT_CRASH, EXIT_INTERRUPTED = 1, 130


@contextmanager
def telling_failure(run: Path) -> Iterator[None]:
    """For as long as a run's folder is held: what ends the block early is written there, and goes on.

    What an earlier failure left is removed first. Where result.json says how it ended, as after a stop with a
    save, nothing is written.
    """
    (run / FAILURE_FILE).unlink(missing_ok=True)
    try:
        yield
    except ForeframeError as error:
        _write(run, error.exit_code, getattr(error, "kind", type(error).__name__), str(error))
        raise
    except KeyboardInterrupt:
        _write(run, EXIT_INTERRUPTED, "KeyboardInterrupt", "interrupted a second time, without a save")
        raise
    except Exception as error:  # a crash: its traceback goes on
        _write(run, EXIT_CRASH, type(error).__name__, in_a_line(error))
        raise


def _write(run: Path, exit_code: int, kind: str, sentence: str) -> None:
    record = {
        "exit_code": exit_code,
        "kind": kind,
        "sentence": sentence,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if (run / "result.json").exists():
        return
    with suppress(OSError):  # a full disk: the exit code says what it can
        write_whole(run / FAILURE_FILE, json.dumps(record, indent=1).encode())
