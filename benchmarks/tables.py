"""Draws the tables of the pages from benchmarks/results, and those of docs/scale.md from the estimate:
`python -m benchmarks.tables`.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.experiments import draw_figures, experiment_table
from benchmarks.kernel_tables import attention_table, gpu_attention_table
from benchmarks.one_gpu import one_gpu_table
from benchmarks.scale import SCALE
from benchmarks.speed_tables import gains_table, gpu_table, limits_table, pairs_table, step_table
from launch.experiment.command import shipped_experiments

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def demo_table() -> str:
    """What the demo learned, as Markdown, with the facts that a reader needs to weigh it."""
    found = json.loads((RESULTS / "demo.json").read_text())
    config = found["config"]
    lines = ["| read from frozen features | trained | untrained | |", "|---|---:|---:|---|"]
    for row in found["rows"]:
        drop = "noise: a model may well drop it" if row["case"] == "background drift" else ""
        lines.append(
            f"| {row['case']}, {row['metric']} | {row['ours']:.2f} | {row['reference']:.2f} | {drop} |"
        )
    lines.append("")
    lines.append(
        f"One run of `make demo`, one seed: {config['steps']} steps on {config['ranks']} ranks, "
        f"{config['train_seconds']:.0f} s of training on {found['device']}; the probe is fitted on "
        f"{config['probe_train_clips']} clips and scored on {config['probe_eval_clips']} of other videos. "
        f"Commit {found['commit'][:10]}, {found['date']}."
    )
    return "\n".join(lines)


def shard_table() -> str:
    """How fast shards are made beside a loop of ffmpeg, where the time goes, and the driver's own cost."""
    found = json.loads((RESULTS / "shard.json").read_text())
    config, rows = found["config"], found["rows"]
    lines = ["| | foreframe | for comparison | ratio (from, to) |", "|---|---:|---:|---:|"]
    for row in rows:
        if row["reference"] is None:
            continue
        unit = row["unit"]
        ratio = f"{row['ratio']:.2f}"
        if row["n"] > 1:
            ratio += f" ({row['min']:.2f}, {row['max']:.2f})"
        lines.append(
            f"| {row['case']}: {row['metric']} | {row['ours']:g} {unit} | "
            f"{row['reference']:g} {unit}, {row['reference_name']} | {ratio} |"
        )
    lines += ["", "| CPU by part | ms a clip |", "|---|---:|"]
    lines += [f"| {r['metric']} | {r['ours']:.3g} |" for r in rows if r["case"].startswith("CPU by part")]
    driver = [row for row in rows if row["case"].startswith("driver, ")]
    cases = list(dict.fromkeys(row["case"] for row in driver))
    names = [case.removeprefix("driver, ") for case in cases if case != "driver, growth"]
    lines += ["", f"| the driver's own work | {' | '.join(names)} | grows by the power |"]
    lines.append("|---|" + "---:|" * (len(names) + 1))
    for metric in dict.fromkeys(row["metric"] for row in driver):
        each = {row["case"]: row for row in driver if row["metric"] == metric}
        unit = next(iter(each.values()))["unit"]
        cells = [
            f"{each[case]['ours']:.3g}" if case in each else "" for case in cases if "growth" not in case
        ]
        power = f"{each['driver, growth']['ours']:.2f}" if "driver, growth" in each else ""
        lines.append(f"| {metric}, {unit} | {' | '.join(cells)} | {power} |")
    loads = config["busy_with_other_work"]
    lines += [
        "",
        f"{'; '.join(config['videos'])}. Clips of {config['clips']}; {config['workers']} workers; medians of "
        f"{config['pairs']} turns each, spread by pair. Ratios say how many times better foreframe is. "
        f"{found['device']}, up to {100 * max(loads):.0f} % of it busy with other work when a turn began. "
        f"Commit {found['commit'][:10]}, {found['date']}.",
    ]
    return "\n".join(lines)


def loader_table() -> str:
    """How fast clips become batches, beside the bare decode and peers; by stage; the cores for a GPU."""
    found = json.loads((RESULTS / "loader.json").read_text())
    config, rows = found["config"], found["rows"]
    loads = config["busy_with_other_work"]
    busy = f", up to {100 * max(loads):.0f} % of it busy with other work when a turn began" if loads else ""
    runs = f" {config['runs']}." if "runs" in config else ""
    lines = ["| clips a second | foreframe | for comparison | ratio (from, to) |", "|---|---:|---:|---:|"]
    lines += [
        f"| {row['case']} | {row['ours']:g} | {row['reference']:g}, {row['reference_name']} | "
        f"{row['ratio']:.2f} ({row['min']:.2f}, {row['max']:.2f}) |"
        for row in rows
        if row["reference"] is not None
    ]
    for part in (_stages, _cores, _growth, _index):
        lines += ["", *part(rows)]
    lines += [
        "",
        f"{config['clips']}; {config['workers']} workers, micro-batches of {config['micro_batch']}; medians "
        f"of {config['turns']} turns each, spread by turn. *As for a GPU*: crops of bytes in shared memory; "
        f"*ready floats*: resized and normalised, as without one. *Bare decode*: as many processes that "
        f"decode the same frames from memory and do nothing else. *decord on the videos*: a DataLoader that "
        f"opens the originals; *webdataset and decord*: the same tars through the stock library; both crop "
        f"and resize with our code. Cores: CPU of a clip times the clips a second of {config['gpu']}; "
        f"computed, not measured on a GPU.{runs} {found['device']}{busy}. Commit {found['commit'][:10]}, "
        f"{found['date']}.",
    ]
    return "\n".join(lines)


def _stages(rows: list[dict[str, Any]]) -> list[str]:
    of_stages = [row for row in rows if "CPU by stage" in row["case"]]
    stages = list(dict.fromkeys(row["metric"] for row in of_stages))
    lines = [f"| CPU ms a clip | {' | '.join(stages)} |", "|---|" + "---:|" * len(stages)]
    for case in dict.fromkeys(row["case"] for row in of_stages):
        cells = [f"{row['ours']:.3g}" for row in of_stages if row["case"] == case]
        lines.append(f"| {case.removesuffix(', CPU by stage')} | {' | '.join(cells)} |")
    return lines


def _cores(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| cores that feed one H100 | clips a second | mp4 | jpeg |", "|---|---:|---:|---:|"]
    cores = [row for row in rows if "cores for one H100" in row["case"]]
    for model in dict.fromkeys(row["metric"] for row in cores):
        of_model = [row for row in cores if row["metric"] == model]
        cells = " | ".join(f"{row['ours']:.2g}" for row in of_model)
        lines.append(f"| {model} | {of_model[0]['clips_per_s']:.0f} | {cells} |")
    return lines


def _growth(rows: list[dict[str, Any]]) -> list[str]:
    growth = [row for row in rows if row["case"] == "growth"]
    lines = ["| held by a rank and two workers after epoch | 1 | 2 | 3 |", "|---|---:|---:|---:|"]
    for what in ("memory", "open files"):
        each = [row for row in growth if row["metric"].startswith(what)]
        cells = " | ".join(f"{row['ours']:.0f}" for row in each)
        lines.append(f"| {what}{', MB' if what == 'memory' else ''} | {cells} |")
    return lines


def _index(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| 10 million samples in 10,000 shards | s | peak GB |", "|---|---:|---:|"]
    for case in dict.fromkeys(row["case"] for row in rows if row["case"].startswith("10 million")):
        found = {row["metric"]: row["ours"] for row in rows if row["case"] == case}
        lines.append(
            f"| ids of a {case.partition(', ')[2]} | {found['seconds']:.2f} | {found['gigabytes']:.2f} |"
        )
    return lines


def memory_table() -> str:
    """What a rank takes at every stage, measured beside the formula of `foreframe estimate`."""
    found = json.loads((RESULTS / "memory.json").read_text())
    config, rows = found["config"], found["rows"]
    weights = config["weights"]
    lines = [
        "| GB a rank | between steps | formula | during a backward | formula |",
        "|---|---:|---:|---:|---:|",
    ]
    for case in dict.fromkeys(row["case"] for row in rows):
        cells = [f"{row['ours']:.2f} | {row['reference']:.2f}" for row in rows if row["case"] == case]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    ratios = [row["ratio"] for row in rows]
    lines += [
        "",
        f"{config['model']}: {sum(weights.values()) / 1e6:.0f} M weights trained, "
        f"{weights['encoder'] / 1e6:.0f} M in the target; {config['ranks']} ranks, the one that takes most; "
        f"growth of its process since before the engine was built. Measured is {min(ratios):.2f} to "
        f"{max(ratios):.2f} times the formula, activations included. {found['device']}. "
        f"Commit {found['commit'][:10]}, {found['date']}.",
    ]
    return "\n".join(lines)


def collapse_table() -> str:
    """At which step planted collapses were seen, rule by rule, and what healthy runs were said to be."""
    found = json.loads((RESULTS / "collapse.json").read_text())
    config, rows = found["config"], found["rows"]
    cases = {
        case: {r["metric"]: r for r in rows if r["case"] == case}
        for case in dict.fromkeys(r["case"] for r in rows)
    }

    def cell(row: dict[str, Any]) -> str:
        if row["ours"] is None:
            return "–"
        spread = "" if row["min"] == row["max"] else f" ({row['min']:g}–{row['max']:g})"
        return f"{row['ours']:g}{spread}" + ("" if row["n"] == row["of"] else f", {row['n']} of {row['of']}")

    rules = [metric for metric in next(iter(cases.values())) if metric.startswith("rule: ")]
    fired = [rule for rule in rules if any(each[rule]["n"] for each in cases.values())]
    heads = [rule.removeprefix("rule: ") for rule in fired]
    lines = [
        "| step (from–to over seeds) | caught | trouble | its loss, of the start's | warning | "
        f"{' | '.join(heads)} |",
        "|---|---:|---:|---:|---:|" + "---:|" * len(heads),
    ]
    for case in config["planted"]:
        each = cases[case]
        trouble, loss = each["trouble"], each["loss at that step"]
        share = f"{100 * loss['ours']:.0f} %" if loss["ours"] is not None else "–"
        cells = [cell(each[rule]) for rule in fired]
        lines.append(
            f"| {case} | {trouble['n']} of {trouble['of']} | {cell(trouble)} | {share} | "
            f"{cell(each['warning'])} | {' | '.join(cells)} |"
        )
    healthy = {case: each for case, each in cases.items() if case not in config["planted"]}
    runs = sum(each["trouble"]["of"] for each in healthy.values())
    alarms, warned = (sum(each[what]["n"] for each in healthy.values()) for what in ("trouble", "warning"))
    named = ", ".join(f"{case} ({each['trouble']['of']})" for case, each in healthy.items())
    lines += [
        "",
        f"Healthy runs of the same recipe, seeds in brackets: {named}. Of {runs}, {alarms} were said to be "
        f"in trouble, {warned} were warned of at any look. {config['steps']} steps of 8 clips (planted ones "
        f"until well after the verdict), a look every 10. {found['device']}. Commit {found['commit'][:10]}, "
        f"{found['date']}.",
    ]
    return "\n".join(lines)


def health_table() -> str:
    """What looks at features take of the time."""
    found = json.loads((RESULTS / "health.json").read_text())
    config = found["config"]
    lines = [
        "| looks at features | ms a look | ms a step | share of the time (from, to) |",
        "|---|---:|---:|---:|",
    ]
    for row in found["rows"]:
        share = f"{row['ours']:.2g} % ({row['min']:.2g}, {row['max']:.2g})"
        lines.append(f"| {row['case']} | {row['look_ms']:.0f} | {row['reference']:.0f} | {share} |")
    loads = config["busy_with_other_work"]
    lines += [
        "",
        f"A look every 50 steps, the default; {config['turns']} turns, medians. {found['device']}, up to "
        f"{100 * max(loads):.0f} % of it busy with other work when a case began; on a GPU not measured. "
        f"Commit {found['commit'][:10]}, {found['date']}.",
    ]
    return "\n".join(lines)


def tracking_table() -> str:
    """What tracking takes of a training step."""
    found = json.loads((RESULTS / "tracking.json").read_text())
    config, rows = found["config"], found["rows"]
    lines = [
        "| a line every step | steps a second, of those without a tracker (from, to) | ms a call | share of "
        "the step in calls |",
        "|---|---:|---:|---:|",
    ]
    for case in dict.fromkeys(row["case"] for row in rows):
        speed, call, share = (row for row in rows if row["case"] == case)
        lines.append(
            f"| {case} | {speed['ratio']:.3f} ({speed['min']:.3f}, {speed['max']:.3f}) | "
            f"{call['ours']:.2g} | {100 * share['ours']:.2g} % |"
        )
    lines += [
        "",
        f"`{config['file']}` on one process, {config['values_a_line']} values a line, a line every step, "
        f"where a run has one in 10 or 20; blocks of {config['steps_a_block']} steps with and without in "
        f"turns, {config['pairs']} pairs, medians; server and sender share the cores. {found['device']}, up "
        f"to {100 * max(config['loads']):.0f} % of it busy with other work when a block began. Commit "
        f"{found['commit'][:10]}, {found['date']}.",
    ]
    return "\n".join(lines)


def probes_table() -> str:
    """What probes cost: a probing while training in steps of the same run, and settings side by side."""
    found = json.loads((RESULTS / "probe.json").read_text())
    config, rows = found["config"], found["rows"]
    lines = ["| | | (from, to) |", "|---|---:|---:|"]
    for row in rows:
        is_ratio = row["reference"] is not None
        value = f"{row['ratio']:.2g} times as fast as {row['reference_name']}" if is_ratio else row["ours"]
        unit = "" if is_ratio else f" {row['unit']}"
        spread = f"{row['min']:.2g}, {row['max']:.2g}" if row["n"] > 1 else ""
        name = row["case"] if is_ratio else f"{row['case']}: {row['metric']}"
        lines.append(f"| {name} | {value}{unit} | {spread} |")
    loads = config["busy_with_other_work"]
    lines += [
        "",
        f"`{config['recipe']}`, {config['ranks']} ranks, {config['probings']} probings in one run, the first "
        f"with decoding and the untrained encoder; medians. Attentive: {config['epochs']} epochs, medians of "
        f"{config['turns']} turns. {found['device']}, up to {100 * max(loads):.0f} % of it busy with other "
        f"work when a turn began. Commit {found['commit'][:10]}, {found['date']}.",
    ]
    return "\n".join(lines)


TABLES = {
    "demo": demo_table,
    "shard": shard_table,
    "loader": loader_table,
    "memory": memory_table,
    "collapse": collapse_table,
    "health": health_table,
    "tracking": tracking_table,
    "probe": probes_table,
    "attention_cpu": partial(attention_table, "cpu"),
    "attention_cuda": partial(attention_table, "cuda"),
    "train_step_cpu": partial(step_table, "cpu"),
    "train_step_cuda": partial(step_table, "cuda"),
    "ema": partial(pairs_table, "ema"),
    "checkpoint": partial(pairs_table, "checkpoint"),
    "scaling": partial(pairs_table, "scaling"),
    **{f"experiment_{name}": partial(experiment_table, name) for name in shipped_experiments()},
    "feeding_cpu": partial(pairs_table, "feeding_cpu"),
    "feeding_cuda": partial(pairs_table, "feeding_cuda"),
    "gpu": gpu_table,
}
PAGES = (
    "README.md",
    "docs/operate.md",
    "docs/train.md",
    "docs/probe.md",
    "docs/scale.md",
    "docs/speed.md",
    "docs/speed/compile.md",
    "docs/speed/overlap.md",
    "docs/ideas.md",
    "docs/ideas.zh.md",
)


# Tables of no results file: what a program would do.
SAID = {**SCALE, "one-gpu": one_gpu_table, "gpu-limits": limits_table}
# More tables of a file that has one above.
MORE = {
    "train_step_cpu-gains": ("train_step_cpu", partial(gains_table, "cpu")),
    "gpu-attention": ("gpu", gpu_attention_table),
}


def drawn(text: str) -> str:
    """`text` with what stands between the marks of each table replaced."""
    more = {name: table for name, (_, table) in MORE.items()}
    for name, table in {**TABLES, **SAID, **more}.items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        file = MORE[name][0] if name in MORE else name
        is_known = name in SAID or (RESULTS / f"{file}.json").exists()  # what was not measured stays empty
        if is_known and pattern.search(text):
            words = table().replace("\\", r"\\")
            text = pattern.sub(rf"\g<1>{words}\n\g<2>", text)
    return text


if __name__ == "__main__":
    draw_figures()
    for page in (ROOT / name for name in PAGES):
        if page.exists():
            page.write_text(drawn(page.read_text()))
            print(f"drew {page}")
