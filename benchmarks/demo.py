"""What the demo learned and how fast, out of its folder, as a results file.

python -m benchmarks.demo runs/demo        writes benchmarks/results/demo.json
"""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")


def rows_of(run: Path) -> list[dict[str, Any]]:
    """A row a score: the trained encoder's against the untrained one's, one run each."""
    probe = json.loads((run / "probe.json").read_text())
    scores = {row["encoder"]: row["scores"] for row in probe["rows"]}
    rows = []
    for name, ours in scores["trained"].items():
        reference = scores["untrained"][name]
        is_share = name in ("shape", "colour")
        rows.append(
            {
                "case": name,
                "metric": "share right" if is_share else "R²",
                "unit": "1",
                "ours": round(ours, 4),
                "reference": round(reference, 4),
                "reference_name": "untrained encoder",
                "ratio": round(ours / reference, 3) if reference > 0 else None,
                "min": round(ours, 4),
                "max": round(ours, 4),
                "n": 1,
            }
        )
    return rows


def main(folder: Path) -> Path:
    """Write demo.json from a demo's folder (`--out`)."""
    run = folder / "run"
    provenance = json.loads((run / "provenance.json").read_text())
    result = json.loads((run / "result.json").read_text())
    probe = json.loads((run / "probe.json").read_text())
    found = {
        "benchmark": "demo",
        "date": date.today().isoformat(),
        "commit": provenance["commit"],
        "device": provenance["device"],
        "versions": provenance["versions"],
        "config": {
            "file": "configs/train/tiny-cpu.yaml",
            "steps": result["step"],
            "ranks": provenance["world_size"],
            "train_seconds": round(result["seconds"], 1),
            "clips_per_s": round(result["clips_per_s"], 1),
            "probe_train_clips": probe["num_train_clips"],
            "probe_eval_clips": probe["num_eval_clips"],
        },
        "rows": rows_of(run),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "demo.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return path


if __name__ == "__main__":
    print(f"wrote {main(Path(sys.argv[1]))}")
