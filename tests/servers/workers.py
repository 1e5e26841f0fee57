"""A test's S3 settings in the workers of a Ray that is older than the test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from data_pipeline import execute
from data_pipeline.s3 import objects, requests

CONSTANTS = ((requests, ("READ_TIMEOUT_S", "RETRY_FOR_S", "LONGEST_PAUSE_S")), (objects, ("PART_BYTES",)))
_plain = execute._guarded


def take_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers run with this process's AWS settings and CONSTANTS, as they are now.

    A user's workers inherit what was exported before the command; those of a test's Ray have one of
    before the test.
    """
    settings = _settings()

    def guarded(
        work: Callable[..., Iterator[Any]], driver: tuple[str, int], item: Any, *shared: Any
    ) -> Iterator[Any]:
        adopt(settings)
        yield from _plain(work, driver, item, *shared)

    monkeypatch.setattr(execute, "_guarded", guarded)


def _settings() -> tuple[dict[str, str], list[dict[str, Any]]]:
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return variables, [{name: vars(module)[name] for name in names} for module, names in CONSTANTS]


def adopt(settings: tuple[dict[str, str], list[dict[str, Any]]]) -> None:
    """In a worker: make `settings` its own."""
    before = _settings()
    if before == settings:
        return
    for name in before[0]:
        del os.environ[name]
    os.environ.update(settings[0])
    for (module, _), values in zip(CONSTANTS, settings[1], strict=True):
        vars(module).update(values)
    requests.filesystem.cache_clear()
