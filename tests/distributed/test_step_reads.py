"""How often the host waits for a GPU in a step of DeepSpeed: once, to know it was finite, but for ZeRO-3."""

from __future__ import annotations

import pytest

from tests.counts import count_reads

pytestmark = pytest.mark.distributed
OWN = {"step: a number, strategy/deepspeed.py _step_replicated": 1}
DEEPSPEEDS = {"step: a number, runtime/utils.py is_invalid_grad_norm": 1}
# Its second buffer is let go when the whole device is done.
OVERLAPPED = {"backward: the device, zero/stage_1_and_2.py independent_gradient_partition_epilogue": 1}
# Gradients are on a stream of their own; and what would be gathered lies here whole, as there is one rank.
ZERO_3 = {
    "backward: a stream, zero/stage3.py independent_gradient_partition_epilogue": 1,
    "step: a stream, zero/partition_parameters.py wait": 1,
    "target: a stream, zero/partition_parameters.py wait": 1,
}
EACH_FORWARD = ("backward", "target")


def expected(case: str) -> dict[str, int]:
    if case.startswith("ZeRO-0"):
        return OWN
    more = ZERO_3 if case.startswith("ZeRO-3") else OVERLAPPED if "overlapped" in case else {}
    forwards = 2 if "2 forwards" in case else 1
    times = {why: forwards if why.startswith(EACH_FORWARD) else count for why, count in more.items()}
    return DEEPSPEEDS | times


def test_the_host_waits_for_one_number_a_step_and_for_what_is_named_here() -> None:
    """DeepSpeed is told that its device has streams, as a GPU: on the CPU it leaves out its waits."""
    found = count_reads()
    assert len(found) == 8
    for case, waits in found.items():
        assert waits == expected(case), case
