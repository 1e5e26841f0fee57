"""What a report says first: what was run, of which clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from pretrain.config import RunConfig
from pretrain.config.objective import ObjectiveConfig
from pretrain.report import story
from tests.report_runs import provenance

OBJECTIVES = get_args(get_args(ObjectiveConfig)[0])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("masked_latent", "learned by predicting the features of hidden parts of 510 clips of demo"),
        ("future_latent", "learned by predicting the features of the future from the past of 510 clips"),
        (
            "action_latent",
            "A predictor on a vit-small encoder (width 384, 12 blocks) that stayed as it was learned",
        ),
        ("pixel", "learned by predicting the pixels of hidden parts of 510 clips of demo"),
        ("contrastive", "learned by telling which features belong to which hidden part of 510 clips"),
    ],
)
def test_what_was_run_is_told_by_its_objective(kind: str, words: str) -> None:
    plain: dict[str, Any] = {"name": "x", "data": {"shards": "x"}, "objective": {"kind": kind}}
    config = RunConfig.model_validate(plain)
    assert set(story.LEARNED_BY) == {str(each.model_fields["kind"].default) for each in OBJECTIVES}
    known = provenance()
    probed = {"name": "held-out", "fingerprint": "beef", "num_clips": 90, "context": "probe"}
    assert words in story.say_what(config, [], known)
    known["datasets"] = [known["datasets"][0] | {"context": "training"}, probed]
    said = story.say_what(config, [], known)
    assert words in said and "held-out" not in said, "it was not trained on what probes read"


def test_the_attention_drawn_last_is_on_the_page(tmp_path: Path) -> None:
    from PIL import Image

    from pretrain.report.story import last_attention

    assert last_attention(tmp_path) == []
    for step in (200, 1000):
        folder = tmp_path / "pictures" / "steps" / f"{step:08d}"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "clip-attention.png")
    (found,) = last_attention(tmp_path)
    assert found.path.parent.name == "00001000" and "at step 1,000" in found.caption
