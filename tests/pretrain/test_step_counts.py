"""What a step asks of a GPU: one wait of the host, and no more launches, copies or bytes than it did.

Counted on the CPU, without a clock (tests/counts).
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.utils import backend_registration

from tests.counts import GOLDEN, count_steps, golden_of, grown
from tests.counts.count import Counts
from tests.counts.steps import CASES, config_for, run

# The host has to know whether the step was finite before it goes on: whether it is skipped, and counted.
THE_ONE_WAIT = {"step: reads a number, pretrain/strategy/single.py step": 1}


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip(f"torch {torch.__version__} lets no device be registered in Python")
    return count_steps()


def test_a_wait_is_seen_where_there_is_one_and_only_there(counted: dict[str, Any]) -> None:
    unseen = [name for name, count in counted["planted"]["waits"].items() if count != 1]
    invented = [name for name, count in counted["planted"]["no waits"].items() if count]
    assert (unseen, invented) == ([], [])


def test_ranks_are_asked_beside_the_step(counted: dict[str, Any]) -> None:
    """The answer waits for the moment that it was there, not for what was queued since."""
    assert counted["asked"] == {"said": True, "waited for": 1, "waits": 0}


def test_the_device_that_is_none_computes_what_a_cpu_computes(counted: dict[str, Any]) -> None:
    for name, case in counted["cases"].items():
        assert case["losses"] == pytest.approx(case["plain_losses"], rel=1e-6), name


def test_the_host_waits_once_a_step(counted: dict[str, Any]) -> None:
    """Each wait is named with the phase and the function. Make what is read with the batch (Masks.laid_out,
    Copies), keep it on the device until it is logged (Update), or send it beside the work (World.ask).
    """
    for name, case in counted["cases"].items():
        more = [f"{n} × {where}" for where, n in case["syncs"].items() if THE_ONE_WAIT.get(where) != n]
        assert not more, f"{name}: the host waits for the GPU elsewhere than once for the norm: {more}"
        assert case["syncs"] == THE_ONE_WAIT, f"{name}: the wait that decides about the step is not seen"


def test_a_step_asks_for_no_more_than_it_did(counted: dict[str, Any]) -> None:
    """Mend the code, or, when the change is meant, write the new numbers with their reason:
    `python -m tests.golden.write counts` and commit both.
    """
    golden, found = json.loads(GOLDEN.read_text()), golden_of(counted)
    if golden["torch"] != found["torch"]:
        pytest.skip(f"the golden counts are of torch {golden['torch']}, this is {found['torch']}")
    assert sorted(golden["cases"]) == sorted(found["cases"])
    changed = [line for name in CASES for line in grown(name, found["cases"][name], golden["cases"][name])]
    told = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
    assert not changed, f"{told}. If that is meant: python -m tests.golden.write counts, and say why"


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_says_the_same(name: str) -> None:
    """CUDA itself warns of whatever has the host wait, in the step that is counted."""
    from pretrain.strategy.base import World

    class Warned(Counts):
        def start(self) -> None:
            torch.cuda.set_sync_debug_mode("warn")

        def stop(self) -> None:
            torch.cuda.set_sync_debug_mode("default")

    case = CASES[name]
    with pytest.warns(UserWarning, match="called a synchronizing") as warned:
        run(config_for(case), World(0, 1, torch.device("cuda", 0)), case, Warned())
    waits = [f"{w.filename}:{w.lineno}" for w in warned if "called a synchronizing" in str(w.message)]
    assert len(waits) == 1, waits
