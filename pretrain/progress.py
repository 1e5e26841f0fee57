"""How far a run is: all of its counters, and what its health remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pretrain.config import Plan
from pretrain.health import History
from pretrain.strategy.base import Update


@dataclass
class Progress:
    """How far a run is; all of its counters.

    samples: clips consumed by the optimizer. bad_samples: how often another stood in for an unreadable one.
    bad_ids: of the unreadable ones, in order.
    skipped_in_row, skipped: steps whose gradient was not finite.
    """

    step: int = 0
    samples: int = 0
    skipped_in_row: int = 0
    skipped: int = 0
    bad_samples: int = 0
    bad_ids: list[str] = field(default_factory=list)
    history: History = field(default_factory=History)

    def after(self, update: Update, plan: Plan) -> Progress:
        row = 0 if update.applied else self.skipped_in_row + 1
        return Progress(
            step=self.step + 1,
            samples=self.samples + plan.config.train.global_batch,
            skipped_in_row=row,
            skipped=self.skipped + (not update.applied),
            bad_samples=self.bad_samples,
            bad_ids=self.bad_ids,
            history=self.history,
        )

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "samples": self.samples,
            "skipped_in_row": self.skipped_in_row,
            "skipped": self.skipped,
            "bad_samples": self.bad_samples,
            "bad_ids": self.bad_ids,
            "history": self.history.state(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        return cls(**{**state, "history": History.from_state(state["history"])})
