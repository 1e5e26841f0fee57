"""How often the host waits for a GPU in a step of DeepSpeed: once at every stage, to know it was finite."""

from __future__ import annotations

import pytest

from tests.counts import count_reads

pytestmark = pytest.mark.distributed
OWN = {"step: strategy/deepspeed.py _step_replicated": 1}
DEEPSPEEDS = {"step: runtime/utils.py is_invalid_grad_norm": 1}


def test_one_number_is_read_a_step_at_every_stage() -> None:
    found = count_reads()
    assert len(found) == 7
    for case, reads in found.items():
        assert reads == (OWN if case.startswith("ZeRO-0") else DEEPSPEEDS), case
