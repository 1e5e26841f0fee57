"""What a trace is said to hold, on traces written by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pretrain.parts import BACKWARD, CONTEXT, LOSS, OPTIMIZER, WAIT
from pretrain.profile_table import table_text
from pretrain.trace import OTHER, REDUCTION, Profiled, clipped, length, merged, profiled, without


def event(cat: str, name: str, ts: float, dur: float, tid: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 7, "tid": tid, "ts": ts, "dur": dur, "args": args}


def mark(name: str, ts: float, dur: float, tid: int = 1) -> dict[str, Any]:
    return event("user_annotation", name, ts, dur, tid)


STEPS = [mark("ProfilerStep#3", 0, 1000), mark("ProfilerStep#4", 1000, 1000)]
MARKS = [mark(WAIT, 0, 100), mark(LOSS, 100, 300), mark(CONTEXT, 150, 200), mark(BACKWARD, 400, 400)]


def part_of(found: Profiled, name: str) -> Any:
    return next(part for part in found.parts if part.name == name)


def test_the_innermost_mark_counts_and_the_rest_is_other() -> None:
    elsewhere = mark(OPTIMIZER, 0, 1000, tid=2)  # another thread is not the loop
    found = profiled([*STEPS, *MARKS, elsewhere])
    assert found is not None
    assert found.num_steps == 2
    assert found.step_ms == 1.0
    spent = {part.name: part.host_ms * 2 * 1000 for part in found.parts if part.host_ms}
    assert spent == {WAIT: 100, LOSS: 100, CONTEXT: 200, BACKWARD: 400, OTHER: 1200}
    assert found.gpu_busy is None


def test_a_trace_without_a_whole_step_says_nothing() -> None:
    assert profiled(MARKS) is None


def test_what_runs_on_a_gpu_belongs_to_the_part_that_launched_it() -> None:
    """Also from a thread of autograd, and when it runs long after; what is waited for is counted there."""
    trace = [
        *STEPS,
        *MARKS,
        event("cuda_runtime", "cudaLaunchKernel", 160, 5, correlation=1),
        event("kernel", "gemm", 900, 300, tid=70, correlation=1),
        event("cuda_runtime", "cudaLaunchKernel", 450, 5, tid=9, correlation=2),
        event("kernel", "gemm", 1200, 100, tid=70, correlation=2),
        event("cuda_runtime", "cudaLaunchKernelExC", 500, 5, tid=9, correlation=3),
        event("kernel", "ncclDevKernel_AllReduce", 1250, 150, tid=71, correlation=3),
        event("cuda_runtime", "cudaStreamSynchronize", 700, 50),
        event("cuda_runtime", "cudaLaunchKernel", 2100, 5, correlation=4),  # after the last step
        event("kernel", "gemm", 2150, 100, tid=70, correlation=4),
        mark("nccl:all_reduce", 500, 10, tid=9),
        event("gpu_user_annotation", "nccl:all_reduce", 1250, 150, tid=71),
    ]
    found = profiled(trace)
    assert found is not None
    assert part_of(found, CONTEXT).gpu_ms == 0.15
    assert (part_of(found, BACKWARD).gpu_ms, part_of(found, BACKWARD).kernels) == (0.05, 0.5)
    assert part_of(found, REDUCTION).gpu_ms == 0.075
    assert part_of(found, BACKWARD).host_ms == 0.2  # the host did not wait for it
    assert found.syncs == {BACKWARD: 0.5}
    assert found.gpu_busy == pytest.approx(500 / 2000)  # 900 to 1400
    assert found.collectives == 0.5
    assert (found.collective_ms, found.exposed_ms) == (0.075, 0.05)  # 1300 to 1400 has nothing beside
    assert [(each.name, each.calls, each.ms) for each in found.operators] == [
        ("gemm", 1.0, 0.2),
        ("ncclDevKernel_AllReduce", 0.5, 0.075),
    ]


def test_a_collective_on_the_cpu_is_taken_from_the_backward_as_far_as_nothing_is_computed_beside() -> None:
    trace = [
        *STEPS,
        *MARKS,
        event("cpu_op", "aten::mm", 400, 200),
        mark("gloo:all_reduce", 500, 200, tid=5),
    ]
    found = profiled(trace)
    assert found is not None
    assert part_of(found, REDUCTION).host_ms == 0.05  # 600 to 700, of two steps
    assert part_of(found, BACKWARD).host_ms == pytest.approx(0.15)
    assert (found.collective_ms, found.exposed_ms) == (0.1, 0.05)


def test_an_operator_takes_its_own_time_without_what_it_calls() -> None:
    trace = [
        *STEPS,
        event("cpu_op", "aten::linear", 0, 500),
        event("cpu_op", "aten::addmm", 100, 300),
        event("cpu_op", "aten::addmm", 600, 100),
    ]
    found = profiled(trace)
    assert found is not None
    times = [(each.name, each.calls, each.ms) for each in found.operators]
    assert times == [("aten::addmm", 1.0, 0.2), ("aten::linear", 0.5, 0.1)]


def test_spans_are_the_moments_they_cover() -> None:
    rng = random.Random(0)
    for _ in range(50):
        one, other = ([(a, a + rng.randint(1, 9)) for a in rng.choices(range(40), k=6)] for _ in range(2))
        in_one, in_other = ({t for a, b in spans for t in range(a, b)} for spans in (one, other))
        left = without(merged(one), merged(other))
        assert {t for a, b in left for t in range(int(a), int(b))} == in_one - in_other
        assert length(left) == len(in_one - in_other)
        assert length(clipped(merged(one), (10, 30))) == len(in_one & set(range(10, 30)))


def test_a_table_names_the_rank_that_takes_longer() -> None:
    slow = [mark(WAIT, 0, 900)]
    ranks = []
    for rank, marks in enumerate((MARKS, slow)):
        found = profiled([*STEPS, *marks])
        assert found is not None
        parts = [vars(part) for part in found.parts]
        ranks.append({"rank": rank, "trace": "", **vars(found), "parts": parts, "operators": []})
    facts = {"first_step": 4, "device": "CPU", "precision": "fp32", "peak_tflops": None, "world_size": 2}
    text = table_text(facts | {"clips_a_rank": 2, "ranks": ranks})
    assert "steps 4 to 5" in text
    line = next(line for line in text.split("\n") if WAIT in line and "rank" not in line and "%" not in line)
    assert line.split()[-4:] == ["0.05", "0", "0.45", "1"]
