"""What a forward leaves behind is let go before the next one: else a step would hold it twice."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any, cast

from pretrain.looks import Looks
from pretrain.loop import train


class Thing:
    """Something that can be seen to be gone."""


class Forwards:
    """An engine, batches and all else that the loop asks for; counts what of earlier forwards is alive."""

    def __init__(self) -> None:
        self.alive: list[int] = []
        self._made: list[weakref.ref[Thing]] = []
        self.looks = Looks.__new__(Looks)
        self.plan = SimpleNamespace(
            steps=3, micro_batches=2, config=None, looks_at=lambda step: True, saves_at=lambda step: False
        )
        self.looks._plan, self.looks._forwards, self.looks._last = cast(Any, self.plan), 0, None

    def made(self) -> Thing:
        thing = Thing()
        self._made.append(weakref.ref(thing))
        return thing

    def targets(self, batch: object) -> Thing:
        self.alive.append(sum(each() is not None for each in self._made))
        return self.made()

    def loss(self, batch: object, targets: object) -> Thing:
        return self.made()

    def take(self, count: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(step=0)] * count

    def after_step(self, *_: object, **__: object) -> None:
        assert self.looks._last is not None, "the last forward of a step is looked at"
        self.looks._last = None


def test_no_forward_holds_what_an_earlier_one_gave(monkeypatch: Any) -> None:
    seen = Forwards()
    monkeypatch.setattr("pretrain.loop.knobs_at", lambda step, config: SimpleNamespace(momentum=1.0))
    nothing = SimpleNamespace(applied=False)
    engine = SimpleNamespace(
        targets=seen.targets, loss=seen.loss, backward=lambda _: None, ask=lambda _: lambda: False,
        step=lambda *_, **__: nothing,
    )  # fmt: skip
    watch = SimpleNamespace(
        after_batch=lambda batch, output: seen.looks.after_batch(batch, output),
        after_step=seen.after_step, goes_back=False, stops=False,
    )  # fmt: skip
    progress = SimpleNamespace(step=0, samples=0, changes=SimpleNamespace(of=lambda knobs: knobs))

    def after(update: object, plan: object) -> SimpleNamespace:
        progress.step += 1
        return progress

    progress.after = after
    batches = SimpleNamespace(take=seen.take, seek=lambda *_: None)
    saves = SimpleNamespace(save=lambda *_, **__: None, follow=lambda: None)
    parts: Any = (seen.plan, engine, batches, saves, watch, SimpleNamespace(reason=None), progress)
    train(*parts)
    assert seen.alive == [0] * 6
