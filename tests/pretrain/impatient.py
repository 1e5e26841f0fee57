"""Loader workers that give up on a store as soon as the process that tests them does."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from data_pipeline.s3 import requests
from pretrain.data import stream as stream_module

_begin_worker = stream_module._begin_worker


def _begin_impatient_worker(constants: dict[str, float], pulse_file: Path | None, worker: int) -> None:
    vars(requests).update(constants)
    _begin_worker(pulse_file, worker)


def take_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have loader workers run with this process's retry constants, as they are now."""
    names = ("READ_TIMEOUT_S", "RETRY_FOR_S", "LONGEST_PAUSE_S")
    constants = {name: vars(requests)[name] for name in names}
    begin = functools.partial(_begin_impatient_worker, constants)
    monkeypatch.setattr(stream_module, "_begin_worker", begin)
