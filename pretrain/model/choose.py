"""Which attention a run uses: what is named if it works here, else the fastest on the rows at hand.

On a GPU each stack has its own: the context encoder's sequences are short and of many lengths, the
predictor's are whole or nearly, the target's are whole and go forward only. On CPU sequences of different
lengths are faster one by one than laid out under a mask, short ones apart (benchmarks/attention.py).
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor

from data_pipeline.errors import UsageError
from pretrain.model.attention import KERNELS, Backend, Packing, attend

log = logging.getLogger(__name__)

PACKED: tuple[Backend, ...] = ("varlen", "xformers", "xformers_flash", "xformers_efficient", "sdpa")
UNIFORM: tuple[Backend, ...] = (*PACKED, "sdpa_flash", "sdpa_cudnn", "sdpa_efficient")
WARM, ROUNDS, CALLS = 2, 5, 4


class Rows(NamedTuple):
    """What a stack attends over. lengths: of the sequences of one forward.

    frame: tokens of a moment, where those must not see later ones. goes_backward: False without gradient.
    """

    lengths: tuple[int, ...]
    heads: int
    head_width: int
    goes_backward: bool = True
    frame: int | None = None

    @property
    def candidates(self) -> tuple[Backend, ...]:
        if self.frame is not None:
            return ("sdpa",)
        return UNIFORM if len(set(self.lengths)) == 1 else PACKED


@dataclass(frozen=True)
class Chosen:
    """The attention of one stack. ms: of a forward, and a backward where it has one, of all that were timed.

    refused: why others do not work here, in a line each.
    """

    backend: Backend
    ms: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def sentence(self, stack: str) -> str:
        others = sorted((ms, name) for name, ms in self.ms.items() if name != self.backend)
        told = ", ".join(f"{name} {ms:.3g}" for ms, name in others)
        return f"attention of {stack}: {self.backend}, {self.ms[self.backend]:.3g} ms ({told or 'no other'})"


Probe = Callable[[Backend, torch.device, torch.dtype, Rows], str | None]
Time = Callable[[Backend, torch.device, torch.dtype, Rows], float]


def why_not(backend: Backend, device: torch.device, dtype: torch.dtype, rows: Rows) -> str | None:
    """None when it attends over a small row like these, forward and backward; else why it does not."""
    packing = Packing((8, 8) if backend in KERNELS else (5, 3, 8), device)
    shape = (packing.total, rows.heads, rows.head_width)
    q = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells of each kernel that it was not to take, why not
        try:
            attend(q, q, q, packing, backend).sum().backward()
        except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
            return _line(error)
    return None


def milliseconds(backend: Backend, device: torch.device, dtype: torch.dtype, rows: Rows) -> float:
    """Of one forward, and backward where these rows have one: the median of a few rounds.

    Raises: what it does not work with, as RuntimeError when memory is short.
    """
    packing = Packing(rows.lengths, device)
    shape = (packing.total, 3, rows.heads, rows.head_width)
    qkv = torch.randn(shape, device=device, dtype=dtype, requires_grad=rows.goes_backward)

    def call() -> None:
        with torch.set_grad_enabled(rows.goes_backward):
            q, k, v = qkv.unbind(1)
            out: Tensor = attend(q, k, v, packing, backend)
        if rows.goes_backward:
            out.backward(torch.ones_like(out))
            qkv.grad = None

    def finished_s() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for _ in range(WARM):
        call()
    found = []
    for _ in range(ROUNDS):
        began_s = finished_s()
        for _ in range(CALLS):
            call()
        found.append(1000 * (finished_s() - began_s) / CALLS)
    return statistics.median(found)


def choose(
    wanted: str,
    stacks: Mapping[str, Rows],
    device: torch.device,
    dtype: torch.dtype,
    kept: Mapping[str, Backend] | None = None,
    *,
    probe: Probe = why_not,
    clock: Time = milliseconds,
) -> dict[str, Chosen]:
    """The attention of each stack, by its name.

    wanted: model.attention. kept: what was chosen when the run began, which goes on with it where it works:
    another one rounds differently. Nothing is probed where nothing is to be chosen.
    Raises: UsageError when one was asked for by name and does not work here.
    """
    if wanted == "auto" and device.type != "cuda":
        return {name: Chosen("segments") for name in stacks}
    if wanted in ("sdpa", "segments"):
        return {name: Chosen("sdpa" if wanted == "sdpa" else "segments") for name in stacks}
    found = {}
    for name, rows in stacks.items():
        if wanted == "auto":
            found[name] = _fastest(name, rows, device, dtype, (kept or {}).get(name), probe, clock)
        else:
            found[name] = _named(cast(Backend, wanted), rows, device, dtype, probe)
    return found


def _named(backend: Backend, rows: Rows, device: torch.device, dtype: torch.dtype, probe: Probe) -> Chosen:
    if rows.frame is not None:
        return Chosen("sdpa")
    reason = probe(backend, device, dtype, rows)
    if reason is not None:
        raise UsageError(
            f"model.attention is {backend}, which does not work here: {reason}; set model.attention=auto, "
            f"which takes the fastest that does"
        )
    return Chosen(backend)


def _fastest(
    name: str,
    rows: Rows,
    device: torch.device,
    dtype: torch.dtype,
    kept: Backend | None,
    probe: Probe,
    clock: Time,
) -> Chosen:
    """Of the candidates for these rows; SDPA where no other works, which is said."""
    candidates = rows.candidates
    if kept in candidates:
        reason = probe(kept, device, dtype, rows)
        if reason is None:
            log.info("attention of %s: %s, as when the run began", name, kept)
            return Chosen(kept)
        log.warning(
            "attention of %s was %s, which does not work here: %s; another rounds differently",
            name, kept, reason,
        )  # fmt: skip
    if len(candidates) == 1:
        return Chosen(candidates[0])
    ms: dict[str, float] = {}
    refused: dict[str, str] = {}
    for backend in candidates:
        reason = probe(backend, device, dtype, rows)
        if reason is None:
            try:
                ms[backend] = clock(backend, device, dtype, rows)
                continue
            except (
                RuntimeError,
                ValueError,
            ) as error:  # of long rows: memory that is short, too large a grid
                reason = _line(error)
        refused[backend] = reason
    if not ms:
        reasons = "; ".join(f"{backend}: {reason}" for backend, reason in refused.items())
        raise UsageError(f"no attention works for {name} on {device}: {reasons}")
    fastest: Backend = min((each for each in candidates if each in ms), key=lambda each: ms[each])
    chosen = Chosen(fastest, ms, refused)
    log.info("%s", chosen.sentence(name))
    if set(ms) == {"sdpa"}:
        log.warning("attention of %s is SDPA, as nothing else works here: %s", name, _said(refused))
    return chosen


def _said(refused: Mapping[str, str]) -> str:
    return "; ".join(f"{backend}: {reason}" for backend, reason in refused.items())


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
