"""A verdict on a run at each look: healthy, warning, collapsing or diverged, and why in a sentence.

Rules read figures against the same run at its start and against its own recent past, never against another
model's. One that fires is a warning; after `health.patience` looks in a row those of a collapse or of a
divergence decide. Everything is a pure function of the history, which is part of the run's state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pretrain.config import HealthConfig

Word = Literal["healthy", "warning", "collapsing", "diverged"]
KEPT_LOOKS = 40  # how far back the run's own past is looked at
FALLEN = 0.35  # share of its own recent best below which the spread has fallen fast
VOLUME = 0.03  # of spread and dimensions together, each as a share of that at the start
RUNAWAY = 2.0  # times the loss at the start, or that of the trivial answer, from which a loss has run away
LARGE_STEP = 0.1  # share of the weights' norm that one step may move them
LEARNED = 0.8  # share of the mean token's loss below which predictions have told clips or places apart
SLOW = 10  # times the patience until a loss that never was below the mean token's is a warning


@dataclass(frozen=True)
class Verdict:
    """The state of a run in a word, and the sentence behind it."""

    word: Word
    reason: str

    @property
    def is_trouble(self) -> bool:
        """Whether `health.on_collapse` is asked what to do."""
        return self.word in ("collapsing", "diverged")


@dataclass(frozen=True)
class Reading:
    """What the sentinel reads at a look.

    spread: std across samples of the features that are judged. rank: their RankMe. loss: of the step.
    guess, mean_token, copied: what the objective says of predictions, and of two trivial answers.
    largest_step: the step's norm as a share of the weights', of the module where it is largest; nan where not
    known. skipped: steps in a row that were not finite.
    """

    step: int
    spread: float
    rank: float
    loss: float
    guess: float = math.nan
    mean_token: float = math.nan
    copied: float = math.nan
    largest_step: float = math.nan
    skipped: int = 0


@dataclass
class History:
    """What the sentinel remembers.

    start: the first reading, before training has changed anything. streaks: looks in a row at which a rule
    has fired. sound_step: the last look at which no sign of trouble had; a run goes back to it. recent:
    (step, spread) of late looks. blind: looks in a row at which the mean token would have done as well;
    has_learned: it once did not.
    """

    start: Reading | None = None
    last: Reading | None = None
    streaks: dict[str, int] = field(default_factory=dict)
    sound_step: int = 0
    blind: int = 0
    has_learned: bool = False
    recent: list[tuple[int, float]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """Plain values; JSON has no nan and no infinity, which are null here, and nan when read again."""

        def plain(reading: Reading | None) -> dict[str, Any] | None:
            if reading is None:
                return None
            return {key: value if math.isfinite(value) else None for key, value in asdict(reading).items()}

        return {
            "start": plain(self.start),
            "last": plain(self.last),
            "streaks": dict(self.streaks),
            "sound_step": self.sound_step,
            "blind": self.blind,
            "has_learned": self.has_learned,
            "recent": [list(pair) for pair in self.recent],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> History:
        def reading(plain: dict[str, Any] | None) -> Reading | None:
            if plain is None:
                return None
            known: dict[str, Any] = {
                key: math.nan if value is None else value for key, value in plain.items()
            }
            return Reading(**known)

        recent = [(int(step), float(spread)) for step, spread in state["recent"]]
        return cls(
            reading(state["start"]),
            reading(state["last"]),
            dict(state["streaks"]),
            int(state["sound_step"]),
            int(state["blind"]),
            bool(state["has_learned"]),
            recent,
        )


def judge(history: History, reading: Reading, config: HealthConfig) -> Verdict:
    """Take one look into the history, and judge it. The first look is what later ones are held against."""
    if history.start is None and math.isfinite(reading.spread):
        history.start = reading
    history.last = reading
    if math.isfinite(reading.spread):
        history.recent = [*history.recent, (reading.step, reading.spread)][-KEPT_LOOKS:]
    history.blind = history.blind + 1 if reading.guess >= reading.mean_token else 0
    history.has_learned = history.has_learned or reading.guess < LEARNED * reading.mean_token
    fired = _fired(history, reading, config)
    history.streaks = {name: history.streaks.get(name, 0) + 1 for name in fired}
    if not SIGNS & fired.keys():
        history.sound_step = reading.step
    return verdict_of(history, config)


def verdict_of(history: History, config: HealthConfig) -> Verdict:
    """What the looks so far amount to; also right after a resume."""
    reading, start = history.last, history.start
    if reading is None:
        return Verdict("healthy", "not looked at yet")
    sentences = _fired(history, reading, config)
    if not sentences:
        if start is None:
            return Verdict("warning", "features cannot be compared: fewer than two clips a forward")
        share = reading.spread / max(start.spread, 1e-12)
        reason = f"features vary across clips by {share:.0%} of what they did at the start"
        return Verdict("healthy", f"{reason}{_beside_trivial(reading)}")
    words: list[Word] = []
    for name in sentences:
        decided = history.streaks.get(name, 0) >= config.patience
        words.append(DECIDES[name] if decided and name in DECIDES else "warning")
    word: Word = max(words, key=ORDER.index)
    telling = [name for name, said in zip(sentences, words, strict=True) if said == word]
    looks = max(history.streaks.get(name, 0) for name in telling)
    said = "; ".join(sentences[name] for name in telling)
    return Verdict(word, f"{said} ({looks} look{'s' if looks > 1 else ''} in a row)")


def _beside_trivial(reading: Reading) -> str:
    """Which trivial answer would do as well as the prediction does; nothing when none would."""
    named = {"the mean token": reading.mean_token, "a copy of the nearest seen token": reading.copied}
    as_good = [name for name, loss in named.items() if reading.guess >= loss]
    return f"; {' and '.join(as_good)} would be guessed as well" if as_good else ""


ORDER: tuple[Word, ...] = ("healthy", "warning", "collapsing", "diverged")
DECIDES: Mapping[str, Word] = {
    "spread": "collapsing",
    "rank": "collapsing",
    "volume": "collapsing",
    "not finite": "diverged",
    "runaway": "diverged",
}
# Of a trouble to come or there: from before them is where a run goes back to. Other warnings may last for
# long, and are no reason to go far back; a fast fall is none after KEPT_LOOKS.
SIGNS = frozenset({*DECIDES, "falling"})


def _fired(history: History, now: Reading, config: HealthConfig) -> dict[str, str]:
    """The rules that fire, each with its sentence."""
    start, found = history.start, {}
    if not math.isfinite(now.loss) or now.skipped:
        row = f", {now.skipped} steps in a row skipped" if now.skipped else ""
        found["not finite"] = f"loss or gradients are not finite{row}"
    if start is None:
        return found
    if not math.isfinite(now.spread):
        found["unseen"] = "features are not finite, or fewer than two clips a forward"
    elif now.spread < config.std_floor * start.spread:
        share = now.spread / start.spread
        found["spread"] = (
            f"features vary across clips by {now.spread:.3g}, {share:.1%} of the {start.spread:.3g} at the "
            f"start: every clip gets nearly the same"
        )
    elif now.spread < FALLEN * max(spread for _, spread in history.recent):
        best_step, best = max(history.recent, key=lambda pair: pair[1])
        found["falling"] = (
            f"features vary across clips by {now.spread:.3g}, {now.spread / best:.0%} of the {best:.3g} at "
            f"step {best_step}"
        )
    if now.rank < config.rank_floor * start.rank:
        found["rank"] = (
            f"features use {now.rank:.1f} dimensions (RankMe), {now.rank / start.rank:.0%} of the "
            f"{start.rank:.0f} at the start"
        )
    spread_share, rank_share = now.spread / max(start.spread, 1e-12), now.rank / max(start.rank, 1e-12)
    if not found.keys() & {"spread", "rank"} and spread_share * rank_share < VOLUME:
        found["volume"] = (
            f"features vary across clips by {spread_share:.0%} of what they did at the start, in "
            f"{rank_share:.0%} of the dimensions"
        )
    if now.step > start.step and math.isfinite(now.loss):
        ceiling = RUNAWAY * max(start.loss, now.mean_token if math.isfinite(now.mean_token) else 0.0)
        if now.loss > ceiling:
            found["runaway"] = f"the loss is {now.loss:.3g}, and was {start.loss:.3g} at the start"
    if history.blind and (history.has_learned or history.blind >= SLOW * config.patience):
        before = "it had been well below" if history.has_learned else f"never in {history.blind} looks below"
        found["blind"] = (
            f"predictions have a loss of {now.guess:.3g}, the mean token would have {now.mean_token:.3g}: "
            f"{before}"
        )
    if now.largest_step > LARGE_STEP:
        found["large step"] = f"one step moved a module's weights by {now.largest_step:.0%} of their norm"
    return found
