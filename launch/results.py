"""What is found out about a run after it has ended, and its place beside the run's own numbers in MLflow."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UsageError, why
from data_pipeline.scratch import scratch_folder
from data_pipeline.storage import check_takes
from launch.config import CONFIG_FILE, read_config
from launch.console import Report
from pretrain.config import RunConfig
from pretrain.tracking.base import DatasetFacts, Finding

ASKED = ("kind", "step", "num_train_clips", "num_eval_clips", "data", "data_fingerprint")

if TYPE_CHECKING:
    from pretrain.probe import Asked


def _config_of(run: Path) -> RunConfig:
    if not (run / CONFIG_FILE).is_file():
        raise UsageError(f"{run} is no run's folder: it has no {CONFIG_FILE}; `foreframe train` makes one")
    return read_config(run, [], RunConfig)


def probe_run(run: Path, step: int | None = None, progress: Report | None = None) -> dict[str, Any]:
    """`probe_any` of a run, with what its config says."""
    from pretrain.probe import Asked

    return probe_any(run, Asked(device="auto"), step=step, progress=progress)[0]


def probe_any(
    path: Path,
    asked: Asked,
    *,
    step: int | None = None,
    out: Path | None = None,
    progress: Report | None = None,
) -> tuple[dict[str, Any], Path]:
    """Probe a run's checkpoint or weights; what was found, and the folder that probe.json was written to.

    Scores of a run are added to its tracker, where they are written into its own folder.
    Raises: UsageError for a path that is neither, CheckpointError, DataError.
    """
    from pretrain.probe.offline import run_probe
    from pretrain.probe.result import PROBE_FILE
    from pretrain.probe.subject import of_run, of_weights

    is_run = (path / CONFIG_FILE).is_file()
    if not is_run and not path.exists():
        raise UsageError(f"{path} is no run's folder, and there are no weights: it does not exist")
    if not is_run and step is not None:
        raise UsageError(f"--step {step}: {path} is no run's folder (it has no {CONFIG_FILE}): leave it out")
    if is_run:
        config = _config_of(path)
        subject, folder = of_run(path, step), out or path
    elif asked.data is None:
        raise UsageError(
            f"{path} is no run's folder, whose data set could be taken (it has no {CONFIG_FILE}): name one "
            f"with --data"
        )
    else:
        subject, folder = of_weights(path, asked.data), out or Path(f"probe-{path.stem}")
    try:
        check_takes(folder, PROBE_FILE)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written, choose another --out: {why(error)}") from error
    with scratch_folder() as scratch:
        found = run_probe(subject, folder, asked, scratch=scratch, progress=progress)
    if is_run and folder == path:
        from pretrain.tracking.base import add_results

        scores = {
            f"probe/{row['encoder'].replace(' ', '_')}/{name.replace(' ', '_')}": score
            for row in found["rows"]
            for name, score in row["scores"].items()
            if score is not None
        }
        data = asked.data or config.probe.data or config.data.sources[0].shards
        try:
            add_results(
                config.tracker,
                path,
                step=found["step"],
                scores=scores,
                files=[path / "probe.json"],
                finding=finding_of(found, scores, data),
            )
        except UsageError as error:  # probe.json is there all the same
            logging.getLogger("foreframe").warning("MLflow has not got the scores: %s", error)
    return found, folder


def finding_of(found: dict[str, Any], scores: Mapping[str, float], address: str) -> Finding:
    """A probing as a run below the one that was probed: how it was done, on what, with which scores."""
    params = {key: str(found[key]) for key in ASKED if found.get(key) is not None}
    data: tuple[DatasetFacts, ...] = ()
    if found.get("data_fingerprint"):
        clips = found.get("num_train_clips", 0) + found.get("num_eval_clips", 0)
        data = (DatasetFacts(found["data"], address, found["data_fingerprint"], clips, context="probe"),)
    return Finding(f"probe at step {found['step']}", params, dict(scores), data, str(found.get("how", "")))


def report_run(
    run: Path, out: Path | None = None, progress: Report | None = None, figures: Path | None = None
) -> Path:
    """Write the report, and add it and the pictures of the run to its tracker; returns where it is.

    figures: a folder for figures as SVG and PDF.
    Raises: UsageError for a folder that is no run, or where something cannot be written.
    """
    config = _config_of(run)
    from pretrain.report import write_report
    from pretrain.tracking.base import add_results

    path = write_report(run, out=out, progress=progress, figures=figures)
    found = (run / "pictures").iterdir()  # those over steps, in a folder of their own, are there already
    pictures = sorted(path for path in found if path.is_file() and not path.name.startswith("."))
    try:
        add_results(config.tracker, run, step=last_step(run), scores={}, pictures=pictures, files=[path])
    except UsageError as error:  # the page is there all the same
        logging.getLogger("foreframe").warning("MLflow has not got the report: %s", error)
    return path


def compare_runs(
    runs: Sequence[Path],
    out: Path | None = None,
    progress: Report | None = None,
    figures: Path | None = None,
) -> Path:
    """Write one page of several runs side by side; returns where it is. It changes nothing in the runs.

    figures: a folder for figures as SVG and PDF.
    Raises: UsageError for a folder that is no run, or where something cannot be written.
    """
    for run in runs:
        _config_of(run)
    from pretrain.report import write_comparison

    return write_comparison(runs, out=out, progress=progress, figures=figures)


def last_step(run: Path) -> int:
    """The newest step that a run's folder tells of: logged, or probed; 0 before both, or of damaged files."""
    from pretrain.report.records import is_finite, read_records

    records = read_records(run)
    probed = (records.probe or {}).get("step")
    logged = records.metrics[-1]["step"] if records.metrics else 0
    return max(logged, int(probed) if is_finite(probed) else 0)
