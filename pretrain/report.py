"""report.html of a run: one file that holds all it shows, for whatever the run's folder holds by now."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import CheckpointError
from data_pipeline.format import DEAD_LETTERS_FILE
from data_pipeline.storage import Storage
from pretrain.config import RunConfig
from pretrain.curves import Picture
from pretrain.health import judged_features
from pretrain.pictures import config_of, draw_pictures
from pretrain.probe import Progress, read_json, read_probe
from pretrain.report_page import page
from pretrain.tracking.base import run_title, without_credentials
from pretrain.tracking.jsonl import read_metrics

REPORT_FILE = "report.html"
MAX_LETTERS = 200
LEARNED = 0.05  # a probe's gain over the untrained encoder from which the report may call it one


@dataclass(frozen=True)
class Health:
    """A word for the features' state, and the sentence behind it."""

    word: str
    reason: str


@dataclass(frozen=True)
class Story:
    """All that the page shows, gathered; text is plain and still to be escaped."""

    run: Path
    config: RunConfig
    config_text: str
    metrics: list[dict[str, Any]]
    probe: dict[str, Any] | None
    provenance: dict[str, Any]
    pictures: list[Picture]
    missing: list[str]
    health: Health
    what: str
    learned: str
    dead_letters: list[tuple[str, str]]
    num_dead_letters: int
    times: list[tuple[str, float]] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def title(self) -> str:
        return run_title(self.run, self.config.name)

    @property
    def is_finished(self) -> bool:
        return self.last_step >= self.config.train.steps


def write_report(run: Path, *, out: Path | None = None, progress: Progress | None = None) -> Path:
    """Draw the run's pictures and write `<run>/report.html` (or `out`); works for a run of any age.

    Raises: CheckpointError when the folder is no run of this release.
    """
    path = out or run / REPORT_FILE
    Storage(path.parent).publish(path.name, page(tell(run, progress)).encode())
    return path


def tell(run: Path, progress: Progress | None = None) -> Story:
    """Gather what a run's folder holds, and say in sentences what it means."""
    if not run.is_dir():
        raise CheckpointError(f"{run} is no run's folder: it does not exist; `foreframe train` makes one")
    config = config_of(run)
    pictures, missing = draw_pictures(run, progress)
    metrics = read_metrics(run)
    probe = read_probe(run)
    provenance = read_json(run / "provenance.json", "remove it, the report does without") or {}
    if probe is None:
        missing.append(f"no probe yet: `foreframe probe {run}` says what the features know")
    letters, num_letters = dead_letters(config.data.sources[0].shards)
    file = run / "config.yaml"
    text = (
        file.read_text(encoding="utf-8")
        if file.exists()
        else json.dumps(config.model_dump(mode="json"), indent=2)
    )
    return Story(
        run=run,
        config=config,
        config_text=without_credentials(text),
        metrics=metrics,
        probe=probe,
        provenance=provenance,
        pictures=pictures,
        missing=[without_credentials(sentence) for sentence in missing],
        health=judge_health(metrics, config.health.std_floor),
        what=say_what(config, metrics, provenance),
        learned=say_learned(probe),
        dead_letters=letters,
        num_dead_letters=num_letters,
        times=where_time_went(metrics),
    )


def judge_health(metrics: Sequence[dict[str, Any]], floor: float) -> Health:
    """The features' state in plain words, against the untrained encoder and the run's own best."""
    losses = [line["loss"] for line in metrics if "loss" in line]
    if losses and losses[-1] is None:
        return Health(
            "diverged", "the last logged loss is not finite: lower the learning rate, or clip gradients"
        )
    std, rankme = (f"health/{judged_features(metrics)}_{what}" for what in ("std", "rankme"))
    looks = [line for line in metrics if _finite(line.get(std))]
    if not looks:
        return Health("not looked at", "no look at the features has been logged yet")
    first, last = looks[0], looks[-1]
    untrained = first.get(f"{std}_untrained") or first[std]
    share = last[std] / max(untrained, 1e-12)
    rank, rank_before = last.get(rankme), first.get(rankme)
    ranks = (
        f", RankMe {rank:.0f} (untrained {rank_before:.0f})" if _finite(rank) and _finite(rank_before) else ""
    )
    spread = f"features vary across clips by {share:.0%} of the untrained encoder's spread{ranks}"
    if share < floor:
        return Health("collapsed", f"{spread}: below {floor:.0%}, every clip gets nearly the same features")
    best = max(line[std] for line in looks)
    if last[std] < 0.5 * best:
        return Health("warning", f"{spread}, and less than half of what they had earlier in this run")
    return Health("healthy", f"{spread}; the floor is {floor:.0%}")


def say_what(config: RunConfig, metrics: Sequence[dict[str, Any]], provenance: dict[str, Any]) -> str:
    """What was run, in a sentence."""
    encoder = config.model.encoder
    width, depth, _, _ = encoder.shape
    step = metrics[-1]["step"] if metrics else 0
    done = (
        f"{step:,} steps"
        if step >= config.train.steps
        else f"{step:,} of {config.train.steps:,} steps so far"
    )
    known = provenance.get("datasets") or []
    count = sum(data["num_clips"] for data in known) or None
    names = [data["name"] for data in known] or [
        without_credentials(source.shards) for source in config.data.sources
    ]
    ranks = provenance.get("world_size")
    return (
        f"A {encoder.preset.replace('_', '-')} encoder (width {width}, {depth} blocks) learned by "
        f"predicting the features of hidden parts of {f'{count:,} ' if isinstance(count, int) else ''}clips "
        f"of {' and '.join(names)}, "
        f"{config.data.frames} frames of {config.data.size} × {config.data.size} at {config.data.fps:g} a "
        f"second, in {done} of {config.train.global_batch} clips"
        + (f" on {ranks} rank{'s' if ranks != 1 else ''}." if ranks else ".")
    )


def say_learned(probe: dict[str, Any] | None) -> str:
    """What the probe says, in a sentence: where training helped, and where it did not."""
    if probe is None:
        return "What the features know has not been probed yet."
    rows = {row["encoder"]: row["scores"] for row in probe["rows"]}
    trained, untrained = rows.get("trained", {}), rows.get("untrained", {})
    blind = probe["rows"][-1]["scores"]  # the answer that ignores the clip
    margin = probe_margin(probe)
    pairs = {
        n: (trained[n], untrained[n])
        for n in trained
        if _finite(trained[n])
        and _finite(untrained.get(n))
        and max(trained[n], untrained[n]) > (blind.get(n) or 0) + margin
    }
    better = [n for n, (after, before) in pairs.items() if after - before > margin]
    worse = [n for n, (after, before) in pairs.items() if before - after > margin]

    def listed(names: list[str]) -> str:
        return ", ".join(f"{n} {pairs[n][0]:.2f} (untrained {pairs[n][1]:.2f})" for n in names)

    if not better and not worse:
        return f"The probe finds no difference to the untrained encoder larger than its doubt, {margin:.2f}."
    said = (
        [f"Read better after training: {listed(better)}."]
        if better
        else ["Nothing is read better after training."]
    )
    if worse:
        said.append(f"Read worse: {listed(worse)}.")
        if set(worse) == {"background drift"}:
            said.append("The background moves for no reason: to drop it, and keep the object, is the aim.")
    return " ".join(said)


def probe_margin(probe: dict[str, Any]) -> float:
    """The difference from which two rows of a probe are told apart: a share of n clips wavers by 1 / √n."""
    clips = probe["num_eval_clips"] + (probe["num_train_clips"] if probe.get("kind") == "retrieval" else 0)
    return max(LEARNED, 1 / math.sqrt(max(1, clips)))


def where_time_went(metrics: Sequence[dict[str, Any]]) -> list[tuple[str, float]]:
    """Shares of the run's steps: waiting for data, and all else (forward, backward, optimizer, looks)."""
    waits = [line["data/wait_share"] for line in metrics if _finite(line.get("data/wait_share"))]
    if not waits:
        return []
    wait = sum(waits) / len(waits)
    return [("compute", 1 - wait), ("waiting for data", wait)]


def dead_letters(shards: str) -> tuple[list[tuple[str, str]], int]:
    """(what, why) of videos and clips that could not be used, the first few, and how many there are.

    Only of a data set on this machine: a report fetches nothing.
    """
    storage = Storage(shards) if "://" not in shards else None
    if storage is None or not storage.exists(DEAD_LETTERS_FILE):
        return [], 0
    found = []
    for line in storage.read(DEAD_LETTERS_FILE).decode("utf-8", "replace").splitlines():
        try:
            letter = json.loads(line)
        except json.JSONDecodeError:
            continue
        name = next(
            (str(letter[k]) for k in ("uri", "path", "video_id", "clip_id", "id") if letter.get(k)), "?"
        )
        if letter.get("start_s") is not None and letter.get("end_s") is not None:
            name += f", {letter['start_s']:g} to {letter['end_s']:g} s"
        found.append(
            (without_credentials(name), without_credentials(str(letter.get("reason", "no reason given"))))
        )
    return found[:MAX_LETTERS], len(found)


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
