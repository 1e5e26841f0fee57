"""Writes runs' folders as training leaves them, without training: every file that a report reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config import RunConfig

EVERY_LOOK = 5  # logged lines
UNITS = {"position": "R²", "velocity": "R²", "shape": "share right"}
UNTRAINED = {"position": 0.62, "velocity": 0.30, "shape": 0.44}


def write_run(
    folder: Path,
    *,
    name: str = "tiny",
    steps: int = 200,
    done: int | None = None,
    log_every: int = 2,
    seed: int = 0,
    collapses: bool = False,
    probes: bool = True,
    config: Mapping[str, Mapping[str, Any]] | None = None,
    metrics: Mapping[str, Any] | None = None,
    data: str = "52f4fa5ed730a587",
) -> Path:
    """A run's folder of `done` of `steps` steps; metrics: values that every line gets.

    collapses: features lose their spread half-way, and the verdict says so.
    """
    folder.mkdir(parents=True)
    shards = folder.parent / "data"
    shards.mkdir(exist_ok=True)
    plain: dict[str, Any] = {
        "name": name,
        "seed": seed,
        "data": {"shards": str(shards), "workers": 4},
        "optim": {"lr": 1e-3, "warmup_steps": min(10, steps), "clip_norm": 1.0},
        "train": {"steps": steps, "global_batch": 48, "checkpoint_every": 50},
        "tracker": {"kind": "jsonl"},
    }
    for section, values in (config or {}).items():
        plain[section] = {**plain.get(section, {}), **values} if isinstance(values, Mapping) else values
    found = RunConfig.model_validate(plain)
    (folder / "config.yaml").write_text(json.dumps(found.model_dump(mode="json")))
    last = steps if done is None else done
    lines = lines_of(last, log_every, seed=seed, collapses=collapses)
    write_lines(folder / "metrics.jsonl", [line | dict(metrics or {}) for line in lines])
    write_object(folder / "provenance.json", provenance(data))
    write_object(folder / "result.json", {"run": str(folder), "step": last, "stopped": None})
    if probes and last >= 40:
        write_lines(folder / "probes.jsonl", probings(last, seed, collapses))
        write_object(folder / "probe.json", probe(last, seed))
    return folder


def lines_of(
    last: int, log_every: int = 2, *, seed: int = 0, collapses: bool = False
) -> list[dict[str, Any]]:
    """metrics.jsonl of a run: a line at step 1 and every `log_every` steps."""
    rng = np.random.default_rng(seed)
    found = []
    for number, step in enumerate([1, *range(log_every, last + 1, log_every)]):
        share = step / last
        loss = 0.35 + 0.55 * math.exp(-4 * share) + 0.01 * rng.normal()
        line: dict[str, Any] = {
            "step": step,
            "loss": loss,
            "loss/mask0": loss - 0.01,
            "loss/mask1": loss + 0.01,
            "optim/lr": 1e-3 * min(1.0, step / 10),
            "optim/momentum": 0.99 + 0.006 * share,
            "optim/weight_decay": 0.04,
            "optim/grad_norm": 0.6 * math.exp(0.2 * rng.normal()),
            "optim/skipped_steps": 0,
            "perf/clips_per_s": 420.0 + 5 * rng.normal(),
            "perf/step_ms": 110.0,
            "data/wait_share": 0.02,
            "batch_digest": f"{step:016x}",
            "time_s": 0.11 * step,
        }
        if number % EVERY_LOOK == 0 or step == last:
            line |= look(share, first=number == 0, collapses=collapses)
        if step % 50 == 0:
            line["perf/save_stall_ms"] = 40.0
        found.append(line)
    return found


def look(share: float, *, first: bool, collapses: bool) -> dict[str, Any]:
    """What a look at the features writes, at `share` of the run."""
    is_gone = collapses and share > 0.5
    std = 0.8 * (1 - 0.2 * share) if not is_gone else 0.8 * math.exp(-9 * (share - 0.5))
    rank = 60 + 20 * share if not is_gone else 60 * math.exp(-5 * (share - 0.5)) + 1
    values: dict[str, Any] = {}
    for features, scale in (("target", 1.0), ("context", 0.9), ("prediction", 0.4)):
        values |= {
            f"health/{features}_std": scale * std,
            f"health/{features}_rankme": scale * rank,
            f"health/{features}_effective_rank": scale * rank / 3,
            f"health/{features}_correlation": 0.1 + 0.05 * share,
        }
    if first:
        values |= {f"{key}_start": value for key, value in values.items()}
    worst = 0.001 if is_gone else 0.02
    words = {
        "verdict": "healthy" if not is_gone else "warning" if share < 0.7 else "collapsing",
        "verdict_reason": f"features vary across clips by {std:.3g}",
    }
    return (
        values
        | words
        | {
            "health/alignment": 0.2 + 0.7 * share,
            "health/explained": 0.6 * share,
            "health/loss_prediction": 0.35 + 0.55 * math.exp(-4 * share),
            "health/loss_mean_token": 0.92 if not is_gone else 0.3,
            "health/loss_copy": 0.8 if not is_gone else 0.3,
            "health/ema_distance": worst,
            "optim/grad_norm_encoder": 0.5,
            "optim/grad_norm_predictor": 0.3,
            "optim/param_norm_encoder": 40 + share,
            "optim/param_norm_predictor": 20 + share,
            "optim/update_norm_encoder": 0.01,
            "optim/update_norm_predictor": 0.02,
            "perf/health_ms": 0.5,
            "system/host_memory_bytes": 1.4e9 + 1e8 * share,
            "system/cpu_share": 0.9,
        }
    )


def probings(last: int, seed: int, collapses: bool = False) -> list[dict[str, Any]]:
    """probes.jsonl of a run that probes four times; the third is the best."""
    rng = np.random.default_rng(100 + seed)
    found = []
    for number, gain in enumerate((0.04, 0.09, 0.15, 0.11)):
        sign = -1 if collapses and number > 1 else 1
        scores = {name: value + sign * gain + 0.005 * rng.normal() for name, value in UNTRAINED.items()}
        step = last * (number + 1) // 4
        found.append({"step": step, "scores": scores, "untrained": UNTRAINED, "kind": "online"})
    return found


def probe(last: int, seed: int = 0) -> dict[str, Any]:
    """probe.json, with the tables of other readouts beside its own."""
    rng = np.random.default_rng(200 + seed)
    trained = {name: value + 0.12 + 0.01 * rng.normal() for name, value in UNTRAINED.items()}
    return {
        "kind": "states",
        "step": last,
        "num_train_clips": 600,
        "num_eval_clips": 900,
        "data": "demo",
        "data_fingerprint": "52f4fa5ed730a587",
        "unreadable": [],
        "units": UNITS,
        "how": "ridge regression from frozen features",
        "rows": [
            {"encoder": "trained", "scores": trained},
            {"encoder": "untrained", "scores": UNTRAINED},
            {
                "encoder": "mean of the train clips",
                "scores": {"position": 0.0, "velocity": 0.0, "shape": 0.33},
            },
        ],
        "labels": {
            "how": "each on the same clips, best of five learning rates",
            "units": {"top-1": "share right", "top-5": "share right"},
            "rows": [
                {
                    "encoder": encoder,
                    "readout": readout,
                    "scores": {"top-1": top + gain, "top-5": top + gain + 0.2},
                }
                for readout, top in (("attentive", 0.5), ("linear", 0.45), ("knn", 0.4))
                for encoder, gain in (("trained", 0.12), ("untrained", 0.0))
            ],
        },
    }


def provenance(data: str = "52f4fa5ed730a587") -> dict[str, Any]:
    return {
        "commit": "32402d0b34732ee38c67c148f01b19d65e6c1077",
        "patch": None,
        "versions": {"python": "3.11.7", "torch": "2.13.0", "foreframe": "0.1.0"},
        "host": "node-7",
        "world_size": 1,
        "device": "CPU: 2 cores",
        "datasets": [
            {"name": "demo", "address": "data/demo", "fingerprint": data, "num_clips": 510, "weight": 1.0}
        ],
    }


def write_troubles(folder: Path) -> None:
    """Restarts, a rollback, and samples that could not be read, as they are written down."""
    attempt = {
        "attempt": 1,
        "node": 0,
        "began": "2026-11-20T08:00:00+00:00",
        "seconds": 3600.0,
        "from_step": 0,
        "to_step": 50,
        "reached": 84,
        "exit_code": None,
        "signal": "SIGKILL",
        "kind": "killed",
        "sentence": "a rank was killed; `foreframe train runs/x` goes on",
        "next": "restarted",
    }
    again = {
        "attempt": 2,
        "began": "2026-11-20T09:00:10+00:00",
        "from_step": 50,
        "to_step": 200,
        "reached": 200,
    }
    done = {"exit_code": 0, "signal": None, "kind": "done", "sentence": "", "next": "done"}
    write_lines(folder / "restarts.jsonl", [attempt, attempt | again | done])
    write_lines(
        folder / "health.jsonl",
        [
            {
                "step": 120,
                "verdict": "warning",
                "reason": "spread falls",
                "response": "warned",
                "to_step": None,
            },
            {
                "step": 130,
                "verdict": "collapsing",
                "reason": "spread is 6 % of the start",
                "response": "rolled back",
                "to_step": 100,
                "changes": {"optim.lr": 0.0005},
                "time": "2026-11-20T09:30:00",
            },
        ],
    )
    write_lines(
        folder / "rolled_back.jsonl", [{"step": s, "loss": 0.2, "rollback": 1} for s in range(102, 131, 2)]
    )
    write_lines(
        folder / "skipped.jsonl",
        [
            {"step": 3, "id": "video-7/0001", "reason": "the clip is cut short"},
            {"step": 9, "id": "b", "reason": "no"},
        ],
    )


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_object(path: Path, plain: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(plain, indent=1))
