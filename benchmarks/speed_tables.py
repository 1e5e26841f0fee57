"""The tables of docs/speed.md and the README: steps, the moving average, checkpoints, scaling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu import EXTRA, LIMITS, TOTAL_S
from benchmarks.kernel_tables import ATTENTION
from benchmarks.running import plain

RESULTS = Path(__file__).with_name("results")
META = "Meta's code"


def step_table(device: str) -> str:
    """Whole steps beside Meta's code, the encoder beside transformers', and the share of the floor."""
    found = json.loads((RESULTS / f"train_step_{device}.json").read_text())
    rows = found["rows"]
    lines = ["| clips a second | foreframe | beside | times (from, to) | of the floor: ours, theirs |"]
    lines.append("|---|---:|---:|---:|---:|")
    for row in rows:
        if row["unit"] != "clips/s" or row["metric"].startswith("against"):
            continue
        is_step = row["metric"].startswith("clips a second, equal")
        shares = [_share(rows, row["case"], each) for each in ("ours", META)] if is_step else []
        of_floor = ", ".join(f"{each:.0f} %" for each in shares if each is not None)
        what = row["case"] if is_step else f"{row['case']}: encoder alone, forward and backward"
        lines.append(f"| {what} | {row['ours']:.3g} | {_beside(row)} | {_ratio(row)} | {of_floor} |")
    return "\n".join([*lines, "", _facts(found)])


def _beside(row: dict[str, Any]) -> str:
    return "" if row["reference"] is None else f"{plain(row['reference'], 3)}, {row['reference_name']}"


def gains_table(device: str) -> str:
    """What each of the settings that make a step fast gains, and where the time of a step goes."""
    found = json.loads((RESULTS / f"train_step_{device}.json").read_text())
    rows = found["rows"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = list(dict.fromkeys(row["metric"] for row in rows if row["metric"].startswith("against ")))
    lines = [f"| as it is, times as fast as with … | {' | '.join(cases)} |", "|---|" + "---:|" * len(cases)]
    for name in names:
        each = {row["case"]: _ratio(row) for row in rows if row["metric"] == name}
        told = " | ".join(each.get(case, "") for case in cases)
        lines.append(f"| {name.removeprefix('against ')} | {told} |")
    lines += ["", f"| ms of a step, and its share | {' | '.join(cases)} |", "|---|" + "---:|" * len(cases)]
    for name in dict.fromkeys(row["metric"] for row in rows if row["metric"].startswith("part: ")):
        each = {
            row["case"]: f"{row['ours']:.3g} ({100 * row['share']:.0f} %){_rate(row)}"
            for row in rows
            if row["metric"] == name
        }
        told = " | ".join(each.get(case, "") for case in cases)
        lines.append(f"| {name.removeprefix('part: ')} | {told} |")
    for name in dict.fromkeys(row["metric"] for row in rows if row["metric"].startswith("matrix rate")):
        each = {row["case"]: f"{row['ours']:.3g} GFLOP/s" for row in rows if row["metric"] == name}
        lines.append(f"| {name} | {' | '.join(each.get(case, '') for case in cases)} |")
    return "\n".join(lines)


def _rate(row: dict[str, Any]) -> str:
    return f", {row['gflops_a_second']:.3g} GFLOP/s" if "gflops_a_second" in row else ""


def pairs_table(name: str) -> str:
    """A line a row of a results file."""
    found = json.loads((RESULTS / f"{name}.json").read_text())
    lines = ["| | | foreframe | beside | times (from, to) |", "|---|---|---:|---:|---:|"]
    for row in found["rows"]:
        beside = _beside(row)
        ratio = _ratio(row) if beside else ""
        lines.append(f"| {row['case']} | {row['metric']} | {_value(row)} | {beside} | {ratio} |")
    return "\n".join([*lines, "", _facts(found)])


def gpu_table() -> str:
    """A line a row of every part that one GPU was measured for, and how each part ended that has none.

    Attention alone is in docs/speed/compile.md.
    """
    found = json.loads((RESULTS / "gpu.json").read_text())
    lines = ["| | | foreframe | beside | times (from, to) |", "|---|---|---:|---:|---:|"]
    for part in found["parts"]:
        if part["name"] == ATTENTION and part["rows"]:
            continue
        if not part["rows"]:
            lines.append(f"| {part['name']} | {part['ended']} | | | |")
        for row in part["rows"]:
            beside = _beside(row)
            ratio = _ratio(row) if beside else ""
            lines.append(f"| {row['case']} | {row['metric']} | {_value(row)} | {beside} | {ratio} |")
    cut = [f"{part['name']} ({part['ended']})" for part in found["parts"] if part["ended"] != "done"]
    not_whole = f" Not whole: {', '.join(cut)}." if cut else ""
    facts = (
        f"Medians, spread by pair; above 1 is better.{not_whole} {found['device']}, torch "
        f"{found['versions']['torch']}. Commit {(found['commit'] or 'not known')[:10]}, {found['date']}."
    )
    return "\n".join([*lines, "", facts])


def limits_table() -> str:
    """The parts of `make bench-gpu`, the seconds that each may take, and what they are for."""
    lines = ["| part | limit, s | why |", "|---|---:|---|"]
    lines += [f"| `{name}` | {limit_s} | {why} |" for name, (limit_s, why) in LIMITS.items()]
    usual = sum(limit_s for name, (limit_s, _) in LIMITS.items() if name not in EXTRA)
    return "\n".join(
        [*lines, f"| together | {usual} | of those that are not named; `--total-s` is {TOTAL_S:.0f} |"]
    )


def _value(row: dict[str, Any]) -> str:
    if row["ours"] is None:
        return "–"
    return plain(row["ours"], 3) + (f" {row['unit']}" if row["unit"] else "")


def _share(rows: list[dict[str, Any]], case: str, who: str) -> float | None:
    metric = f"share of the best matrix rate, {who}"
    return next((row["ours"] for row in rows if (row["case"], row["metric"]) == (case, metric)), None)


def _ratio(row: dict[str, Any]) -> str:
    if row["ratio"] is None:
        return ""
    return f"{row['ratio']:.2f} ({row['min']:.2f}, {row['max']:.2f})"


def _facts(found: dict[str, Any]) -> str:
    config = found["config"]
    loads = config.get("busy_with_other_work") or [0.0]
    return (
        f"Medians of {config['turns']} turns each, spread by pair; above 1 is better. {found['device']}, "
        f"torch {found['versions']['torch']}, up to {100 * max(loads):.0f} % of it busy with other work when "
        f"a turn began. Commit {found['commit'][:10]}, {found['date']}."
    )
