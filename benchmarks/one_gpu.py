"""What a run takes on one GPU, by `foreframe estimate`, beside what one H100 did."""

from __future__ import annotations

import json

from benchmarks.measuring import RESULTS
from benchmarks.scale import markdown
from launch.config import read_config
from launch.estimate import Estimate, Stated, estimate, gpu_of
from launch.estimate.units import duration
from pretrain.config import RunConfig

RECIPES = ("vits16-one-gpu", "vits16-16f", "vjepa2-vitl16", "vjepa2-vitg16")
GPUS = {"RTX 4090": "rtx4090", "H100": "h100"}
MEASURED = {"vjepa2-vitl16": "ViT-L, 16 frames of 256²", "vjepa2-vitg16": "ViT-g, 16 frames of 256²"}


def config_of(recipe: str) -> RunConfig:
    return read_config(f"configs/train/{recipe}.yaml", [], RunConfig)


def on_one(recipe: str, gpu: str) -> Estimate:
    return estimate(config_of(recipe), Stated(gpu_of(gpu, None, None, None)))


def measured(recipe: str) -> float | None:
    """Clips a second of the recipe's step on one H100; None where none was taken."""
    rows = [
        row
        for part in json.loads((RESULTS / "gpu.json").read_text(encoding="utf-8"))["parts"]
        for row in part["rows"]
        if row["metric"] == "clips a second, equal masks" and row["case"] == MEASURED.get(recipe)
    ]
    return rows[0]["ours"] if rows else None


def kept(found: Estimate) -> int:
    """Clips of a forward that fit with nothing computed again."""
    return found.columns[found.own].room


def one_gpu_table() -> str:
    found = {(recipe, name): on_one(recipe, gpu) for recipe in RECIPES for name, gpu in GPUS.items()}
    runs = {recipe: found[recipe, "H100"] for recipe in RECIPES}
    clips = {recipe: run.clips * run.steps for recipe, run in runs.items()}
    rates = {recipe: measured(recipe) for recipe in RECIPES}
    rows = [
        ["clips a step", *(f"{run.clips:,}" for run in runs.values())],
        ["steps", *(f"{run.steps:,}" for run in runs.values())],
        ["clips, all steps", *(f"{each / 1e6:,.0f} M" for each in clips.values())],
    ]
    for name in GPUS:
        each = {recipe: found[recipe, name] for recipe in RECIPES}
        most = [kept(one) for one in each.values()]
        rows += [
            [f"{name}: clips of a forward, all kept", *(f"{room:,}" if room else "not one" for room in most)],
            [f"{name}: clips a second", *(f"{one.speed.clips_per_s:,.0f}" for one in each.values())],
            [f"{name}: the run", *(duration(86_400 * one.days) for one in each.values())],
        ]
    speeds = [f"{rate:.3g}" if rate else "not measured" for rate in rates.values()]
    lengths = [duration(clips[recipe] / rate) if rate else "" for recipe, rate in rates.items()]
    rows += [["H100, measured: clips a second", *speeds], ["the run at that rate", *lengths]]
    few = clips[RECIPES[0]]
    for name in GPUS:
        rates_of = [found[recipe, name].speed.clips_per_s for recipe in RECIPES]
        rows.append([f"{name}: {few / 1e6:,.0f} M clips", *(duration(few / rate) for rate in rates_of)])
    words = (
        "By `foreframe estimate CONFIG --gpu GPU`, on paper, each recipe as its file is. *Measured*: steps",
        "of 16 clips (ViT-L) and 8 (ViT-g), nothing computed again, masks cut to equal lengths, which have",
        "fewer tokens than those of a run (`benchmarks/results/gpu.json`).",
    )
    return f"{markdown(['one GPU', *RECIPES], rows)}\n\n{' '.join(words)}"
