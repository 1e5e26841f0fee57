"""Where the pictures of a run's steps lie: `pictures/steps/<step>/<name>.png`."""

from __future__ import annotations

import shutil
from pathlib import Path

STEPS_FOLDER = Path("pictures", "steps")


def folder_of_step(run: Path, step: int) -> Path:
    return run / STEPS_FOLDER / f"{step:08d}"


def step_pictures(run: Path) -> list[tuple[int, Path]]:
    """(step, path) of all that were finished, in the order of steps."""
    found = (run / STEPS_FOLDER).glob("[0-9]*/*.png")
    return sorted(
        (int(path.parent.name), path) for path in found if path.parent.name.isdigit() and path.name[0] != "."
    )


def take_back_pictures(run: Path, after: int) -> None:
    """Remove those of steps later than `after`: training goes on from there, and will draw them again."""
    for folder in (run / STEPS_FOLDER).glob("[0-9]*"):
        if folder.name.isdigit() and int(folder.name) > after:
            shutil.rmtree(folder, ignore_errors=True)  # one that another process is removing too
