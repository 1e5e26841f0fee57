"""Pictures over steps on several ranks: sharded weights are gathered equally often, nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.tracking.pictures import step_pictures
from tests.distributed.rank_jobs import BATCH, on_ranks
from tests.distributed.test_same_step import job_of

pytestmark = pytest.mark.distributed


@pytest.mark.slow  # two ranks of DeepSpeed take half a minute to import
def test_ranks_that_draw_train_as_those_that_do_not(small_dataset: Path, tmp_path: Path) -> None:
    settings = {"strategy": {"zero_stage": 3}}
    plain = job_of(small_dataset, tmp_path / "plain", **settings)
    sharded = job_of(small_dataset, tmp_path / "sharded", **settings) | {"pictures": str(tmp_path / "three")}
    one = job_of(small_dataset, tmp_path / "one", strategy={"zero_stage": 1})
    one |= {"pictures": str(tmp_path / "one")}
    found = on_ranks(2, tmp_path, [plain, sharded, one])
    assert found[1]["losses"] == found[0]["losses"]
    assert found[1]["norms"] == found[0]["norms"]
    assert found[1]["ema_equal"]
    for name in ("three", "one"):
        steps = {step for step, _ in step_pictures(tmp_path / name)}
        assert steps == set(range(1, BATCH["steps"] + 1)), name
    for (step, sharded_one), (_, whole_one) in zip(
        step_pictures(tmp_path / "three"), step_pictures(tmp_path / "one"), strict=True
    ):
        assert sharded_one.name == whole_one.name
        if sharded_one.name in ("clip-attention.png", "clip-masks.png") and step == 1:
            with Image.open(sharded_one) as left, Image.open(whole_one) as right:
                apart = np.abs(np.asarray(left.convert("RGB"), int) - np.asarray(right.convert("RGB"), int))
            assert np.mean(apart) < 2, "the same encoder, whole or in shards"
