"""What was learned: tables of the offline probe, scores over steps, which checkpoint a probe would take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pretrain.figures import Axes, Curve, Figure, Metrics
from pretrain.recent import recent_loss
from pretrain.report.records import Record, is_finite, scores_of

LEARNED = 0.05  # a probe's gain over the untrained encoder from which the report may call it one
MOST_SCORES = 12  # that get a figure of their own
TRAINED, UNTRAINED = "trained", "untrained"


@dataclass(frozen=True)
class Row:
    """One encoder's scores. encoder: trained, untrained, …; how: the readout, where a table has several."""

    encoder: str
    how: str
    scores: dict[str, float]

    @property
    def label(self) -> str:
        return f"{self.encoder}, {self.how}" if self.how else self.encoder


@dataclass(frozen=True)
class Table:
    """Rows of scores with their units by name. title: "" for the probe's own table."""

    title: str
    rows: tuple[Row, ...]
    units: dict[str, str] = field(default_factory=dict)
    how: str = ""

    def beside(self, row: Row) -> Row | None:
        """The row of the untrained encoder that was read in the same way."""
        return next((r for r in self.rows if r.encoder == UNTRAINED and r.how == row.how), None)


def probe_tables(probe: Record) -> list[Table]:
    """Every table that probe.json holds: its `rows`, and whatever else in it has rows of scores."""
    found = []
    for title, holder in [("", probe), *_holders(probe)]:
        rows = tuple(_rows(holder.get("rows")))
        if not rows:
            continue
        given = holder.get("units")
        units = {str(name): str(unit) for name, unit in given.items()} if isinstance(given, dict) else {}
        units |= {name: "" for row in rows for name in row.scores if name not in units}
        found.append(Table(title, rows, units, str(holder.get("how") or "")))
    return found


def _holders(probe: Record) -> Iterable[tuple[str, Record]]:
    """Parts of a probe that may hold a table, with their names: objects with rows, or lists of rows."""
    for key, value in probe.items():
        name = str(key).replace("_", " ")
        if key != "rows" and isinstance(value, list) and any(True for _ in _rows(value)):
            yield name, {"rows": value}
        elif isinstance(value, dict) and isinstance(value.get("rows"), list):
            yield name, value
        elif isinstance(value, dict):
            for inner, part in value.items():
                if isinstance(part, dict) and isinstance(part.get("rows"), list):
                    yield f"{name}, {str(inner).replace('_', ' ')}", part


def _rows(given: Any) -> Iterable[Row]:
    for row in given if isinstance(given, list) else ():
        if not isinstance(row, dict) or not isinstance(row.get("scores"), dict):
            continue
        words = [str(v) for k, v in row.items() if k not in ("scores", "encoder") and isinstance(v, str)]
        yield Row(str(row.get("encoder") or "?"), ", ".join(words), scores_of(row))


def say_learned(probe: Record | None) -> str:
    """What the probe says first, in a sentence: where training helped, and where it did not."""
    if probe is None:
        return "What the features know has not been probed yet."
    return next(iter(say_tables(probe)), "The probe wrote no scores that can be read.")


def say_tables(probe: Record) -> list[str]:
    """The same for each table of a probe that has a trained row."""
    margin = probe_margin(probe)
    said = [(table.title, _say_table(table, margin)) for table in probe_tables(probe)]
    return [
        f"{title.capitalize()}: {told[0].lower()}{told[1:]}" if title else told
        for title, told in said
        if told
    ]


def _say_table(table: Table, margin: float) -> str:
    blind = table.rows[-1].scores if table.rows[-1].encoder not in (TRAINED, UNTRAINED) else {}
    pairs: dict[str, tuple[float, float]] = {}
    for row in table.rows:
        other = table.beside(row)
        if row.encoder != TRAINED or other is None:
            continue
        for name, after in row.scores.items():
            before = other.scores.get(name)
            if before is not None and max(after, before) > blind.get(name, 0.0) + margin:
                pairs[f"{name} by {row.how}" if row.how else name] = (after, before)
    if not any(row.encoder == TRAINED for row in table.rows):
        return ""
    better = [name for name, (after, before) in pairs.items() if after - before > margin]
    worse = [name for name, (after, before) in pairs.items() if before - after > margin]

    def listed(names: Sequence[str]) -> str:
        return ", ".join(f"{n} {pairs[n][0]:.2f} ({UNTRAINED} {pairs[n][1]:.2f})" for n in names)

    if not better and not worse:
        return (
            f"The probe finds no difference to the {UNTRAINED} encoder larger than its doubt, {margin:.2f}."
        )
    said = [
        f"Read better after training: {listed(better)}."
        if better
        else "Nothing is read better after training."
    ]
    if worse:
        said.append(f"Read worse: {listed(worse)}.")
        if set(worse) == {"background drift"}:
            said.append("The background moves for no reason: to drop it, and keep the object, is the aim.")
    return " ".join(said)


def probe_margin(probe: Record) -> float:
    """The difference from which two rows of a probe are told apart: a share of n clips wavers by 1 / √n."""
    clips = probe.get("num_eval_clips")
    train = probe.get("num_train_clips") if probe.get("kind") == "retrieval" else 0
    total = sum(count for count in (clips, train) if is_finite(count))
    return max(LEARNED, 1 / math.sqrt(max(1, total)))


@dataclass(frozen=True)
class Probing:
    """Scores of the trained encoder at a step, and of the untrained one."""

    step: int
    scores: dict[str, float]
    untrained: dict[str, float]


def probings_of(lines: Sequence[Record], metrics: Metrics) -> list[Probing]:
    """The probings of a run in the order of their steps, of one kind, as other kinds read other clips.

    Those of the training where there are two or more; else those of `foreframe probe`. A step that stands
    twice counts as it was probed last; what probes.jsonl lacks is taken from metrics.jsonl.
    """
    online = {int(line["step"]): line for line in lines if line.get("kind") == "online"}
    online = {line["step"]: told for line in metrics if (told := _logged(line))["scores"]} | online
    others = {int(line["step"]): line for line in lines if line.get("kind") != "online"}
    chosen = online if len(online) > 1 or not others else others
    found = [
        Probing(step, scores_of(chosen[step]), scores_of(chosen[step], "untrained"))
        for step in sorted(chosen)
    ]
    return [probing for probing in found if probing.scores]


def _logged(line: Mapping[str, Any]) -> Record:
    """The scores in a line of metrics, under the names that they have in probes.jsonl."""
    return {
        kind: {
            key.removeprefix(start).replace("_", " "): value
            for key, value in line.items()
            if key.startswith(start)
        }
        for kind, start in (("scores", "probe/trained/"), ("untrained", "probe/untrained/"))
    }


def probe_figures(probings: Sequence[Probing]) -> list[Figure]:
    """A figure a score: the trained encoder over the steps, beside the level of the untrained one.

    That is drawn from the seed, also where `init.weights` loads others.
    """
    if len(probings) < 2:
        return []
    figures = []
    for number, name in enumerate(score_names(probings)[:MOST_SCORES]):
        steps = np.array([p.step for p in probings if name in p.scores], dtype=np.float64)
        values = np.array([p.scores[name] for p in probings if name in p.scores])
        curves = [Curve(TRAINED, steps, values, 0, num_logged=len(steps))]
        before = [(p.step, p.untrained[name]) for p in probings if name in p.untrained]
        if before:
            ends = np.array([steps[0], steps[-1]])
            level = np.full(2, before[-1][1])
            curves.append(Curve(UNTRAINED, ends, level, None, is_dashed=True, is_level=True))
        said = f"Read from frozen features at {len(steps)} steps of this run, on clips it never trains on."
        figures.append(
            Figure(f"probe-{number + 1}", name, said, (Axes(name, tuple(curves), from_zero=False),))
        )
    return figures


def score_names(probings: Sequence[Probing]) -> list[str]:
    """Scores that at least two probings have, in the order in which they were first named."""
    names = dict.fromkeys(name for probing in probings for name in probing.scores)
    return [name for name in names if sum(name in probing.scores for probing in probings) > 1]


@dataclass(frozen=True)
class Best:
    """The probed step that a probe would take, and the one of the lowest loss. by: the score, in words."""

    by: str
    step: int
    score: float
    last_score: float
    last_step: int
    lowest_loss_step: int | None


def best_checkpoint(probings: Sequence[Probing], metrics: Metrics, keep_best: str | None) -> Best | None:
    """By `train.keep_best` where it is set and was probed, else by the mean of all scores.

    None with fewer than two probings that share a score.
    """
    names = [name for name in score_names(probings) if all(name in p.scores for p in probings)]
    if keep_best in score_names(probings):
        by, names = str(keep_best), [str(keep_best)]
    else:
        by = names[0] if len(names) == 1 else f"the mean of {len(names)} scores"
    if not names:
        return None
    usable = [p for p in probings if all(name in p.scores for name in names)]
    means = {p.step: sum(p.scores[name] for name in names) / len(names) for p in usable}
    best = max(means, key=lambda step: means[step])
    losses = {step: loss for step in means if (loss := recent_loss(metrics, step)) is not None}
    lowest = min(losses, key=lambda step: losses[step]) if len(losses) == len(means) else None
    last = max(means)
    return Best(by, best, means[best], means[last], last, lowest)


def say_best(best: Best) -> str:
    """Which checkpoint a probe would take, and whether the loss would have taken it too."""
    said = f"Best by probe ({best.by}): step {best.step:,}, {best.score:.3f}"
    if best.step != best.last_step:
        said += f"; the last one, step {best.last_step:,}, has {best.last_score:.3f}"
    if best.lowest_loss_step is None:
        return f"{said}."
    if best.lowest_loss_step == best.step:
        return f"{said}. The loss of the probed steps is lowest there too."
    return f"{said}. The lowest loss would have chosen another one: step {best.lowest_loss_step:,}."
