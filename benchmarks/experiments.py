"""Keeps what experiments found: `python -m benchmarks.experiments runs/experiments/collapse …`.

The folder's result.json becomes benchmarks/results/experiment_NAME.json, and `python -m benchmarks.tables`
draws tables and figures of docs/ideas.md from there. A claim needs five seeds. Fewer are kept as a part, in
results/parts; `foreframe experiment NAME --first-seed K` runs others, elsewhere or another day, and when
five from the first on are there, the parts become the result. Refused are a quick form, and other settings
than those that are shipped, changed by hand or since.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS
from data_pipeline.storage import write_whole
from launch.experiment.command import Asked, read_experiment, shipped_experiments
from launch.experiment.joined import joined, seeds_of, seeds_of_all, why_no_part
from launch.experiment.kept import changes_of, read_kept, why_not_whole, why_other
from launch.experiment.maps import draw_all_maps, file_name
from launch.experiment.plots import draw_plots
from launch.experiment.result import RESULT_FILE, notes_of
from launch.experiment.summary import all_tables, grouped, spreads_in

FIGURES = Path(__file__).parents[1] / "docs" / "ideas"
LEAST_SEEDS = 5
PARTS = "parts"  # of the results' folder: fewer seeds than a claim needs


def experiment_table(name: str) -> str:
    """Arms by measures, the figures below, and the facts that a reader needs to weigh them."""
    found = json.loads((RESULTS / f"experiment_{name}.json").read_text())
    config = found["config"]
    lines = [all_tables(spreads_in(found["rows"]), grouped(config["measures"]), config["axis"]), ""]
    against = config["against"]
    star = (
        f"A star: differs from *{against}*, seed by seed, by more than its 95 % interval. " if against else ""
    )
    notes = "".join(f"{note} " for note in notes_of(config))
    commits = [f"{commit[:10]}{commit[40:]}" for commit in found["commits"]]
    lines.append(
        f"Mean ± standard deviation over {config['seeds']} seeds. {notes}{star}`foreframe experiment "
        f"{name}`, {found['seconds'] / 60:.0f} minutes of training, all runs added up, on "
        f"{found['device']}. Code: {', '.join(commits) or 'not known'}. {found['date']}."
    )
    for number, plot in enumerate(found["plots"], start=1):
        lines += ["", f"![{plot['title']}](ideas/{name}-{number}.svg)", "", plot["caption"]]
    for maps in found.get("maps", []):
        lines += ["", f"![{maps['title']}](ideas/{file_name(maps, name)})", "", maps["caption"]]
    return "\n".join(lines)


def draw_figures() -> None:
    """Those of every experiment that is kept."""
    for name in shipped_experiments():
        path = RESULTS / f"experiment_{name}.json"
        if path.exists():
            FIGURES.mkdir(exist_ok=True)
            found = json.loads(path.read_text())
            draw_plots(found["plots"], name, FIGURES)
            draw_all_maps(found.get("maps", []), name, FIGURES)


def read_result(folder: Path) -> dict[str, Any]:
    """What an experiment found. Raises: ValueError for what cannot be read or is not whole."""
    found = read_kept(folder / RESULT_FILE)
    if (fault := refusal(found)) is not None:
        raise ValueError(f"{folder}: {fault}")
    return found


def refusal(found: dict[str, Any]) -> str | None:
    """Why a result is none that can be kept; None where it is."""
    name, changes = found["config"]["name"], changes_of(found)
    if name not in shipped_experiments():
        return f"{name!r} is none of {', '.join(shipped_experiments())}"
    if changes:
        return f"settings were changed by hand ({' '.join(changes)})"
    other = why_other(found, read_experiment(Asked(name)), f"configs/experiments/{name}.yaml")
    return other or why_not_whole(found)


def keep(found: dict[str, Any], results: Path) -> str:
    """Keep a result, or a part of one, in a folder; what was done, in a line.

    A part takes the place of those whose seeds are all in it. It is put together with other parts, and with
    the result that is there where that is of the same settings and other seeds. Raises: ValueError where it
    goes with them by no means, or a result has these seeds and more.
    """
    name, own = found["config"]["name"], seeds_of(found)
    folder, path = results / PARTS, results / f"experiment_{name}.json"
    parts = {each: read_kept(each) for each in sorted(folder.glob(f"experiment_{name}-*.json"))}
    others = [each for each in parts.values() if not set(seeds_of(each)) <= set(own)]
    if is_enough(own):  # by itself: what goes with it is put to it, and nothing is in its way
        others = [each for each in others if refusal(each) is None and not set(seeds_of(each)) & set(own)]
    if path.exists() and refusal(earlier := read_kept(path)) is None:
        if set(own) < set(seeds_of(earlier)):
            raise ValueError(f"{path} has these seeds and others: remove it, and these are kept")
        others += [] if set(own) & set(seeds_of(earlier)) else [earlier]
    joining = [found, *others]
    for each in joining if len(joining) > 1 else ():
        if (fault := refusal(each) or why_no_part(each)) is not None:
            raise ValueError(f"of {name}, seed {seeds_of(each).start} on: {fault}")
    try:
        seeds = seeds_of_all(joining)
        first = [each for each in joining if seeds_of(each).stop <= num_from_first(seeds)]
        whole = joined(first) if is_enough(seeds) else None
    except ValueError as error:
        raise ValueError(f"{name}, with what {folder} holds: {error}") from error
    if whole is not None and set(own) <= set(seeds_of(whole)):
        write_whole(path, _plain(whole))
        covered, told = set(seeds_of(whole)), f"wrote {path}"
    else:
        folder.mkdir(exist_ok=True)
        path = folder / f"experiment_{name}-{own.start}-{own.stop - 1}.json"
        write_whole(path, _plain(found))
        there = ", ".join(map(str, seeds))
        covered, told = (
            set(own),
            f"wrote {path}: of {name} seed {there}; a claim needs {LEAST_SEEDS}, from 0 on",
        )
    for part, each in parts.items():
        if part != path and set(seeds_of(each)) <= covered:
            part.unlink()
    return told


def num_from_first(seeds: Sequence[int]) -> int:
    """How many follow each other from 0 on."""
    return next((number for number, seed in enumerate(seeds) if number != seed), len(seeds))


def is_enough(seeds: Sequence[int]) -> bool:
    return num_from_first(seeds) >= LEAST_SEEDS


def _plain(found: dict[str, Any]) -> bytes:
    return (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="what `foreframe experiment` has made")
    for folder in parser.parse_args().folders:
        try:
            print(keep(read_result(folder), RESULTS))
        except ValueError as error:
            parser.error(str(error))
    draw_figures()


if __name__ == "__main__":
    main()
