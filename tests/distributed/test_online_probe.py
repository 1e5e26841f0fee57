"""Probes while training over two real ranks: the run is bit for bit the same, whatever is sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from launch.train import run_train
from tests.pretrain.test_probe_online import config_of, learned, lines_of
from tests.small_dataset import write_dataset

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

CASES: dict[str, dict[str, Any]] = {
    "ZeRO-1": {"strategy": {"kind": "deepspeed", "zero_stage": 1, "timeout_s": 60}},
    "ZeRO-1, bf16": {
        "strategy": {"kind": "deepspeed", "zero_stage": 1, "timeout_s": 60},
        "train": {"precision": "bf16"},
    },
    "ZeRO-3": {"strategy": {"kind": "deepspeed", "zero_stage": 3, "timeout_s": 60}},
    "ZeRO-3, no target of its own": {
        "strategy": {"kind": "deepspeed", "zero_stage": 3, "timeout_s": 60},
        "target": {"kind": "online"},
    },
    "ZeRO-3, frozen target": {
        "strategy": {"kind": "deepspeed", "zero_stage": 3, "timeout_s": 60},
        "target": {"kind": "frozen"},
    },
}


@pytest.fixture(scope="module")
def uneven_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 train and 10 eval clips: an odd number, so that one rank has a clip and a batch fewer."""
    return write_dataset(
        tmp_path_factory.mktemp("data") / "uneven",
        {"train": [23], "eval": [10]},
        label=lambda states: "left" if states[0, 0] < 0.5 else "right",
    )


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_the_same_with_and_without_probes(
    uneven_set: Path, tmp_path: Path, name: str
) -> None:
    sections = {"data": {"workers": 1}, **CASES[name]}
    train = {"steps": 5, "keep_checkpoints": 9} | sections.pop("train", {})
    found = []
    for every in (2, None):
        probe = {"every": every, "batch": 4}
        config = config_of(uneven_set, tmp_path / str(every), train=train, probe=probe, **sections)
        run = run_train(config, nproc=2, quiet=True).run
        found.append(learned(run))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(tensor, found[1][1][key]) for key, tensor in found[0][1].items())
    probed = lines_of(tmp_path / "2" / "tiny" / "probes.jsonl")
    assert [line["step"] for line in probed] == [2, 4]
    assert probed[0]["clips"] == 33
    assert probed[0]["scores"].keys() >= {"linear top-1", "knn top-1", "position"}


def test_the_scores_do_not_depend_on_how_many_ranks_there_are(uneven_set: Path, tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        micro = {"steps": 2, "micro_batch": 4 // ranks}
        strategy = {"kind": "deepspeed", "zero_stage": 1, "timeout_s": 60}
        config = config_of(
            uneven_set, tmp_path / str(ranks), train=micro, strategy=strategy, data={"workers": 1}
        )
        run = run_train(config, nproc=ranks, quiet=True).run
        found.append(lines_of(run / "probes.jsonl")[0])
    assert found[0]["untrained"] == pytest.approx(found[1]["untrained"], abs=1e-3, nan_ok=True)
