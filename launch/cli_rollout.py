"""`foreframe rollout` and `foreframe plan`: what an action predictor foresees, and what that is good for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a run of objective.kind action_latent.")
]
Step = Annotated[int | None, typer.Option(min=0, help="Checkpoint's step; without it the last.")]
Device = Annotated[str, typer.Option(help="cuda, cpu, or auto: cuda where there is one.")]
Shards = Annotated[
    str | None, typer.Option(metavar="SHARDS", help="Data set; without it the one it was trained on.")
]


def rollout(
    run: RunFolder,
    data: Shards = None,
    told: Annotated[int, typer.Option(min=1, max=10_000, help="Frames that are known.")] = 4,
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Frames foreseen, one from another.")] = 16,
    clips: Annotated[int, typer.Option(min=8, help="Eval clips, at most.")] = 96,
    batch: Annotated[int, typer.Option(min=1, help="Clips foreseen at once: less takes less memory.")] = 16,
    step: Step = None,
    device: Device = "auto",
) -> None:
    """Roll the predictor of an action_latent run out, and say how far it is from what came.

    With the true actions, those of other clips, and none; beside a copy of the last frame, the mean frame,
    and positions read from the true features. Writes rollout.json in the run's folder.
    """
    from launch.console import Stages, make_console
    from launch.foresight import RolloutAsked, rollout_of, rollout_tables

    asked = RolloutAsked(data, told, steps, clips, batch)
    console = make_console()
    with Stages(console).showing() as report:
        found, path = rollout_of(run, asked, step, device, report)
    for table in rollout_tables(found):
        console.print(table)
    print(f"wrote  {path}")


def plan(
    run: RunFolder,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of the world, such as leaves=0.5 walls=0.2."),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, max=100_000, help="Goals, each tried in every way.")] = 24,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Frames until the goal's time.")] = 8,
    replan: Annotated[int, typer.Option(min=1, help="Frames between searches.")] = 4,
    search: Annotated[str, typer.Option(help="cem or mppi.")] = "cem",
    samples: Annotated[int, typer.Option(min=2, max=65_536, help="Action sequences tried at once.")] = 64,
    turns: Annotated[int, typer.Option(min=1, max=1000, help="How often a search draws anew.")] = 5,
    step: Step = None,
    device: Device = "auto",
) -> None:
    """Reach goal pictures in the simulated world by searching actions through an action_latent run.

    Beside those who know more (the true world, the true distance) and less (random, nothing). The world has
    the run's clock and size unless settings say otherwise (docs/worlds.md): name those of the videos it was
    trained on. Writes planning.json and landscape.svg in the run's folder.
    """
    from launch.console import Stages, make_console
    from launch.foresight import PlanAsked, plan_with, planning_table

    asked = PlanAsked(tuple(changes or ()), episodes, steps, replan, search, samples, turns)
    console = make_console()
    with Stages(console).showing() as report:
        found, paths = plan_with(run, asked, step, device, report)
    console.print(planning_table(found))
    for path in paths:
        print(f"wrote  {path}")
