"""What docs/train.md says of one GPU beside its table follows from the estimate and from measurements."""

from __future__ import annotations

import json

import pytest

from benchmarks.measuring import RESULTS
from benchmarks.one_gpu import GPUS, RECIPES, config_of, kept, measured, on_one, one_gpu_table
from benchmarks.tables import ROOT

OURS = RECIPES[0]
SECTION = (ROOT / "docs/train.md").read_text().partition("## Training on one GPU\n")[2].partition("\n## ")[0]


def test_the_page_has_the_table() -> None:
    assert one_gpu_table() in SECTION


def test_the_recipe_fits_whatever_is_kept_and_ends_within_days() -> None:
    config = config_of(OURS)
    assert config.train.global_batch % config.train.micro_batch == 0
    for gpu in GPUS.values():
        found = on_one(OURS, gpu)
        assert kept(found) >= config.train.micro_batch
        assert found.speed.binds == "compute" and found.days < 2
    imitating = on_one("vits16-16f", "h100")
    assert f"{imitating.forwards} forwards to imitate {imitating.clips:,}" in SECTION


def test_workers_feed_an_h100() -> None:
    found = on_one(OURS, "h100")
    mp4 = found.loadings[0]
    assert f"{mp4.cores:.0f} cores of mp4" in SECTION
    assert mp4.clips_per_s >= found.speed.clips_per_s and found.workers == round(mp4.cores)


def test_what_was_measured_is_read_from_the_results() -> None:
    assert measured("vjepa2-vitl16") == pytest.approx(87.7, abs=0.05)
    assert measured(OURS) is None
    parts = json.loads((RESULTS / "gpu.json").read_text())["parts"]
    rows = [row for part in parts for row in part["rows"] if row["metric"].startswith("most bytes of a step")]
    (large,) = (row for row in rows if row["case"] == "ViT-L, all kept")
    clips = large["metric"].split(", ")[1].removesuffix(" clips")
    assert f"{clips} clips of a ViT-L took less memory" in SECTION and large["ours"] < large["reference"]
