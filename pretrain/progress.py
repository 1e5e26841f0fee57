"""How far a run is: all of its counters, what its health remembers, and what rollbacks have changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pretrain.config import Plan, RollbackConfig
from pretrain.schedule import Knobs
from pretrain.sentinel import History
from pretrain.strategy.base import Update


@dataclass(frozen=True)
class Changes:
    """What rollbacks have changed of the schedules so far. momentum: the least there is; 0 for none."""

    rollbacks: int = 0
    lr_scale: float = 1.0
    momentum: float = 0.0

    def after_one_more(self, config: RollbackConfig) -> Changes:
        return Changes(
            self.rollbacks + 1,
            self.lr_scale * config.lr_scale,
            max(self.momentum, config.momentum or 0.0),
        )

    def of(self, knobs: Knobs) -> Knobs:
        """The knobs of the schedule with these changes."""
        return replace(knobs, lr=knobs.lr * self.lr_scale, momentum=max(knobs.momentum, self.momentum))


@dataclass
class Progress:
    """How far a run is; all of its counters.

    samples: clips of the stream consumed, or passed over by a rollback. bad_samples: how often another stood
    in for an unreadable one. bad_ids: of the unreadable ones, in order.
    skipped_in_row, skipped: steps whose gradient was not finite.
    """

    step: int = 0
    samples: int = 0
    skipped_in_row: int = 0
    skipped: int = 0
    bad_samples: int = 0
    bad_ids: list[str] = field(default_factory=list)
    history: History = field(default_factory=History)
    changes: Changes = Changes()

    def after(self, update: Update, plan: Plan) -> Progress:
        row = 0 if update.applied else self.skipped_in_row + 1
        return replace(
            self,
            step=self.step + 1,
            samples=self.samples + plan.config.train.global_batch,
            skipped_in_row=row,
            skipped=self.skipped + (not update.applied),
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
            "changes": asdict(self.changes),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        changes = Changes(**state["changes"])
        return cls(**{**state, "history": History.from_state(state["history"]), "changes": changes})
