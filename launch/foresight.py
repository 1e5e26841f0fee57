"""Rollouts and planning of a run, as files in its folder and tables on a terminal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from data_pipeline.errors import UsageError, why
from data_pipeline.storage import check_takes, write_whole
from data_pipeline.worlds import World
from launch.config import check_document
from launch.console import make_table
from launch.paths import is_folder
from launch.yaml_file import Document
from pretrain.config import RunConfig
from pretrain.maps import draw_maps
from pretrain.planning.agreement import landscapes
from pretrain.planning.landscape import energy_maps, maps_of
from pretrain.planning.measure import NOTHING, RANDOM, Planning, PlanningSettings, measure_planning
from pretrain.planning.search import Cem, Mppi, Search
from pretrain.probe.result import Progress
from pretrain.probe.subject import device_of
from pretrain.rollout import Rollout, load_model, measure_rollout
from pretrain.rollout.measure import HORIZONS

KINDS = ("latent", "at_object", "position")
ROLLOUT_FILE, PLANNING_FILE, LANDSCAPE_FILE = "rollout.json", "planning.json", "landscape.svg"


@dataclass(frozen=True)
class RolloutAsked:
    """What `foreframe rollout` was given. clips: of each split."""

    data: str | None = None
    told: int = 4
    steps: int = 16
    clips: int = 96
    batch: int = 16


def rollout_of(
    run: Path, asked: RolloutAsked, step: int | None, device: str, progress: Progress
) -> tuple[Rollout, Path]:
    """Measure, and keep it in the run's folder. Raises: as `measure_rollout`."""
    _check_takes(run, ROLLOUT_FILE)
    done = 0

    def on_clip() -> None:
        nonlocal done
        done += 1
        progress("rollout", done, 2 * asked.clips, "")

    found = measure_rollout(
        run,
        asked.data,
        told=asked.told,
        steps=asked.steps,
        clips=asked.clips,
        train_clips=asked.clips,
        batch=asked.batch,
        step=step,
        device=str(device_of(device)),
        on_clip=on_clip,
    )
    plain = {name: _listed(getattr(found, name)) for name in KINDS}
    head = {"step": found.step, "told": found.told, "clips": found.clips, "unreadable": found.unreadable}
    return found, _kept(run / ROLLOUT_FILE, head | plain)


def rollout_tables(found: Rollout) -> list[Table]:
    """One of features and one of positions; a row a way of foreseeing, a column a horizon."""
    horizons = [h for h in HORIZONS if h <= found.steps]
    columns = ["", *(f"{h} ahead" for h in horizons)]
    titles = {
        "latent": f"Error of features, L1, {found.clips} clips",
        "at_object": "The same at the place where the object is",
        "position": "Error of the object's position, root mean square, frame widths",
    }
    return [
        make_table(
            title,
            columns,
            [[name, *(f"{errors[h - 1]:.3f}" for h in horizons)] for name, errors in rows.items()],
        )
        for kind, title in titles.items()
        if (rows := getattr(found, kind))
    ]


@dataclass(frozen=True)
class PlanAsked:
    """What `foreframe plan` was given. changes: KEY=VALUE of the world."""

    changes: tuple[str, ...] = ()
    episodes: int = 24
    steps: int = 8
    replan: int = 4
    search: str = "cem"
    samples: int = 64
    turns: int = 5

    def made_search(self, push: float) -> Search:
        """With a deviation of the world's own pushes. Raises: UsageError."""
        if self.search == "cem":
            return Cem(samples=self.samples, turns=self.turns, std=push, min_std=0.1 * push)
        if self.search == "mppi":
            return Mppi(samples=self.samples, turns=self.turns, std=push)
        raise UsageError(f"--search is {self.search!r}: need cem or mppi")


def plan_with(
    run: Path, asked: PlanAsked, step: int | None, device: str, progress: Progress
) -> tuple[Planning, list[Path]]:
    """Act in every way, draw what the search sees in the first task, keep both in the run's folder.

    Raises: ConfigError for a world that cannot be; UsageError; as `measure_planning`.
    """
    where = str(device_of(device))
    model, config = load_model(run, step, where)
    world = world_of(config, asked.changes)
    search = asked.made_search(world.push)
    settings = PlanningSettings(steps=asked.steps, replan=asked.replan)
    _check_takes(run, PLANNING_FILE, LANDSCAPE_FILE)
    done = 0

    def on_episode() -> None:
        nonlocal done
        done += 1
        progress("plan", done, asked.episodes, "")

    found = measure_planning(
        run,
        world,
        episodes=asked.episodes,
        search=search,
        settings=settings,
        step=step,
        device=where,
        on_episode=on_episode,
    )
    ways = {
        way: {
            "success": found.success(way),
            "success_by_distance": found.success_by_distance(way),
            "distance": found.distance(way).tolist(),
            "final": [each.final for each in episodes],
            "plan_ms": None if way in (RANDOM, NOTHING) else found.plan_ms(way),
        }
        for way, episodes in found.episodes.items()
    }
    plain = {
        "step": model.step,
        "world": world.model_dump(mode="json"),
        "settings": asdict(settings),
        "search": {"kind": asked.search, "samples": asked.samples, "turns": asked.turns},
        "goals_by_distance": found.goals_by_distance(),
        "ways": ways,
    }
    seen = landscapes(run, world, tasks=1, settings=settings, step=step, device=where)[0]
    drawn = run / LANDSCAPE_FILE
    title = "Energies of the first goal"
    draw_maps(energy_maps("landscape", title, settings.steps, maps_of(seen)), drawn)
    return found, [_kept(run / PLANNING_FILE, plain | {"landscape": seen.plain()}), drawn]


def planning_table(found: Planning) -> Table:
    rows = [
        [
            way,
            f"{found.success(way):.0%}",
            f"{found.distance(way)[-1]:.3f}",
            "—" if way in (RANDOM, NOTHING) else f"{found.plan_ms(way):,.0f}",
        ]
        for way in found.episodes
    ]
    count = len(next(iter(found.episodes.values())))
    title = f"{count} goals; reached: within {found.settings.reach:g} frame widths at the goal's time"
    return make_table(title, ["", "reached", "distance at the end", "ms a search"], rows)


def world_of(config: RunConfig, changes: tuple[str, ...]) -> World:
    """A world of the run's clock and size, with what was changed. Raises: ConfigError."""
    size = max(32, config.data.size + config.data.size % 2)
    document = Document("the world", {"size": size, "fps": config.data.fps})
    return check_document(document, changes, World)


def _listed(rows: dict[str, Any]) -> dict[str, list[float]]:
    return {name: [round(float(value), 5) for value in values] for name, values in rows.items()}


def _check_takes(run: Path, *names: str) -> None:
    """Whether results can be written, before minutes of work. Raises: UsageError."""
    for name in names if is_folder(run) else ():
        try:
            check_takes(run, name)
        except OSError as error:
            raise UsageError(f"{run / name} cannot be written: {why(error)}") from error


def _kept(path: Path, plain: dict[str, Any]) -> Path:
    write_whole(path, (json.dumps(plain, indent=1) + "\n").encode())
    return path
