"""FLOPs by formula against those that torch counts in a real forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config import RunConfig
from pretrain.flops import flops_a_clip, flops_of, recomputed_of
from pretrain.model.attention import Packing
from pretrain.objective.base import Objective
from pretrain.objective.make import first_encoder, make_objective
from pretrain.peaks import peak_tflops
from tests.pretrain.small_objective import KINDS, config_of, small_batch, small_config

MORE = {
    "without a stop": {"target": {"kind": "online", "stop_gradient": False}},
    "an average without a stop": {"target": {"kind": "ema", "stop_gradient": False}},
    "its own target": {"target": {"kind": "online"}},
    "recomputing": {"strategy": {"kind": "single", "activation_checkpointing": True}},
    "recomputing some": {
        "strategy": {
            "kind": "single",
            "activation_checkpointing": True,
            "recomputed_blocks": {"encoder": 1, "encoder_mlps": 1, "predictor_mlps": 1},
        }
    },
}


pytestmark = pytest.mark.usefixtures("one_thread")


def plain_attention(q_MHd: Tensor, k_MHd: Tensor, v_MHd: Tensor, packing: Packing, _: str) -> Tensor:
    """Attention written out, sequence by sequence: torch does not count its own fused one on CPU."""
    found, start = [], 0
    for length in packing.lengths:
        q, k, v = (x[start : start + length].transpose(0, 1) for x in (q_MHd, k_MHd, v_MHd))
        found.append((torch.bmm(q, k.transpose(1, 2)).softmax(-1) @ v).transpose(0, 1))
        start += length
    return torch.cat(found)


def counted(
    config: RunConfig, clips: int, pictures: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> int:
    """Operations that torch counts in a step's forwards and backward."""
    monkeypatch.setattr("pretrain.model.vit.attend", plain_attention)
    objective: Objective = make_objective(config)
    target = None if config.target.kind == "online" else first_encoder(objective, config)
    objective.recompute_blocks(*recomputed_of(config))
    batch = small_batch(config, clips, pictures=pictures)
    with FlopCounterMode(display=False) as counter:
        targets = None if target is None else objective.targets(target, batch)
        objective(batch, targets).loss.backward()
    return counter.get_total_flops()


def by_formula(config: RunConfig, clips: int, pictures: tuple[bool, ...]) -> float:
    return flops_of(config, small_batch(config, clips, pictures=pictures).masks).hardware


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_takes_as_many_operations_as_torch_counts(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(kind)
    assert by_formula(config, 3, ()) == pytest.approx(counted(config, 3, (), monkeypatch), rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (kind, how)
        for kind in ("masked", "masked, 2.1", "contrastive", "future", "pixel")
        for how in MORE
        if (kind, how) != ("pixel", "without a stop")  # the config's rules refuse it
    ],
)
def test_so_do_other_targets_and_blocks_that_are_recomputed(
    kind: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(kind, **MORE[how])
    assert by_formula(config, 3, ()) == pytest.approx(counted(config, 3, (), monkeypatch), rel=1e-9)


@pytest.mark.parametrize("pictures", [(False, True, False), (True, True)])
def test_pictures_with_tokens_of_their_own(
    pictures: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("masked, 2.1")
    found = by_formula(config, len(pictures), pictures)
    assert found == pytest.approx(counted(config, len(pictures), pictures, monkeypatch), rel=1e-9)


@pytest.mark.parametrize("kind", ["action", "future"])
def test_actions_that_are_no_tokens(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(kind, predictor={"told": "added"})
    assert by_formula(config, 2, ()) == pytest.approx(counted(config, 2, (), monkeypatch), rel=1e-9)


def test_a_rollout_of_more_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("action", objective={"rollout_steps": 3})
    assert by_formula(config, 2, ()) == pytest.approx(counted(config, 2, (), monkeypatch), rel=1e-9)


def test_recomputing_is_hardware_s_and_not_the_model_s() -> None:
    plain, again = (config_of("masked", **more) for more in ({}, MORE["recomputing"]))
    masks = small_batch(plain).masks
    before, after = flops_of(plain, masks), flops_of(again, masks)
    assert before.recomputed == 0 and before.hardware == before.model
    assert after.model == before.model
    assert 1.1 * before.model < after.hardware < 4 / 3 * before.model


def test_a_wide_model_takes_six_operations_a_weight_and_token() -> None:
    """PaLM, appendix B: 6 N + 12 L D T. With all tokens kept and no target that is all but the embeddings."""
    masks = [{"blocks": 1, "spatial_scale": 0.05}]
    wide = {"preset": "vit_large", "width": None, "depth": None, "heads": None}
    config = small_config(
        {"kind": "pixel", "masks": masks}, encoder=wide, predictor={"depth": 1, "width": 12, "heads": 1}
    )
    batch = small_batch(config, 1).masks
    kept = batch.kept_lengths[0]
    expected = 6 * 24 * 12 * 1024**2 * kept + 12 * 24 * 1024 * kept**2
    assert flops_of(config, batch).model == pytest.approx(expected, rel=0.01)


def test_the_mean_of_a_clip_is_that_of_many_batches() -> None:
    config = small_config(train={"global_batch": 3, "micro_batch": 3})
    batches = [small_batch(config, 3, step=step).masks for step in range(200)]
    mean = math.fsum(flops_of(config, masks).model for masks in batches) / 600
    assert flops_a_clip(config).model == pytest.approx(mean, rel=0.05)
    assert flops_a_clip(config) == flops_a_clip(config)


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0, 156.0),
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7),
        ("NVIDIA H100 PCIe", 756.5, 378.0),
        ("NVIDIA H200", 989.4, 494.7),
        ("NVIDIA B200", 2250.0, 1100.0),
        ("NVIDIA GeForce RTX 3090", 71.0, 35.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("NVIDIA L40S", 362.0, 183.0),
        ("Tesla V100-SXM2-32GB", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("CPU: something", None, None),
    ],
)
def test_the_peak_is_known_by_the_device_s_name(name: str, bf16: float | None, fp32: float | None) -> None:
    assert (peak_tflops(name, "bf16"), peak_tflops(name, "fp32")) == (bf16, fp32)
