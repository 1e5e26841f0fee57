"""Which checkpoints stay: the newest, those at round steps, the best by a probe."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.manifest import FOLDER, MANIFEST, step_of
from pretrain.checkpoint.whole import step_folders

PROBES_FILE = "probes.jsonl"
GONE = ".old.part"  # the end of the name of what is being removed; it counts for nothing

Scores = Mapping[int, Mapping[str, float]]
"""By step, then by name of the score; higher is better."""


def sound_until(manifest: Mapping[str, Any]) -> int | None:
    """The last step that a run may have to go back to: of the last look without a sign of trouble.

    None of a run that does not go back by itself, and whose latest look was well.
    """
    history = manifest["progress"]["history"]
    goes_back = manifest["config"]["health"]["on_collapse"] == "rollback"
    return int(history["sound_step"]) if history["streaks"] or goes_back else None


@dataclass(frozen=True)
class Retention:
    """What to keep of a run.

    newest: how many of the newest. every: steps whose multiples are kept for good. best: name of a score.
    healthy: the newest up to this step stays, so that there is one from before a trouble.
    """

    newest: int
    every: int | None = None
    best: str | None = None
    healthy: int | None = None

    def kept(self, steps: Collection[int], scores: Scores) -> dict[int, str]:
        """The steps that stay, of those that are whole, each with the reason; the newest always does."""
        reasons: dict[int, list[str]] = {step: [] for step in sorted(steps, reverse=True)}
        for step in list(reasons)[: max(1, self.newest)]:
            reasons[step].append("newest" if step == max(steps) else f"one of the newest {self.newest}")
        for step in reasons:
            if self.every is not None and step % self.every == 0:
                reasons[step].append(f"a multiple of {self.every}")
        before = [step for step in steps if self.healthy is not None and step <= self.healthy]
        if before and max(before) != max(steps):
            reasons[max(before)].append("from before the trouble")
        best = None if self.best is None else best_step(steps, scores, self.best)
        if best is not None:
            reasons[best].append(f"best {self.best}")
        return {step: ", ".join(why) for step, why in reasons.items() if why}


def best_step(steps: Iterable[int], scores: Scores, name: str) -> int | None:
    """The step with the highest score of this name, the later of equals; None when none has one."""
    known = [(scores[step][name], step) for step in steps if name in scores.get(step, {})]
    return max(known)[1] if known else None


def read_scores(run: Path) -> dict[int, dict[str, float]]:
    """What probes found of the trained encoder, by step; the last probing of a step counts.

    Where a score was taken while training, `foreframe probe`'s of the same name are left out: they are of
    other clips and features, and higher or lower for that alone. Lines that a crash left half-written are not
    among them.
    """
    try:
        text = (run / PROBES_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:  # none was probed, or it cannot be told
        return {}
    found: dict[bool, dict[int, dict[str, float]]] = {False: {}, True: {}}
    for line in text.splitlines():
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            plain = json.loads(line)
            scores = {str(name): float(value) for name, value in plain["scores"].items() if value is not None}
            finite = {name: value for name, value in scores.items() if math.isfinite(value)}
            found[plain.get("kind") == "online"][int(plain["step"])] = finite
    offline, online = found[False], found[True]
    taken = {name for scores in online.values() for name in scores}
    merged = {
        step: {name: value for name, value in scores.items() if name not in taken}
        for step, scores in offline.items()
    }
    for step, scores in online.items():
        merged.setdefault(step, {}).update(scores)
    return merged


def doomed(run: Path, rule: Retention, newest: str, damaged: Collection[str]) -> list[str]:
    """Names of the checkpoint folders that are to go, now that the one named `newest` is whole.

    damaged: names of what was passed over: it counts for nothing and goes. Others later than the newest stay:
    they could not be judged.
    """
    folders, last = step_folders(run), step_of(newest) or 0
    whole = {
        step
        for path in folders
        if (step := step_of(path.name)) is not None and step <= last
        if (path / MANIFEST).is_file() and path.name not in damaged
    }
    kept = rule.kept(whole, read_scores(run))
    is_later = {path.name for path in folders if (step_of(path.name) or 0) > last} - set(damaged)
    return [path.name for path in folders if step_of(path.name) not in kept and path.name not in is_later]


def take_out(run: Path, names: Iterable[str]) -> None:
    """Let these checkpoints count no more, each by one rename; missing ones are no error."""
    for name in names:
        folder = run / FOLDER / name
        with suppress(OSError):  # another rank was faster, or the folder is kept by its permissions
            folder.rename(folder.with_name(name + GONE))


def clear(run: Path, but: str | None = None) -> None:
    """Remove what counts no more: what was taken out, and what a save or a download left unfinished.

    but: the name of what is being written.
    """
    for folder in (run / FOLDER).glob("step-*.part"):
        if folder.name != but:
            shutil.rmtree(folder, ignore_errors=True)
