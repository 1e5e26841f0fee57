"""DeepSpeed's hostfile, read as its own launcher reads it, and errors that name the line."""

from __future__ import annotations

import contextlib
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import UsageError
from launch.submit.hostfile import parse_hostfile, take

HOSTS = st.sampled_from(["a", "b-1", "10.0.0.7", "user@c"])
LINES = st.one_of(
    st.builds(
        lambda host, gap, slots, tail: f"{host}{gap}slots={slots}{tail}",
        HOSTS,
        st.sampled_from([" ", "\t", "   "]),
        st.integers(0, 5),
        st.sampled_from(["", " ", "  # the old one", "#"]),
    ),
    st.sampled_from(
        ["", "   ", "# hosts", "  # b slots=2", "a", "a slots", "slots=2", "a slots = 2", "a slots=x"]
    ),
)
NODES = st.builds(
    lambda host, slots: host + (":" + ",".join(map(str, slots)) if slots else ""),
    st.sampled_from(["a", "b-1", "10.0.0.7", "d"]),
    st.lists(st.integers(0, 5), max_size=3),
)
FILTERS = st.lists(NODES, max_size=3).map("@".join)


@pytest.fixture(autouse=True)
def quiet() -> None:
    """DeepSpeed logs what it refuses."""
    logging.getLogger("DeepSpeed").setLevel(logging.CRITICAL)


@given(lines=st.lists(LINES, max_size=5), include=FILTERS, exclude=FILTERS)
@settings(max_examples=150, deadline=None)
def test_hosts_and_slots_are_those_of_deepspeeds_launcher(
    lines: list[str], include: str, exclude: str
) -> None:
    from deepspeed.launcher.runner import _parse_hostfile, parse_inclusion_exclusion

    theirs: dict[str, list[int]] | None = None
    with contextlib.suppress(ValueError):
        # Hosts of 0 slots, which are of no use to it, stay in theirs while nothing is filtered.
        found = parse_inclusion_exclusion(_parse_hostfile(lines), include, exclude)
        theirs = {host: slots for host, slots in found.items() if slots} or None
    ours: dict[str, list[int]] | None = None
    with contextlib.suppress(UsageError):
        ours = take(parse_hostfile(lines), include, exclude)
    assert ours == theirs
    assert list(ours or ()) == list(theirs or ())  # ranks are counted in this order


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["a slots=2", "", "b"], "hosts:3: 'b' is no line of a hostfile: need `NAME slots=N`"),
        (["a slots=2", "# a", "a slots=1"], "hosts:3: a stands in line 1 already"),
        (["a slots=2 max_slots=4"], "hosts:1: 'a slots=2 max_slots=4' is no line"),
        (["a slots=99999"], "hosts:1: a has 99999 slots: need at most 1024"),
        (["# nothing"], "hosts names no host"),
    ],
)
def test_an_error_names_the_line(lines: list[str], told: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_hostfile(lines, "hosts")
    assert str(raised.value).startswith(told)


@pytest.mark.parametrize(
    ("include", "exclude", "told"),
    [
        ("a", "b", "include and exclude are both given"),
        ("c", "", "include names 'c': need one of a, b"),
        ("", "a:2", "exclude names slot '2' of a: need 0 to 1"),
        ("a:", "", "include names slot '' of a"),
        ("", "a@b", "exclude is 'a@b': no slot is left"),
    ],
)
def test_what_cannot_be_taken_is_a_sentence(include: str, exclude: str, told: str) -> None:
    with pytest.raises(UsageError) as raised:
        take({"a": 2, "b": 1}, include, exclude)
    assert str(raised.value).startswith(told)
