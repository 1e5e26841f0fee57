"""Keeps what experiments found: `python -m benchmarks.experiments runs/experiments/collapse …`.

The folder's result.json becomes benchmarks/results/experiment_NAME.json, and `python -m benchmarks.tables`
draws tables and figures of docs/ideas.md from there. A quick form, or one with settings changed by hand, is
refused: a claim needs its seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS, device
from launch.experiment.command import RESULT_FILE, shipped_experiments
from launch.experiment.plots import draw_plots
from launch.experiment.summary import Spread, markdown

FIGURES = Path(__file__).parents[1] / "docs" / "ideas"
LEAST_SEEDS = 5


def spreads_in(found: dict[str, Any]) -> list[Spread]:
    return [
        Spread(
            row["arm"],
            row["level"],
            row["metric"],
            tuple(row["values"]),
            row["difference"],
            row["half"],
        )
        for row in found["rows"]
    ]


def experiment_table(name: str) -> str:
    """Arms by measures, the figures below, and the facts that a reader needs to weigh them."""
    found = json.loads((RESULTS / f"experiment_{name}.json").read_text())
    config = found["config"]
    digits = {each["name"]: each["digits"] for each in config["measures"]}
    lines = [markdown(spreads_in(found), digits, config["axis"]), ""]
    against = config["against"]
    star = (
        f"A star: differs from *{against}*, seed by seed, by more than its 95 % interval. " if against else ""
    )
    lines.append(
        f"Mean ± standard deviation over {config['seeds']} seeds. {star}`foreframe experiment {name}`, "
        f"{found['seconds'] / 60:.0f} minutes of training on {found['device']}. Commit "
        f"{found['commit'][:10]}, {found['date']}."
    )
    for number, plot in enumerate(found["plots"], start=1):
        lines += ["", f"![{plot['title']}](ideas/{name}-{number}.svg)", "", plot["caption"]]
    return "\n".join(lines)


def draw_figures() -> None:
    """Those of every experiment that is kept."""
    for name in shipped_experiments():
        path = RESULTS / f"experiment_{name}.json"
        if path.exists():
            FIGURES.mkdir(exist_ok=True)
            draw_plots(json.loads(path.read_text())["plots"], name, FIGURES)


def read_result(folder: Path) -> dict[str, Any]:
    """What an experiment found. Raises: ValueError for what cannot be read or is not whole."""
    path = folder / RESULT_FILE
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; run the experiment to its end") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): run the same experiment again") from error
    try:
        fault = fault_of(found)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is no result of an experiment: {error!r}") from error
    if fault is not None:
        raise ValueError(f"{folder}: {fault}")
    return found


def fault_of(found: dict[str, Any]) -> str | None:
    """Why a result is no claim; None for one that is."""
    name, config = found["config"]["name"], found["config"]
    if name not in shipped_experiments():
        return f"{name!r} is none of {', '.join(shipped_experiments())}"
    if config["changes"]:
        return f"settings were changed by hand ({' '.join(config['changes'])})"
    if config["seeds"] < LEAST_SEEDS:
        return f"{config['seeds']} seeds of each arm; a claim needs {LEAST_SEEDS}"
    if "missing" in found:
        return f"did not finish: {'; '.join(found['missing'])}" if found["missing"] else None
    counts: dict[tuple[str, float | None], int] = {}
    for row in found["rows"]:
        place = row["arm"], row["level"]
        counts[place] = min(row["n"], counts.get(place, row["n"]))
    levels = [each["value"] for each in config["levels"]] or [None]
    for arm in list(config["stages"].values())[-1]["arms"]:
        for level in levels:
            seeds = counts.get((arm, level), 0)
            if seeds < config["seeds"]:
                at = "" if level is None else f" at {config['axis']} {level:g}"
                return f"{seeds} of {config['seeds']} seeds of {arm!r}{at} have finished; run it to its end"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="what `foreframe experiment` has made")
    for folder in parser.parse_args().folders:
        try:
            found = read_result(folder)
        except ValueError as error:
            parser.error(str(error))
        path = RESULTS / f"experiment_{found['config']['name']}.json"
        path.write_text(json.dumps(found | {"device": device()}, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {path}")
    draw_figures()


if __name__ == "__main__":
    main()
