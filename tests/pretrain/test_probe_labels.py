"""Labels read from features whose answer is known: heads, neighbours, views."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from pretrain.data.augment import eval_view
from pretrain.model.attention import Packing
from pretrain.probe.attentive import AttentiveHead, HeadForm, Setting, SideBySide, centred, epochs_for
from pretrain.probe.labels import UNKNOWN, accuracies, blind, class_names, held_out, neighbour_votes, numbered
from pretrain.probe.linear import fit_linear
from pretrain.probe.views import crops, starts

CPU = torch.device("cpu")


# numbers


def test_whole_numbers_are_ordered_by_value_and_words_by_letters() -> None:
    assert class_names(["10", "9", "2", "9"]) == ["2", "9", "10"]
    assert class_names(["b", "10", "9"]) == ["10", "9", "b"]
    assert numbered(["b", "x", "a"], ["a", "b"]).tolist() == [1, UNKNOWN, 0]


def test_accuracies_count_top_5_classes_evenly_and_unknown_labels_as_wrong() -> None:
    scores = np.eye(7)[[0, 0, 1, 2, 3]] + 0.001 * np.arange(7, 0, -1)
    truth = np.array([0, 0, 0, 6, UNKNOWN])
    found = accuracies(scores, truth)
    assert found["top-1"] == 2 / 5
    assert found["top-5"] == 3 / 5, "class 0 is second of the third clip; 6 comes last of the fourth"
    assert found["class mean"] == pytest.approx((2 / 3 + 0) / 2)
    assert "top-5" not in accuracies(scores[:, :5], np.array([0, 0, 0, 1, 1]))


def test_the_blind_answer_is_the_most_frequent_class_of_train() -> None:
    found = blind(np.array([0, 1, 1, 2]), np.array([1, 1, 0, 2]), 3)
    assert found == {"top-1": 0.5, "class mean": pytest.approx(1 / 3)}


def test_held_out_clips_are_whole_videos() -> None:
    videos = [f"v{number // 3}" for number in range(60)]
    held = held_out(videos)
    assert held.sum() == 12
    assert {v for v, h in zip(videos, held, strict=True) if h}.isdisjoint(
        v for v, h in zip(videos, held, strict=True) if not h
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 4))
def test_neighbours_vote_as_plain_loops_say(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    train, others = rng.normal(size=(12, 5)).astype("f4"), rng.normal(size=(4, 5)).astype("f4")
    labels = rng.integers(0, classes, 12)
    found = neighbour_votes(train, labels, others, classes, [1, 5])
    mean = train.mean(0)
    for row, query in enumerate(others - mean):
        cosine = [float(query @ x / np.linalg.norm(query) / np.linalg.norm(x)) for x in train - mean]
        nearest = sorted(range(12), key=lambda n: -cosine[n])
        for k in (1, 5):
            votes = np.zeros(classes)
            for n in nearest[:k]:
                votes[labels[n]] += math.exp(cosine[n] / 0.07)
            np.testing.assert_allclose(found[k][row], votes, rtol=1e-3)


@pytest.mark.parametrize("penalty", [1.0, 0.01, 1e-4])
def test_the_linear_probe_is_that_of_scikit_learn(penalty: float) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(150, 8)) * [1, 10, 0.1, 1, 1, 1, 1, 1] + 3).astype("f4")
    y = (x[:, 0] > 3).astype(int) + (x[:, 2] > 3.05)
    z = (x - x.mean(0)) / x.std(0)
    theirs = LogisticRegression(C=1 / (penalty * 150), tol=1e-8, max_iter=5000).fit(z, y)
    (ours,) = fit_linear(x, y, 3, [penalty])
    shares = torch.tensor(ours.scores(x)).softmax(1).numpy()
    np.testing.assert_allclose(shares, theirs.predict_proba(z), atol=2e-3)


def test_a_feature_that_never_changes_does_no_harm() -> None:
    x = np.random.default_rng(1).normal(size=(30, 3)).astype("f4")
    x[:, 1] = 5
    fits = fit_linear(x, (x[:, 0] > 0).astype(int), 2)
    assert all(np.isfinite(fit.weights).all() and (fit.weights[1] == 0).all() for fit in fits)


# the attentive head


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_short_way_of_attending_is_that_with_keys_and_values(blocks: int) -> None:
    torch.manual_seed(0)
    head = AttentiveHead(HeadForm(24, 3, blocks, 5))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    x = torch.randn(4, 7, 24)
    scores = head(x)
    packing_blind = x
    for block in head.blocks:
        packing_blind = block(packing_blind.flatten(0, 1), None, Packing((7,) * 4), "sdpa").view(4, 7, 24)
    k, v = head.kv(head.norm1(packing_blind)).view(4, 7, 2, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)
    q = head.q(head.query.expand(4, 24)).view(4, 3, 1, 8)
    seen = head.query + F.scaled_dot_product_attention(q, k, v).reshape(4, 24)
    seen = seen + head.fc2(F.gelu(head.fc1(head.norm2(seen))))
    torch.testing.assert_close(scores, head.classify(seen), rtol=1e-4, atol=1e-5)


def needle(clips: int, tokens: int = 12, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise in every token; one, anywhere, is marked and carries the label, another its opposite.

    The mean over tokens holds nothing of the label.
    """
    generator = torch.Generator().manual_seed(clips)
    x = torch.randn(clips, tokens, width, generator=generator)
    labels = torch.randint(0, 2, (clips,), generator=generator)
    places = torch.stack([torch.randperm(tokens, generator=generator)[:2] for _ in range(clips)])
    sign = 2.0 * labels - 1
    rows = torch.arange(clips)
    x[rows, places[:, 0]] = 0
    x[rows, places[:, 1]] = 0
    x[rows, places[:, 0], 0] = 8
    x[rows, places[:, 0], 1] = 8 * sign
    x[rows, places[:, 1], 1] = -8 * sign
    return x, labels


def test_a_label_that_sits_in_one_token_is_found_by_attention_and_not_by_the_mean() -> None:
    (x, y), (others, truth) = needle(300), needle(201)
    side = SideBySide(HeadForm(16, 2, 1, 2), [Setting(1e-2, 0.01)], 150, 0, CPU)
    for step in range(150):
        part = torch.randperm(300, generator=torch.Generator().manual_seed(step))[:64]
        side.add(x[part], y[part], 1 / len(part))
        side.step()
    attentive = accuracies(side.shares(others[:, None])[0].numpy(), truth.numpy())["top-1"]
    (linear,) = fit_linear(x.mean(1).numpy(), y.numpy(), 2, [1e-3])
    pooled = accuracies(linear.scores(others.mean(1).numpy()), truth.numpy())["top-1"]
    assert attentive > 0.95
    assert pooled < 0.65


def test_heads_side_by_side_learn_what_each_learns_alone() -> None:
    x, y = needle(64)
    each = [Setting(1e-2, 0.0), Setting(1e-3, 0.4)]

    def trained(some: Sequence[Setting]) -> list[torch.Tensor]:
        side = SideBySide(HeadForm(16, 2, 1, 2), some, 3, 7, CPU)
        for _ in range(3):
            side.add(x[:32], y[:32], 1 / 64)
            side.add(x[32:], y[32:], 1 / 64)
            side.step()
        return list(side.shares(x[:, None]))

    together, alone = trained(each), [trained([one])[0] for one in each]
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("blocks", [1, 4])
def test_probabilities_are_averaged_over_views(blocks: int) -> None:
    side = SideBySide(HeadForm(16, 2, blocks, 3), [Setting(1e-3, 0.0)], 1, 0, CPU)
    side.add(torch.randn(6, 9, 16), torch.tensor([0, 1, 2] * 2), 1 / 6)
    side.step()
    with torch.no_grad():
        side.heads[0].classify.weight.mul_(50)
    x = torch.randn(5, 3, 9, 16)
    one_by_one = torch.stack([side.heads[0](x[:, view]).softmax(-1) for view in range(3)]).mean(0)
    torch.testing.assert_close(side.shares(x)[0], one_by_one)
    assert not torch.allclose(side.shares(x[:, :1])[0], one_by_one, atol=1e-3)
    torch.testing.assert_close(centred(x)[0, 0].mean(-1), torch.zeros(9), atol=1e-5, rtol=0)


def test_a_small_set_gets_more_epochs_and_a_large_one_those_published() -> None:
    assert [epochs_for(count) for count in (10, 640, 10**6)] == [100, 30, 20]


# views


def test_one_crop_is_the_view_of_evaluation_and_several_reach_the_ends() -> None:
    frames = torch.arange(2 * 30 * 50 * 3).remainder(251).to(torch.uint8).view(2, 30, 50, 3)
    assert torch.equal(crops(frames, 20, 1)[0], eval_view(frames, 20))
    whole = crops(frames, 30, 3)
    assert torch.equal(whole[0], frames[:, :, :30])
    assert torch.equal(whole[1], frames[:, :, 10:40])
    assert torch.equal(whole[2], frames[:, :, 20:])
    assert torch.equal(crops(frames.transpose(1, 2), 30, 2)[1], frames.transpose(1, 2)[:, 20:])


def test_segments_are_spread_over_the_time_to_spare() -> None:
    assert starts(1) == [None]
    assert [start(6.0) for start in starts(3) if start is not None] == [0.0, 3.0, 6.0]
