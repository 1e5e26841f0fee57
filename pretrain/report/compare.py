"""Several runs side by side: what differs, which of them are seeds of one config, their curves together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.envelope import MOST_POINTS, SPANS, Floats, in_spans, smoothed
from pretrain.figures import Axes, Curve, Figure, curve_of, points, said_of_spans
from pretrain.recent import recent_loss
from pretrain.report.learned import MOST_SCORES, probe_tables
from pretrain.report.records import last_number, numbers
from pretrain.report.spent import median
from pretrain.report.story import Progress, Story, datasets_of, is_trained_on, tell, trained_on
from pretrain.report.verdicts import spread_share
from pretrain.tracking.base import flatten

FEWEST_SEEDS = 3  # from which runs that differ in nothing else are shown as mean and range
OWN = (
    "name",
    "out",
    "seed",
    "tracker.uri",
    "tracker.run_name",
    "tracker.experiment",
    "tracker.kind",
)  # of one run, whatever it learns
MOST_NAMED = 6  # lines that have their name in the figure; the key beside the figures names all
ALL_SPANS = 12 * SPANS  # of a figure's curves together, so that a page of many runs stays small


@dataclass(frozen=True)
class Series:
    """What one line stands for: a run, or seeds of one config."""

    name: str
    colour: int
    stories: tuple[Story, ...]

    @property
    def is_group(self) -> bool:
        return len(self.stories) > 1


@dataclass(frozen=True)
class Final:
    """A figure of the end of a run. shown: how it is written; value: what it is sorted by, None for none."""

    name: str
    unit: str
    value: float | None
    shown: str


def tell_all(runs: Sequence[Path], progress: Progress | None = None) -> list[Story]:
    """The stories of runs, without pictures, each folder once.

    Raises: CheckpointError when a folder is no run of this release.
    """
    once = list({run.resolve(): run for run in runs}.values())
    stories = []
    for number, run in enumerate(once):
        if progress is not None:
            progress("report", number, len(once), "runs")
        stories.append(tell(run, with_pictures=False))
    if progress is not None:
        progress("report", len(once), len(once), "runs")
    return stories


def names_of(stories: Sequence[Story]) -> list[str]:
    """A name for each run: its own, with as many of its folders before it as tell it from the others."""
    for depth in range(8):
        names = []
        for story in stories:
            folders = story.run.resolve().parts[-1 - depth : -1] if depth else ()
            names.append("/".join([*folders, story.config.tracker.run_name or story.config.name]))
        if len(set(names)) == len(names):
            return names
    return [str(story.run) for story in stories]


def settings_that_differ(stories: Sequence[Story]) -> dict[str, list[str]]:
    """Dotted keys whose values are not the same in all runs, in the order of the config; "–" where absent."""
    flats = [flatten(story.config.model_dump(mode="json")) for story in stories]
    called = ("name", "out", "tracker.run_name")
    keys = [key for key in dict.fromkeys(key for flat in flats for key in flat) if key not in called]
    as_typed = {"True": "true", "False": "false"}
    values = {key: [as_typed.get(flat.get(key, "–"), flat.get(key, "–")) for flat in flats] for key in keys}
    return {key: each for key, each in values.items() if len(set(each)) > 1}


def facts_that_differ(stories: Sequence[Story]) -> dict[str, list[str]]:
    """Data sets with their fingerprints, code, machine and versions, where they are not the same in all."""
    every = [_facts(story) for story in stories]
    names = dict.fromkeys(name for facts in every for name in facts)
    values = {name: [facts.get(name, "–") for facts in every] for name in names}
    return {name: each for name, each in values.items() if len(set(each)) > 1}


def _facts(story: Story) -> dict[str, str]:
    provenance = story.records.provenance
    found = {}
    for number, data in enumerate(datasets_of(provenance)):
        name = f"data set {number + 1}" if number else "data set"
        name += "" if is_trained_on(data) else ", for probes"
        found[name] = f"{data.get('name', '?')}, fingerprint {data.get('fingerprint', '?')}"
        clips = data.get("num_clips")
        found[f"{name}, clips"] = f"{clips:,}" if isinstance(clips, int) else "?"
    commit = str(provenance.get("commit") or "–")[:10]
    found["commit"] = commit + (", with changes" if provenance.get("patch") else "")
    found |= {
        name: str(provenance.get(key) or "–") for name, key in (("device", "device"), ("ranks", "world_size"))
    }
    versions = provenance.get("versions")
    return found | (
        {f"version of {n}": str(v) for n, v in versions.items()} if isinstance(versions, dict) else {}
    )


def is_same_data(stories: Sequence[Story]) -> bool | None:
    """Whether all were trained on data sets of the same fingerprints; None where a run does not say."""
    prints = [_fingerprints(story) for story in stories]
    return len(set(prints)) == 1 if all(prints) else None


def _fingerprints(story: Story) -> tuple[str, ...]:
    return tuple(str(data.get("fingerprint")) for data in trained_on(story.records.provenance))


def series_of(stories: Sequence[Story]) -> list[Series]:
    """Runs, and seeds of one config taken together where there are enough of them, each with its colour."""
    groups: dict[tuple[object, ...], list[Story]] = {}
    for story in stories:
        flat = flatten(story.config.model_dump(mode="json"))
        same = tuple(sorted((k, v) for k, v in flat.items() if k not in OWN))
        groups.setdefault((same, _fingerprints(story)), []).append(story)
    names = dict(zip(map(id, stories), names_of(stories), strict=True))
    found: list[tuple[str, tuple[Story, ...]]] = []
    for group in groups.values():
        seeds = {story.config.seed for story in group}
        if len(seeds) == len(group) >= FEWEST_SEEDS:
            found.append((f"{_common(names[id(s)] for s in group)} × {len(group)} seeds", tuple(group)))
        else:
            found += [(names[id(story)], (story,)) for story in group]
    order = {id(story): number for number, story in enumerate(stories)}
    found.sort(key=lambda each: order[id(each[1][0])])
    return [Series(name, number, group) for number, (name, group) in enumerate(found)]


def _common(names: object) -> str:
    """What names begin with together, without what is left of a number or a seed; or the first name."""
    every = list(names)  # type: ignore[call-overload]
    shared = ""
    for letters in zip(*every, strict=False):
        if len(set(letters)) > 1:
            break
        shared += letters[0]
    cut = shared.rstrip("-_/ .,0123456789").removesuffix("seed").rstrip("-_/ .,")
    return cut or str(every[0])


def final_figures(story: Story) -> list[Final]:
    """What a run came to: loss, spread, rank, scores of the probe, speed."""
    metrics = story.metrics
    speed = numbers(metrics, "perf/clips_per_s")
    waited = story.spent.share("waiting for data") if story.spent.parts else None
    share = spread_share(metrics, is_frozen=story.config.target.kind == "frozen")
    found = [
        _final("steps", "", float(story.last_step) if metrics else None, "{:,.0f}"),
        _final("loss", "", recent_loss(metrics), "{:.3f}"),
        _final("spread", "of the start", share, "{:.0%}"),
        _final("RankMe", "", last_number(metrics, f"health/{story.judged}_rankme"), "{:.1f}"),
        _final("explained", "", last_number(metrics, "health/explained"), "{:.2f}"),
    ]
    found += [_final(name, unit, value, "{:.2f}") for name, unit, value in final_scores(story)]
    return [
        *found,
        _final("clips/s", "median", median(speed) if speed else None, "{:.3g}"),
        _final("waited", "for data", waited, "{:.1%}"),
        _final("trained", "min", story.spent.seconds / 60 if story.spent.parts else None, "{:.1f}"),
    ]


def final_scores(story: Story) -> list[tuple[str, str, float]]:
    """(name, unit, score) of the trained encoder: of probe.json, else of the last online probing."""
    for found in probe_tables(story.records.probe or {}):
        row = next((row for row in found.rows if row.encoder == "trained"), None)
        if row is not None:
            return [(n, found.units.get(n, ""), row.scores[n]) for n in list(row.scores)[:MOST_SCORES]]
    last = story.probings[-1].scores if story.probings else {}
    return [(name, "online", value) for name, value in list(last.items())[:MOST_SCORES]]


def _final(name: str, unit: str, value: float | None, form: str) -> Final:
    return Final(name, unit, value, "–" if value is None else form.format(value).replace("-", "−"))


LOG, PERCENT, SMOOTH = "log", "percent", "smooth"
PLATES: tuple[tuple[str, str, str, str, tuple[str, ...]], ...] = (
    # name, title, key ({} is the judged features), unit, how it is drawn
    ("loss", "Loss", "loss", "loss", (SMOOTH,)),
    ("spread", "Feature spread", "health/{}_std", "std across clips", ()),
    ("rankme", "RankMe", "health/{}_rankme", "dimensions", ()),
    ("alignment", "Prediction and target, cosine", "health/alignment", "cosine", ()),
    ("explained", "Variance of targets explained", "health/explained", "variance explained", ()),
    ("gradients", "Gradient norm", "optim/grad_norm", "gradient norm", (SMOOTH, LOG)),
    ("schedule", "Learning rate", "optim/lr", "learning rate", ()),
    ("throughput", "Throughput", "perf/clips_per_s", "clips/s", (SMOOTH,)),
    ("waiting", "Wait for data", "data/wait_share", "waiting for data", (SMOOTH, PERCENT)),
)


def overlaid(stories: Sequence[Story]) -> list[Figure]:
    """A figure for each number that any run has: a line a run, or mean and range of seeds of one config."""
    series = series_of(stories)
    figures = []
    for name, title, key, unit, how in PLATES:
        data = [[points(s.metrics, key.format(s.judged)) for s in each.stories] for each in series]
        curves = _curves(series, data, smooth=SMOOTH in how)
        if curves:
            axes = (Axes(unit, curves, PERCENT in how, from_zero=SMOOTH not in how, log=LOG in how),)
            figures.append(Figure(name, title, said_of_spans(axes).strip(), axes))
    return figures + _of_probes(series)


def _of_probes(series: Sequence[Series]) -> list[Figure]:
    names = dict.fromkeys(n for each in series for s in each.stories for p in s.probings for n in p.scores)
    figures = []
    for number, name in enumerate(list(names)[:MOST_SCORES]):
        data = [
            [_scores(story, name) for story in each.stories if len(_scores(story, name)[0])]
            for each in series
        ]
        if max((len(steps) for each in data for steps, _ in each), default=0) < 2:
            continue
        curves = _curves(series, data, smooth=False)
        axes = (Axes(name, curves, from_zero=False),)
        said = "Read from frozen features as the runs went." + said_of_spans(axes)
        figures.append(Figure(f"probe-{number + 1}", f"Probe: {name}", said, axes))
    return figures


def _scores(story: Story, name: str) -> tuple[Floats, Floats]:
    found = [(p.step, p.scores[name]) for p in story.probings if name in p.scores]
    rows = np.array(found, dtype=np.float64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def _curves(
    series: Sequence[Series], data: Sequence[Sequence[tuple[Floats, Floats]]], *, smooth: bool
) -> tuple[Curve, ...]:
    """A curve for each series that has anything finite; names stand in the figure while they have room."""
    spans = max(40, ALL_SPANS // max(12, len(series)))
    is_named = len(series) <= MOST_NAMED
    curves = []
    for each, runs in zip(series, data, strict=True):
        name = _short(each.name) if is_named else ""
        there = [run for run in runs if np.isfinite(run[1]).any()]
        if len(there) == 1:
            curves.append(curve_of(name, *there[0], each.colour, smooth=smooth, num_spans=spans))
        elif there:
            curves.append(_together(name, each.colour, there, smooth=smooth, num_spans=spans))
    return tuple(curves)


def _together(
    name: str, colour: int, runs: Sequence[tuple[Floats, Floats]], *, smooth: bool, num_spans: int
) -> Curve:
    """Mean and range of several runs, at the steps that any of them logged, up to the end of the shortest."""
    begin, end = max(steps[0] for steps, _ in runs), min(steps[-1] for steps, _ in runs)
    every = np.unique(np.concatenate([steps for steps, _ in runs]))
    at = every[(every >= begin) & (every <= end)]
    rows = np.stack([np.interp(at, steps, smoothed(values) if smooth else values) for steps, values in runs])
    mean, low, high = rows.mean(0), rows.min(0), rows.max(0)
    if len(at) > MOST_POINTS:
        spans = in_spans(at, mean, num_spans)
        low, high = in_spans(at, low, num_spans).low, in_spans(at, high, num_spans).high
        return Curve(name, spans.steps, spans.mean, colour, low=low, high=high, num_logged=len(at))
    return Curve(name, at, mean, colour, low=low, high=high, num_logged=len(at))


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:8]}…{name[-9:]}"
