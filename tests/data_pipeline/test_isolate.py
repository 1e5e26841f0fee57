from pathlib import Path

import pytest

from data_pipeline import isolate
from data_pipeline.errors import DataError
from data_pipeline.isolate import Child, CrashedError, OutOfMemoryError, TimedOutError

TASKS = """
import os, sys, time
from data_pipeline.errors import DataError

def count(number):
    yield from range(number)

def pid():
    yield os.getpid()

def hang():
    yield "begun"
    time.sleep(600)

def crash():
    yield "begun"
    os.abort()

def leave():
    os._exit(7)
    yield

def eat():
    yield len(bytearray(1 << 30))

def refuse():
    yield "begun"
    raise DataError("no video in it")

def stumble():
    yield {}["nothing"]

def chatter():
    print("noise on stdout", flush=True)
    os.write(1, b"more noise")
    yield "clean"
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "hostile_tasks.py").write_text(TASKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = Child(512 << 20)
    yield child
    child.close()


def run(child: Child, task: str, *args: object, timeout_s: float = 20.0) -> list[object]:
    return list(child.stream(f"hostile_tasks:{task}", *args, timeout_s=timeout_s))


def test_items_come_back_in_order_from_one_process(child: Child) -> None:
    assert run(child, "count", 5) == [0, 1, 2, 3, 4]
    assert run(child, "pid") == run(child, "pid")


@pytest.mark.parametrize(
    ("task", "error", "words"),
    [
        ("crash", CrashedError, "crashed: SIGABRT"),
        ("leave", CrashedError, "exit code 7"),
        ("eat", OutOfMemoryError, "more memory"),
        ("refuse", DataError, "no video in it"),
        ("stumble", CrashedError, "unexpected KeyError"),
    ],
)
def test_whatever_a_file_does_costs_one_task(
    child: Child, task: str, error: type[DataError], words: str
) -> None:
    with pytest.raises(error, match=words):
        run(child, task)
    assert run(child, "count", 2) == [0, 1]


def test_a_hang_is_killed_and_named(child: Child) -> None:
    got: list[object] = []
    with pytest.raises(TimedOutError, match=r"silent for 0\.3 s"):
        got.extend(child.stream("hostile_tasks:hang", timeout_s=0.3))
    assert got == ["begun"]
    assert run(child, "count", 2) == [0, 1]


def test_a_listener_that_leaves_early_spoils_nothing(child: Child) -> None:
    stream = child.stream("hostile_tasks:count", 100, timeout_s=20)
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    assert run(child, "count", 3) == [0, 1, 2]


def test_what_a_decoder_prints_is_not_taken_for_an_answer(
    child: Child, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(child, "chatter") == ["clean"]
    assert capfd.readouterr() == ("", "")


def test_a_child_that_starts_too_slowly_is_killed_and_answers_nothing_later(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept, its late greeting would be the first task's answer, and each answer the next one's."""
    with monkeypatch.context() as patch:
        patch.setattr(isolate, "START_S", 1e-3)
        with pytest.raises(TimedOutError, match="the decoder process did not start"):
            run(child, "count", 2)
    assert child._process is None
    assert [run(child, "count", number) for number in (1, 3)] == [[0], [0, 1, 2]]


def test_a_first_message_that_is_no_greeting_ends_the_child(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(child, "_receive", lambda *_: ("item", 3))
        with pytest.raises(CrashedError, match=r"did not start: its first message is 'item'"):
            run(child, "count", 2)
    assert child._process is None


def test_an_answer_of_an_unknown_kind_ends_the_child(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run(child, "pid")
    with monkeypatch.context() as patch:
        patch.setattr(child, "_receive", lambda *_: ("ready", None))
        with pytest.raises(CrashedError, match=r"said 'ready', which is no answer"):
            run(child, "count", 2)
    assert child._process is None
    assert run(child, "pid") != before
