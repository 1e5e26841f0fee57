"""Composition root of the data commands: a config in, a data set out, and what to tell the user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from data_pipeline.claim import alone, refuse_other
from data_pipeline.config import DataConfig
from data_pipeline.dataset import shard
from data_pipeline.errors import DataError, UsageError
from data_pipeline.finish import Outcome
from data_pipeline.format import (
    CARD_FILE,
    DATASET_FILE,
    DEAD_LETTERS_FILE,
    SPLITS,
    DatasetInfo,
    read_info,
)
from data_pipeline.index import Index, build_index, publish_index
from data_pipeline.manifest import VIDEOS_FILE, DeadLetter, Video
from data_pipeline.redrive import redrive
from data_pipeline.storage import Storage
from data_pipeline.verify import verify
from launch.console import Report, Stages, make_console

SHOWN_LETTERS = 20
SHOWN_PROBLEMS = 50
SHOWN_REASONS = 8


def run_index(config: DataConfig, progress: Report | None = None, force: bool = False) -> str:
    """Look at every source file and write `<out>/videos.parquet`; returns its address.

    Raises: UsageError when `out` holds a finished data set of other videos; DataError when none is usable.
    """
    console = make_console()
    _check_out(config)
    with alone(config), _reporting(console, progress) as report:
        found = build_index(config, report, force)
        if not force:
            refuse_other(config, found)
        publish_index(config, found)
    _print_index(console, config, found)
    return Storage(config.out).address(VIDEOS_FILE)


def run_shard(
    config: DataConfig, progress: Report | Stages | None = None, force: bool = False
) -> DatasetInfo:
    """Bring the data set at `config.out` to its end and print what it holds.

    Raises: UsageError when `out` holds another data set and `force` is not given; DataError.
    """
    console = make_console()
    _check_out(config)
    with _reporting(console, progress) as report:
        outcome = shard(config, report, force)
    _print_outcome(console, config, outcome)
    return outcome.info


def run_redrive(config: DataConfig, progress: Report | None = None) -> DatasetInfo:
    """Try the failures of the data set at `config.out` again and print what came of it.

    Raises: UsageError when there is no finished data set of this config; DataError.
    """
    console = make_console()
    _check_out(config)
    with _reporting(console, progress) as report:
        before = read_info(Storage(config.out)) if Storage(config.out).exists(DATASET_FILE) else None
        outcome = redrive(config, report)
    assert before is not None  # else redrive raised
    clips = sum(outcome.info.num_clips.values()) - sum(before.num_clips.values())
    shards = len(outcome.info.shards) - len(before.shards)
    if outcome.is_new:
        console.print(
            f"{clips} clips more, in {shards} new shards; {len(before.shards)} shards stand as they were"
        )
    else:
        console.print("nothing of it can be used now either; no shard was added")
    _print_outcome(console, config, outcome, verb="redriven")
    return outcome.info


def run_verify(dataset: str, deep: bool = False, progress: Report | None = None) -> None:
    """Check a data set against its own records and print the verdict.

    Raises: DataError with every finding when it is damaged.
    """
    console = make_console()
    with _reporting(console, progress) as report:
        result = verify(dataset, deep, report)
    if result.problems:
        shown = "".join(f"\n  {problem}" for problem in result.problems[:SHOWN_PROBLEMS])
        more = len(result.problems) - SHOWN_PROBLEMS
        rest = f"\n  and {more} more" if more > 0 else ""
        raise DataError(
            f"{dataset} is damaged, {len(result.problems)} findings:{shown}{rest}\n"
            f"Remove the files of shards that are named, and run the same `foreframe shard` again: it makes "
            f"those shards anew and touches no other"
        )
    shards = sum(result.info.num_shards.values())
    console.print(
        f"{dataset} is whole: {shards} shards, {result.num_samples} clips, {result.num_bytes / 1e6:.1f} MB, "
        f"fingerprint {result.info.fingerprint}"
        + (f"; {result.num_frames_decoded} frames decoded" if deep else "; --deep decodes every frame too")
    )


@contextmanager
def _reporting(console: Console, progress: Report | Stages | None) -> Iterator[Report]:
    """The caller's progress function, or bars (lines without a terminal): the caller's, or of our own.

    Bars end here, so that what is printed afterwards does not stand among them.
    """
    if progress is not None and not isinstance(progress, Stages):
        yield progress
        return
    with (progress or Stages(console)).showing() as report:
        yield report


def _check_out(config: DataConfig) -> None:
    """Raises: UsageError when the data set cannot be where the config wants it."""
    path = Storage(config.out).local_path()
    if path is not None and path.exists() and not path.is_dir():
        raise UsageError(f"out is {config.out}, which is a file; need a folder")


def _print_index(console: Console, config: DataConfig, found: Index) -> None:
    count = Counter(video.status for video in found.videos)
    hours = sum(video.duration_s for video in found.usable) / 3600
    news = "" if found.num_new else "; nothing changed since last time"
    pictures = sum(video.is_picture for video in found.usable)
    usable = f"{count['usable'] - pictures} videos" + (f" and {pictures} pictures" if pictures else "")
    console.print(
        f"{usable} usable ({hours:.2f} hours), {count['failed']} not, "
        f"{count['ignored']} other files passed over{news}"
    )
    _print_letters(console, config, found.dead_letters(), _passed_over(found.videos))


def _print_outcome(console: Console, config: DataConfig, outcome: Outcome, verb: str = "made") -> None:
    info, count = outcome.info, Counter(video.status for video in outcome.videos)
    if not outcome.is_new and verb == "made":
        console.print(
            f"{config.out} was finished before, of this config and these videos; nothing was done or read "
            f"again (`foreframe verify {config.out}` reads it)"
        )
    clips = ", ".join(f"{info.num_clips[split]} {split}" for split in SPLITS)
    shards = ", ".join(f"{info.num_shards[split]} {split}" for split in SPLITS)
    kept = (
        f" ({outcome.num_kept_shards} from an earlier run)"
        if outcome.is_new and outcome.num_kept_shards
        else ""
    )
    seconds = sum(clip.end_s - clip.start_s for clip in outcome.clips if clip.status == "kept")
    pictures = sum(video.is_picture for video in outcome.videos)
    files = "files" if pictures else "videos"
    usable = f"{count['usable']}" + (f", {pictures} of them still pictures" if pictures else "")
    table = Table(title=f"Data set {info.name}", title_justify="left", show_header=False, box=None)
    for row in (
        (f"{files} found", f"{count['usable'] + count['failed']}"),
        (f"{files} usable", usable),
        ("clips kept", f"{clips} ({seconds / 60:.1f} minutes)"),
        ("clips filtered", f"{info.num_filtered}"),
        ("clips failed", f"{info.num_failed}"),
        ("shards", f"{shards}{kept}"),
        ("size", f"{info.total_bytes / 1e6:.1f} MB"),
        ("fingerprint", info.fingerprint),
        ("written to", config.out),
        ("look at", Storage(config.out).address(CARD_FILE)),
    ):
        table.add_row(*row)
    console.print(table)
    reasons = Counter(clip.reason.split(":")[0] for clip in outcome.clips if clip.status == "filtered")
    for reason, number in reasons.most_common():
        console.print(f"{number} filtered: {reason} (manifest.parquet has each)")
    _print_letters(console, config, list(outcome.dead_letters), _passed_over(outcome.videos))


def _passed_over(videos: Sequence[Video]) -> list[Video]:
    return [video for video in videos if video.status == "ignored"]


def _print_letters(
    console: Console, config: DataConfig, letters: list[DeadLetter], ignored: list[Video]
) -> None:
    """What could not be used and why, the first twenty; then what was passed over, by its reason."""
    if letters:
        console.print(f"{len(letters)} could not be used:")
        for letter in letters[:SHOWN_LETTERS]:
            span = f" {letter.start_s:g}-{letter.end_s:g} s" if letter.start_s is not None else ""
            console.print(f"  {_one_line(letter.uri)}{span}: {_one_line(letter.reason)}", markup=False)
        rest = len(letters) - SHOWN_LETTERS
        address = Storage(config.out).address(DEAD_LETTERS_FILE)
        console.print(f"  {f'and {rest} more, all ' if rest > 0 else ''}in {address}", markup=False)
    if ignored:
        console.print(f"{len(ignored)} other files were passed over ({VIDEOS_FILE} has each):")
        reasons = Counter(video.reason for video in ignored)
        for reason, number in reasons.most_common(SHOWN_REASONS):
            example = next(video.uri for video in ignored if video.reason == reason)
            console.print(f"  {number}: {_one_line(reason)}, such as {_one_line(example)}", markup=False)


def _one_line(uri: str) -> str:
    """A name as one line of the terminal, whatever characters it has."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in uri)
