"""All that a page says of one run, gathered from its folder, in sentences that are still to be escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.errors import CheckpointError, DataError
from data_pipeline.format import DEAD_LETTERS_FILE
from data_pipeline.storage import Storage, read_regular
from pretrain.config import RunConfig
from pretrain.curves import Picture, draw_figures
from pretrain.figures import Metrics, figures_of, judged_features
from pretrain.pictures import FOLDER, config_of, draw_pictures
from pretrain.report.advice import Seen, Suggestion, suggestions
from pretrain.report.learned import Best, Probing, best_checkpoint, probe_figures, probings_of, say_learned
from pretrain.report.records import Record, Records, is_finite, read_records
from pretrain.report.spent import Spent, where_time_went
from pretrain.report.verdicts import Health, Stretch, judge_health, timeline
from pretrain.tracking.base import run_title, without_credentials
from pretrain.tracking.pictures import step_pictures

# What was learned, and from what of the clips, by objective.kind.
LEARNED_BY = {
    "masked_latent": "A {} learned by predicting the features of hidden parts",
    "future_latent": "A {} learned by predicting the features of the future from the past",
    "action_latent": "A predictor on a {} that stayed as it was learned the features of each next frame, "
    "from frames and actions so far,",
    "pixel": "A {} learned by predicting the pixels of hidden parts",
    "contrastive": "A {} learned by telling which features belong to which hidden part",
    "states": "A {} learned by telling true states, which it was given,",
}
ATTENTION = "clip-attention"  # of pretrain/step_pictures.py
MAX_LETTERS = 200
OLD_FLOOR = 0.1  # of the spread, for runs without a verdict of their own, where the config names none

Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Story:
    """All that the page shows, gathered; text is plain and still to be escaped.

    kept_steps: of the checkpoints that are whole. start: what features at the first look are called:
    untrained, or "at the start" of loaded weights. A probe's baseline is untrained in either case.
    """

    records: Records
    config: RunConfig
    config_text: str
    title: str
    start: str
    health: Health
    stretches: list[Stretch]
    what: str
    learned: str
    best: Best | None
    kept_steps: frozenset[int]
    probings: list[Probing]
    spent: Spent
    advice: list[Suggestion]
    pictures: list[Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    dead_letters: list[tuple[str, str]] = field(default_factory=list)
    num_dead_letters: int = 0

    @property
    def run(self) -> Path:
        return self.records.run

    @property
    def metrics(self) -> Metrics:
        return self.records.metrics

    @property
    def judged(self) -> str:
        return judged_features(self.metrics, is_frozen=self.config.target.kind == "frozen")

    @property
    def last_step(self) -> int:
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def is_finished(self) -> bool:
        return self.last_step >= self.config.train.steps


def tell(run: Path, progress: Progress | None = None, *, with_pictures: bool = True) -> Story:
    """Gather what a run's folder holds, and say in sentences what it means.

    with_pictures: draw those of the run into its folder; without, nothing is written.
    Raises: CheckpointError when the folder has no config of this release, so is no run.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run} is no run's folder: it does not exist; `foreframe train` makes one")
    config = config_of(run)
    records = read_records(run)
    metrics = records.metrics
    start = "untrained" if config.init.weights is None else "at the start"
    health = judge_health(metrics, getattr(config.health, "std_floor", OLD_FLOOR), start)
    probings = probings_of(records.probings, metrics)
    spent = where_time_went(metrics)
    ranks = records.provenance.get("world_size")
    seen = Seen(
        config, metrics, health, spent, probings, records.probe, ranks if isinstance(ranks, int) else 1
    )
    pictures, missing = (
        _pictures(run, config, records, probings, start, progress) if with_pictures else ([], [])
    )
    letters, num_letters, trouble = dead_letters(config.data.sources[0].shards)
    missing += _absent(records) + records.troubles + trouble
    return Story(
        records=records,
        config=config,
        config_text=_config_text(run, config),
        title=config.tracker.run_name or run_title(run, config.name),
        start=start,
        health=health,
        stretches=timeline(metrics),
        what=say_what(config, metrics, records.provenance),
        learned=say_learned(records.probe),
        best=best_checkpoint(probings, metrics, config.train.keep_best),
        kept_steps=kept_steps(run),
        probings=probings,
        spent=spent,
        advice=suggestions(seen),
        pictures=pictures,
        missing=missing,
        dead_letters=letters,
        num_dead_letters=num_letters,
    )


def _pictures(
    run: Path,
    config: RunConfig,
    records: Records,
    probings: Sequence[Probing],
    start: str,
    progress: Progress | None,
) -> tuple[list[Picture], list[str]]:
    """Figures of metrics and probes, and pictures of clips; a sentence for each that cannot be had."""
    drawn, missing = draw_pictures(run, progress)
    judged = judged_features(records.metrics, is_frozen=config.target.kind == "frozen")
    figures = figures_of(records.metrics, judged=judged, start=start) + probe_figures(probings)
    (run / FOLDER).mkdir(exist_ok=True)
    of_clips = [p for p in drawn if p.path.suffix != ".svg"] + last_attention(run)
    return draw_figures(figures, run / FOLDER) + of_clips, missing


def last_attention(run: Path) -> list[Picture]:
    """What the encoder attended to in held-out clips, as drawn last while training; none where it was not."""
    found = [(step, path) for step, path in step_pictures(run) if path.name == f"{ATTENTION}.png"]
    if not found:
        return []
    step, path = found[-1]
    caption = (
        f"What the last block attends to at step {step:,}: all tokens together, and the one that is framed "
        f"in red; what is lit has the weight. Other steps are in {path.parent.parent.relative_to(run)}."
    )
    return [Picture(path, "Attention in held-out clips", caption)]


def _absent(records: Records) -> list[str]:
    """Files of the folder that a whole run has, with the command that writes them."""
    said = []
    if not records.metrics:
        said.append("no curves: no step has been logged yet")
    if records.probe is None and not any("probe.json" in trouble for trouble in records.troubles):
        said.append(f"no probe yet: `foreframe probe {records.run}` says what the features know")
    if not records.provenance and not any("provenance.json" in trouble for trouble in records.troubles):
        said.append("no provenance.json: commit, machine and data sets are not known")
    return said


def kept_steps(run: Path) -> frozenset[int]:
    """Steps of the checkpoints in a run's folder that were written to their end."""
    folders = (run / "checkpoints").glob("step-*[0-9]/manifest.json")
    return frozenset(
        int(name) for path in folders if (name := path.parent.name.removeprefix("step-")).isdecimal()
    )


def _config_text(run: Path, config: RunConfig) -> str:
    file = run / "config.yaml"
    if file.exists():
        return read_regular(file).decode(errors="replace")
    return json.dumps(config.model_dump(mode="json"), indent=2)


def say_what(config: RunConfig, metrics: Metrics, provenance: Record) -> str:
    """What was run, in a sentence."""
    encoder = config.model.encoder
    width, depth, _, _ = encoder.shape
    step = metrics[-1]["step"] if metrics else 0
    done = (
        f"{step:,} steps"
        if step >= config.train.steps
        else f"{step:,} of {config.train.steps:,} steps so far"
    )
    known = trained_on(provenance)
    counts = [data["num_clips"] for data in known if is_finite(data.get("num_clips"))]
    clips = f"{sum(counts):,} " if counts else ""
    names = [str(data.get("name", "?")) for data in known] or [
        without_credentials(source.shards) for source in config.data.sources
    ]
    ranks = provenance.get("world_size")
    who = f"{encoder.preset.replace('_', '-')} encoder (width {width}, {depth} blocks)"
    what = LEARNED_BY[config.objective.kind].format(who)
    return (
        f"{what} of {clips}clips of {' and '.join(names)}, "
        f"{config.data.frames} frames of {config.data.size} × {config.data.size} at {config.data.fps:g} a "
        f"second, in {done} of {config.train.global_batch} clips"
        + (f" on {ranks} rank{'s' if ranks != 1 else ''}." if ranks else ".")
    )


def datasets_of(provenance: Record) -> list[Record]:
    """The data sets that a run says it read."""
    found = provenance.get("datasets")
    return [data for data in found if isinstance(data, dict)] if isinstance(found, list) else []


def trained_on(provenance: Record) -> list[Record]:
    """The data sets that it was trained on, without one that only probes read."""
    return [data for data in datasets_of(provenance) if is_trained_on(data)]


def is_trained_on(data: Record) -> bool:
    """Earlier releases wrote no context: they named what was trained on alone."""
    return data.get("context", "training") == "training"


def dead_letters(shards: str) -> tuple[list[tuple[str, str]], int, list[str]]:
    """(what, why) of videos and clips that could not be used, the first few; how many there are; troubles.

    Only of a data set on this machine: a report fetches nothing.
    """
    storage = Storage(shards) if "://" not in shards else None
    try:
        if storage is None or not storage.exists(DEAD_LETTERS_FILE):
            return [], 0, []
        text = storage.read(DEAD_LETTERS_FILE).decode("utf-8", "replace")
    except DataError as error:
        return [], 0, [str(error)]
    found = []
    for line in text.splitlines():
        try:
            letter = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(letter, dict):
            found.append(_letter(letter))
    return found[:MAX_LETTERS], len(found), []


def _letter(letter: Record) -> tuple[str, str]:
    keys = ("uri", "path", "video_id", "clip_id", "id")
    name = next((str(letter[key]) for key in keys if letter.get(key)), "?")
    if is_finite(letter.get("start_s")) and is_finite(letter.get("end_s")):
        name += f", {letter['start_s']:g} to {letter['end_s']:g} s"
    return name, str(letter.get("reason", "no reason given"))
