"""Is the run healthy: the verdict of its last look, how verdicts followed one another, the numbers behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.figures import Metrics, judged_features, value_at_start
from pretrain.recent import recent_loss
from pretrain.report.records import Record, is_finite, last_number, numbers


@dataclass(frozen=True)
class Health:
    """A word for the features' state, and the sentence behind it."""

    word: str
    reason: str


@dataclass(frozen=True)
class Stretch:
    """Looks in a row with the same verdict, from one step to another."""

    word: str
    first: int
    last: int


@dataclass(frozen=True)
class Measure:
    """A number of the last look beside what it was before training, or at the first look."""

    before: float
    now: float


def judge_health(metrics: Metrics, floor: float, start: str = "untrained") -> Health:
    """The verdict of the last look; of a run that wrote none, what its spread says.

    floor: share of the spread at the start below which features count as collapsed. start: its name.
    """
    if metrics and "loss" in metrics[-1] and metrics[-1]["loss"] is None:
        return Health(
            "diverged", "the last logged loss is not finite: lower the learning rate, or clip gradients"
        )
    said = next((line for line in reversed(metrics) if isinstance(line.get("verdict"), str)), None)
    if said is not None:
        return Health(said["verdict"], str(said.get("verdict_reason") or "no reason was written down"))
    return _judge_spread(metrics, floor, start)


def _judge_spread(metrics: Metrics, floor: float, start: str) -> Health:
    judged = judged_features(metrics)
    std, rankme = (f"health/{judged}_{what}" for what in ("std", "rankme"))
    looks = numbers(metrics, std)
    if not looks:
        return Health("not looked at", "no look at the features has been logged yet")
    before = value_at_start(metrics, std) or looks[0]
    share = looks[-1] / max(before, 1e-12)
    ranks = numbers(metrics, rankme)
    of_rank = f", RankMe {ranks[-1]:.0f} ({start} {ranks[0]:.0f})" if ranks else ""
    spread = f"features vary across clips by {share:.0%} of {_whose(start)} spread{of_rank}"
    if share < floor:
        return Health("collapsed", f"{spread}: below {floor:.0%}, every clip gets nearly the same features")
    if looks[-1] < 0.5 * max(looks):
        return Health("warning", f"{spread}, and less than half of what they had earlier in this run")
    return Health("healthy", f"{spread}; the floor is {floor:.0%}")


def _whose(start: str) -> str:
    return "the untrained encoder's" if start == "untrained" else "the start's"


def timeline(metrics: Metrics) -> list[Stretch]:
    """The verdicts of all looks, those that are the same in a row taken together."""
    found: list[Stretch] = []
    for line in metrics:
        word = line.get("verdict")
        if not isinstance(word, str):
            continue
        if found and found[-1].word == word:
            found[-1] = Stretch(word, found[-1].first, line["step"])
        else:
            found.append(Stretch(word, line["step"], line["step"]))
    return found


OF_FEATURES = {
    "std": "std across clips",
    "rankme": "RankMe",
    "effective_rank": "effective rank",
    "correlation": "correlation of dimensions",
}
OF_BOTH = {
    "health/alignment": "prediction and target, cosine",
    "health/explained": "variance of the targets explained",
    "health/ema_distance": "distance of the target from the context encoder",
}


def measure(metrics: Metrics, key: str) -> Measure | None:
    """A metric at the start and now; None where it was never measured."""
    values = numbers(metrics, key)
    if not values:
        return None
    before = value_at_start(metrics, key)
    return Measure(values[0] if before is None else before, values[-1])


def spread_share(metrics: Metrics, *, is_frozen: bool = False) -> float | None:
    """The judged features' spread at the last look, as a share of what it was before training."""
    key = f"health/{judged_features(metrics, is_frozen=is_frozen)}_std"
    values = numbers(metrics, key)
    if not values:
        return None
    return values[-1] / max(value_at_start(metrics, key) or values[0], 1e-12)


@dataclass(frozen=True)
class Trivial:
    """The loss beside that of an answer that needs no learning; names it."""

    loss: float
    name: str
    answer: float

    @property
    def share(self) -> float:
        return self.loss / max(self.answer, 1e-12)

    @property
    def is_beaten(self) -> bool:
        """Whether the predictions are better than it, and so have learned anything."""
        return self.loss < self.answer


def beside_trivial(metrics: Metrics) -> Trivial | None:
    """The loss of the predictions beside the better of the trivial answers, where both were measured."""
    answers = {
        name: value
        for key, name in (("health/loss_mean_token", "the mean token"), ("health/loss_copy", "a copy"))
        if (value := last_number(metrics, key)) is not None
    }
    loss = last_number(metrics, "health/loss_prediction")
    loss = recent_loss(metrics) if loss is None else loss
    if not answers or loss is None:
        return None
    name = min(answers, key=lambda n: answers[n])
    return Trivial(loss, name, answers[name])


def say_change(change: Record) -> str:
    """What was done about a verdict, in words: a line of health.jsonl."""
    response = str(change.get("response") or "noted")
    if is_finite(change.get("to_step")):
        response += f" to step {int(change['to_step']):,}"
    changes = change.get("changes")
    if isinstance(changes, dict) and changes:
        response += ", with " + ", ".join(f"{key}={_short(value)}" for key, value in changes.items())
    return response


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def num_rollbacks(changes: Sequence[Record]) -> int:
    return sum(1 for change in changes if change.get("response") == "rolled back")
