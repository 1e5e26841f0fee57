"""Why a run should end before its plan does."""

from __future__ import annotations

from typing import Protocol


class Stops(Protocol):
    """Why this process was asked to stop (a signal, the end of its time), or None."""

    @property
    def reason(self) -> str | None: ...
