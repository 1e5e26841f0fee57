"""Draws the tables of the README from benchmarks/results: `python -m benchmarks.tables`."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def demo_table() -> str:
    """What the demo learned, as Markdown, with the facts that a reader needs to weigh it."""
    found = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text())
    config = found["config"]
    lines = ["| read from frozen features | trained | untrained | |", "|---|---:|---:|---|"]
    for row in found["rows"]:
        drop = "noise: it moves for no reason" if row["case"] == "background drift" else ""
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


def drawn(text: str) -> str:
    """`text` with what stands between the marks of each table replaced."""
    pattern = re.compile(r"(<!-- table: demo -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{demo_table()}\n{found[2]}", text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(drawn(readme.read_text()))
    print(f"drew {readme}")
