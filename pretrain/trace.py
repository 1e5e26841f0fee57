"""What a PyTorch profiler's Chrome trace says of training steps: time by part, by operator, GPU and waiting.

Times are as the thread of the loop saw them. What runs on a GPU belongs to the part in which it was launched,
by whichever thread: a backward launches from threads of its own while the loop waits for it.
Format: the Trace Event Format as Kineto writes it; `ts` and `dur` in microseconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pretrain.parts import BACKWARD, PARTS

STEP = "ProfilerStep#"
REDUCTION, OTHER = "gradient reduction", "other"
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")
SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
COLLECTIVES = ("gloo:", "nccl:", "c10d::")
COMPUTES = ("aten::", "graph_", "triton")  # autograd's own last until its hooks have talked to other ranks
MOST_OPERATORS = 12

Span = tuple[float, float]
Event = Mapping[str, Any]


class Segment(NamedTuple):
    """From `begin` to `end` the loop was in `part`, µs."""

    begin: float
    end: float
    part: str


@dataclass
class Part:
    """A mean step's. gpu_ms, kernels, syncs: of what was launched and waited for in it; 0 without a GPU.

    gflop: of its matrix products, where known.
    """

    name: str
    host_ms: float = 0.0
    gpu_ms: float = 0.0
    kernels: float = 0.0
    syncs: float = 0.0
    gflop: float | None = None


@dataclass(frozen=True)
class Operator:
    """The time of one operator itself, without those that it calls; on a GPU that of a kernel."""

    name: str
    calls: float
    ms: float


@dataclass(frozen=True)
class Profiled:
    """What was recorded, a mean step's.

    gpu_busy: share of the time in which the GPU did something; None where there is none.
    collective_ms, exposed_ms: in which collectives ran; in which nothing was computed beside them.
    """

    num_steps: int
    step_ms: float
    parts: tuple[Part, ...]
    operators: tuple[Operator, ...]
    gpu_busy: float | None = None
    collectives: float = 0.0
    collective_ms: float = 0.0
    exposed_ms: float = 0.0
    syncs: dict[str, float] = field(default_factory=dict)
    step_gflop: float = 0.0


def profiled(events: Iterable[Event]) -> Profiled | None:
    """Of a whole trace; None when no step was recorded from begin to end."""
    found = [event for event in events if event.get("ph") == "X" and "cat" in event]
    steps = [each for each in found if each["cat"] == "user_annotation" and each["name"].startswith(STEP)]
    if not steps:
        return None
    loop = steps[0]["pid"], steps[0]["tid"]
    window = min(each["ts"] for each in steps), max(each["ts"] + each["dur"] for each in steps)
    inside = [each for each in found if window[0] <= each["ts"] < window[1]]
    segments = _segments(inside, loop, window)
    parts = {name: Part(name) for name in (*PARTS, REDUCTION, OTHER)}
    for segment in segments:
        parts[segment.part].host_ms += (segment.end - segment.begin) / 1e3
    launched = [(each, at) for each, at in _launched(found) if window[0] <= at < window[1]]
    on_gpu = [each for each, _ in launched]
    for each, at in launched:
        name = _at(segments, at)
        if name == BACKWARD and _is_collective(each["name"]):
            name = REDUCTION
        parts[name].gpu_ms += each["dur"] / 1e3
        parts[name].kernels += each["cat"] == "kernel"
    syncs: Counter[str] = Counter()
    for each in inside:
        if each["cat"] in LAUNCHES and each["name"] in SYNCS:
            name = _at(segments, each["ts"])
            parts[name].syncs += 1
            syncs[name] += 1
    talking, computing = _collectives(inside, on_gpu, loop)
    exposed = without(talking, computing)
    if not on_gpu:  # waited for by the loop itself
        reducing = sum(length(clipped(exposed, (s.begin, s.end))) for s in segments if s.part == BACKWARD)
        parts[REDUCTION].host_ms += reducing / 1e3
        parts[BACKWARD].host_ms -= reducing / 1e3
    count = len(steps)
    for part in parts.values():
        part.host_ms, part.gpu_ms = part.host_ms / count, part.gpu_ms / count
        part.kernels, part.syncs = part.kernels / count, part.syncs / count
    busy = merged((each["ts"], each["ts"] + each["dur"]) for each in on_gpu)
    whole = window[1] - window[0]
    return Profiled(
        num_steps=count,
        step_ms=whole / count / 1e3,
        parts=tuple(parts.values()),
        operators=_operators(on_gpu or [e for e in inside if e["cat"] == "cpu_op"], count, bool(on_gpu)),
        gpu_busy=length(clipped(busy, window)) / whole if on_gpu else None,
        collectives=sum(map(_is_told_collective, inside)) / count,
        collective_ms=length(talking) / count / 1e3,
        exposed_ms=length(exposed) / count / 1e3,
        syncs={name: number / count for name, number in syncs.items()},
    )


def _launched(events: Sequence[Event]) -> list[tuple[Event, float]]:
    """What ran on the GPU, and when the host launched it; the two are told by one number."""
    hosts: dict[Any, float] = {
        each["args"]["correlation"]: each["ts"]
        for each in events
        if each["cat"] in LAUNCHES and "correlation" in each.get("args", ())
    }
    found = []
    for each in events:
        if each["cat"] in ON_GPU:
            at = hosts.get(each.get("args", {}).get("correlation"))
            found.append((each, each["ts"] if at is None else at))
    return found


def _is_told_collective(event: Event) -> bool:
    return event["cat"] == "user_annotation" and event["name"].startswith(("gloo:", "nccl:"))


def _is_collective(name: str) -> bool:
    return name.startswith((*COLLECTIVES, "nccl"))


def _segments(events: Iterable[Event], loop: tuple[Any, Any], window: Span) -> list[Segment]:
    """The window cut up by the innermost mark of the loop's thread; between marks `other`."""
    marks = [
        (each["ts"], each["ts"] + each["dur"], each["name"])
        for each in events
        if each["cat"] == "user_annotation" and each["name"] in PARTS and (each["pid"], each["tid"]) == loop
    ]
    marks.sort(key=lambda mark: (mark[0], -mark[1]))
    found: list[Segment] = []
    open_marks: list[tuple[float, str]] = []  # (end, part), the innermost last
    now = window[0]

    def until(time: float) -> None:
        nonlocal now
        if time > now:
            found.append(Segment(now, time, open_marks[-1][1] if open_marks else OTHER))
            now = time

    for begin, end, part in marks:
        while open_marks and open_marks[-1][0] <= begin:
            until(open_marks[-1][0])
            open_marks.pop()
        until(begin)
        open_marks.append((min(end, window[1]), part))
    while open_marks:
        until(open_marks[-1][0])
        open_marks.pop()
    until(window[1])
    return found


def _at(segments: Sequence[Segment], time: float) -> str:
    place = bisect_right(segments, time, key=lambda segment: segment.begin) - 1
    return segments[max(0, place)].part


def _collectives(
    events: Iterable[Event], on_gpu: Sequence[Event], loop: tuple[Any, Any]
) -> tuple[list[Span], list[Span]]:
    """When collectives ran, and when anything was computed: kernels, or operators of the loop's thread."""
    if on_gpu:
        told = [each for each in on_gpu if _is_collective(each["name"])]
        others = [each for each in on_gpu if not _is_collective(each["name"])]
    else:
        told, others = [], []
        for each in events:
            if each["name"].startswith(COLLECTIVES):
                told.append(each)
            elif each["name"].startswith(COMPUTES) and (each["pid"], each["tid"]) == loop:
                others.append(each)
    talking, computing = (
        merged((each["ts"], each["ts"] + each["dur"]) for each in some) for some in (told, others)
    )
    return talking, computing


def _operators(events: Iterable[Event], num_steps: int, on_gpu: bool) -> tuple[Operator, ...]:
    calls: Counter[str] = Counter()
    spent: defaultdict[str, float] = defaultdict(float)
    by_thread: defaultdict[tuple[Any, Any], list[Event]] = defaultdict(list)
    for each in events:
        by_thread[each["pid"], each["tid"]].append(each)
    for each_thread in by_thread.values():
        each_thread.sort(key=lambda event: (event["ts"], -event["dur"]))
        open_events: list[tuple[float, str]] = []
        for event in each_thread:
            begin, took, name = event["ts"], event["dur"], event["name"]
            while open_events and open_events[-1][0] <= begin:
                open_events.pop()
            if open_events and not on_gpu:  # its caller's own time is the less
                spent[open_events[-1][1]] -= took
            open_events.append((begin + took, name))
            spent[name] += took
            calls[name] += 1
    most = sorted(spent, key=lambda name: -spent[name])[:MOST_OPERATORS]
    return tuple(Operator(name, calls[name] / num_steps, spent[name] / num_steps / 1e3) for name in most)


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same moments as spans that do not touch, in order."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((begin, end))
    return found


def without(spans: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """What of the spans is in none of the others; both merged."""
    found: list[Span] = []
    place = 0
    for begin, end in spans:
        while place < len(others) and others[place][1] <= begin:
            place += 1
        later = place
        while later < len(others) and others[later][0] < end:
            if others[later][0] > begin:
                found.append((begin, others[later][0]))
            begin = max(begin, others[later][1])
            later += 1
        if begin < end:
            found.append((begin, end))
    return found


def clipped(spans: Iterable[Span], window: Span) -> list[Span]:
    return [(max(a, window[0]), min(b, window[1])) for a, b in spans if a < window[1] and b > window[0]]


def length(spans: Iterable[Span]) -> float:
    return sum(end - begin for begin, end in spans)
