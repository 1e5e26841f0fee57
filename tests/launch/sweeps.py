"""Small sweeps whose elements do not train: a script in place of it writes a run's folder at once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launch.sweep import local
from launch.sweep.axes import read_axes
from launch.sweep.elements import Sweep, make_sweep
from launch.sweep.local import run_here

STAND_IN = """
import json, os, pathlib, sys, time, yaml
config = yaml.safe_load(open(sys.argv[1]))
run = pathlib.Path(config["out"]) / config["name"]
run.mkdir(parents=True, exist_ok=True)
with (run / "starts").open("a") as file:
    file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "-") + "\\n")
(run / "config.yaml").write_text(open(sys.argv[1]).read())
lr = config["optim"]["lr"]
line = {"step": 10, "loss": lr + config["seed"], "perf/clips_per_s": 1.0, "verdict": "healthy"}
(run / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
if lr > 1:
    print("error: the loss is not finite")
    sys.exit(5)
if os.environ.get("FF_SLEEP"):
    time.sleep(60)
result = {"run": str(run), "step": 10, "loss": 1.0, "clips_per_s": 1.0, "seconds": 1.0, "stopped": None}
(run / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture(name="base")
def small_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small config, in a folder to work in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "name: tiny\ndata: {shards: s}\ntrain: {steps: 10}\noptim: {warmup_steps: 1}\n"
    )
    return "c.yaml"


@pytest.fixture(name="stand_in")
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of training: writes a run's folder at once, and fails with a learning rate above 1."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)

    def command(config: Path, nproc: int, python: str) -> list[str]:
        return [sys.executable, str(tmp_path / "stand_in.py"), str(config)]

    monkeypatch.setattr(local, "command_of", command)
    monkeypatch.setattr(local, "POLL_S", 0.01)
    monkeypatch.setattr(local, "LOOK_S", 0.05)


def swept(base: str, *axes: str, name: str | None = "grid", listed: Path | None = None) -> Sweep:
    return make_sweep(base, read_axes(axes, listed), name=name, ranks=1, shares_store=True)


def run(sweep: Sweep, parallel: int = 1, env: dict[str, str] | None = None) -> tuple[int, list[str]]:
    said: list[str] = []
    code, _ = run_here(sweep, nproc=1, parallel=parallel, env=env or {}, say=said.append)
    return code, said


def starts(sweep: Sweep) -> list[int]:
    """How often each element was started."""
    found = [each.run / "starts" for each in sweep.elements]
    return [len(path.read_text().splitlines()) if path.exists() else 0 for path in found]
