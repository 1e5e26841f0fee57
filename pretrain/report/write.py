"""The commands' side of the report: one page of a run, or of several, and figures as files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import DataError, UsageError, why
from data_pipeline.storage import Storage, check_takes
from pretrain.curves import INK, draw
from pretrain.figures import Figure, figures_of
from pretrain.report import one, several
from pretrain.report.compare import overlaid, tell_all
from pretrain.report.learned import probe_figures
from pretrain.report.story import Progress, Story, tell

REPORT_FILE = "report.html"
COMPARISON_FILE = "compare.html"


def write_report(
    run: Path, *, out: Path | None = None, progress: Progress | None = None, figures: Path | None = None
) -> Path:
    """Draw the run's pictures and write `<run>/report.html` (or `out`); works for a run of any age.

    figures: a folder that takes every figure as SVG and PDF, for paper.
    Raises: CheckpointError when the folder is no run of this release, UsageError where it cannot write.
    """
    path = out or run / REPORT_FILE
    _check(run, path, figures)
    story = _drawn(run, progress)
    if figures is not None:
        write_figures(figures_of_run(story), figures)
    return _publish(path, one.page(story))


def write_comparison(
    runs: Sequence[Path],
    *,
    out: Path | None = None,
    progress: Progress | None = None,
    figures: Path | None = None,
) -> Path:
    """One page of several runs side by side, `compare.html` in the folder that holds them all (or `out`).

    Raises: CheckpointError when a folder is no run of this release, UsageError where it cannot write.
    """
    path = out or Path(os.path.commonpath([run.absolute().parent for run in runs])) / COMPARISON_FILE
    for run in runs:
        _check(run, path, figures)
    stories = tell_all(runs, progress)
    drawn = overlaid(stories)
    if figures is not None:
        write_figures(drawn, figures)
    return _publish(path, several.page(stories, drawn))


def figures_of_run(story: Story) -> list[Figure]:
    """All figures of a run's numbers."""
    return figures_of(story.metrics, judged=story.judged, start=story.start) + probe_figures(story.probings)


def write_figures(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Each figure as SVG and as PDF, on clear ground in dark ink, a column wide.

    Raises: UsageError when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{figure.name}.{ending}" for figure in figures for ending in ("svg", "pdf")]
        for number, path in enumerate(paths):
            draw(figures[number // 2], path, INK)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written, choose another --figures: {why(error)}") from error
    return paths


def _check(run: Path, page: Path, figures: Path | None) -> None:
    """Find out before all is drawn what cannot be written; of what is no run nothing is made."""
    if not run.is_dir():
        return
    asked = [("--out", page.absolute().parent, page.name)]
    asked += [("--figures", figures, "")] if figures is not None else []
    for option, folder, name in asked:
        try:
            check_takes(folder, name)
        except OSError as error:
            place = folder / name
            raise UsageError(f"{place} cannot be written, choose another {option}: {why(error)}") from error


def _drawn(run: Path, progress: Progress | None) -> Story:
    try:
        return tell(run, progress)
    except OSError as error:
        raise UsageError(
            f"{run} cannot be read, or its pictures not be written into it: {why(error)}"
        ) from error


def _publish(path: Path, text: str) -> Path:
    try:
        Storage(path.absolute().parent).publish(path.name, text.encode(errors="replace"))
    except DataError as error:
        raise UsageError(f"{error}; choose another --out") from error
    return path
