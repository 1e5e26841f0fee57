"""Labels read from features whose answer is known: heads, neighbours, views, and the whole command."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from sklearn.linear_model import LogisticRegression

from data_pipeline.errors import DataError, UsageError
from launch.results import probe_any
from launch.train import run_train
from launch.weights import run_export
from pretrain.data.augment import eval_view
from pretrain.data.reader import ClipReader
from pretrain.features import Encoder
from pretrain.model.attention import Packing
from pretrain.probe import Asked, classify
from pretrain.probe.attentive import AttentiveHead, HeadForm, Setting, SideBySide, centred, epochs_for
from pretrain.probe.classify import Heads
from pretrain.probe.clips import Probed, probe_clips
from pretrain.probe.heads import publish_head, read_attentive
from pretrain.probe.kinds import kinds_of
from pretrain.probe.labels import UNKNOWN, accuracies, blind, class_names, held_out, neighbour_votes, numbered
from pretrain.probe.linear import fit_linear
from pretrain.probe.subject import fingerprint, of_run
from pretrain.probe.tokens import Looker, TokenSource
from pretrain.probe.views import crops, starts
from tests.small_dataset import FPS, tiny_config, write_dataset

CPU = torch.device("cpu")


def side_of(states: np.ndarray) -> str:
    return "left" if states[0, 0] < 0.5 else "right"


@pytest.fixture(scope="module")
def labelled_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 train and 16 eval clips of twice the frames that the model sees, labelled left or right."""
    root = tmp_path_factory.mktemp("data") / "labelled"
    return write_dataset(root, {"train": [40], "eval": [16]}, num_frames=16, label=side_of, has_states=False)


@pytest.fixture(scope="module")
def run(labelled_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(labelled_set, tmp_path_factory.mktemp("runs"), train={"steps": 2})
    return run_train(config, quiet=True).run


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


# the whole


def _asked(**more: Any) -> Asked:
    return Asked(heads=Heads(epochs=2, lrs=(1e-2, 1e-3), weight_decays=(0.1,)), **more)


def test_labels_are_probed_and_all_that_a_head_needs_is_written(run: Path, labelled_set: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    found, out = probe_any(run, _asked(segments=2, views=2), progress=lambda *given: seen.append(given[:3]))
    assert out == run
    assert found["kinds"] == ["attentive", "linear", "knn"]
    rows = {row["encoder"]: row["scores"] for row in found["rows"]}
    assert list(rows) == ["trained", "untrained", "most frequent class"]
    assert rows["trained"].keys() == {f"{k} {s}" for k in found["kinds"] for s in ("top-1", "class mean")}
    assert found["labels"]["labels"] == ["left", "right"]
    assert len(found["tried"]["attentive"]["untrained"]) == 2
    assert ("heads", 2, 2) in seen
    shown = found["preprocessing"]
    assert (shown["frames"], shown["fps"], shown["segments"], shown["views"]) == (8, FPS, 2, 2)
    head, facts = read_attentive(run / "probes" / "attentive-step-2")
    assert facts["labels"] == ["left", "right"]
    assert facts["preprocessing"] == shown
    encoder = Encoder.from_pretrained(run)
    assert facts["encoder"]["fingerprint"] == found["encoder"]["fingerprint"] == fingerprint(encoder._module)
    assert facts["form"] == {"width": 48, "heads": 2, "blocks": 1, "classes": 2}
    # a stranger: features, two segments side by side, two crops, the mean of probabilities
    reader, right = ClipReader(str(labelled_set), "eval"), 0
    for number in range(len(reader)):
        pair = [reader.read(number, 8, FPS, lambda spare, share=share: spare * share) for share in (0.0, 1.0)]
        tokens = torch.cat([encoder(eval_view(clip.frames_THWC, 32)[None]) for clip in pair], 1)
        right += facts["labels"][int(head(tokens).argmax())] == pair[0].meta.label
    assert right / len(reader) == pytest.approx(facts["scores"]["top-1"]), "square clips: both crops are one"
    line = json.loads((run / "probes.jsonl").read_text().splitlines()[-1])
    assert (line["step"], line["kind"]) == (2, "offline")
    assert line["scores"] == rows["trained"]
    assert line["untrained"] == rows["untrained"]


def test_tokens_that_fit_on_no_disk_are_made_again_and_give_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _ = probe_any(run, _asked(kinds=("attentive",)), out=tmp_path / "kept")
    monkeypatch.setattr(TokenSource.__init__, "__defaults__", (1000,))
    takes: list[bool] = []
    take = TokenSource.take
    monkeypatch.setattr(TokenSource, "take", lambda self, *g: takes.append(self.is_kept) or take(self, *g))
    again, _ = probe_any(run, _asked(kinds=("attentive",)), out=tmp_path / "again")
    assert takes == [False] * len(takes) and takes
    for result in (kept, again):
        del result["seconds"]
    assert again == kept


def test_exported_weights_are_probed_on_a_data_set_that_is_named(
    run: Path, labelled_set: Path, tmp_path: Path
) -> None:
    run_export(run, tmp_path / "weights", "foreframe", step=None, of=None, allow_partial=False, force=False)
    found, out = probe_any(
        tmp_path / "weights", Asked(data=str(labelled_set), kinds=("knn", "linear")), out=tmp_path / "out"
    )
    of_run, _ = probe_any(run, Asked(kinds=("knn", "linear")), out=tmp_path / "other")
    assert found["rows"][0] == of_run["rows"][0]
    assert found["encoder"]["fingerprint"] == of_run["encoder"]["fingerprint"]
    assert found["step"] is None
    assert (out / "probe.json").is_file()
    run_export(run, tmp_path / "hf", "huggingface", step=None, of=None, allow_partial=False, force=False)
    theirs, _ = probe_any(
        tmp_path / "hf", Asked(data=str(labelled_set), kinds=("knn",)), out=tmp_path / "hf-out"
    )
    assert theirs["encoder"]["fingerprint"] == of_run["encoder"]["fingerprint"]
    with pytest.raises(UsageError, match="name one with --data"):
        probe_any(tmp_path / "weights", Asked())
    with pytest.raises(UsageError, match="--step 3"):
        probe_any(tmp_path / "weights", Asked(data=str(labelled_set)), step=3)


def test_a_data_set_without_labels_refuses_their_kinds_and_says_what_it_allows(
    run: Path, small_dataset: Path
) -> None:
    with pytest.raises(
        UsageError,
        match=r"have not two labels in train and one in eval; this data set allows states, retrieval",
    ):
        probe_any(run, Asked(data=str(small_dataset), kinds=("knn",)))
    with pytest.raises(UsageError, match="need one or several of attentive, linear"):
        kinds_of("attentive,kmeans")
    assert kinds_of("knn, attentive,knn") == ("attentive", "knn")


def _probed(labels: Sequence[str | None]) -> Probed:
    videos = tuple(f"v{number}" for number in range(len(labels)))
    return Probed({}, {}, None, tuple(labels), videos, tuple(range(len(labels))))


def test_clips_without_a_label_are_left_out_and_too_few_are_a_sentence() -> None:
    train = _probed(["a", None, "b"] * 5)
    data = classify.labelled(train, _probed(["b", "c", None, "a"] * 4), "here")
    assert data.train_rows.tolist() == [n for n in range(15) if n % 3 != 1]
    assert data.names == ["a", "b"]
    assert data.unknown == ("c",)
    assert classify.facts(data)["labels_in_eval_only"] == ["c"]
    with pytest.raises(DataError, match="here has 10 train and 3 eval clips with a label"):
        classify.labelled(train, _probed(["a"] * 3), "here")
    with pytest.raises(DataError, match="all labelled train clips of here are 'a'"):
        classify.labelled(_probed(["a"] * 9), _probed(["a"] * 9), "here")


def test_unreadable_clips_are_named_and_their_rows_do_not_shift_labels(
    labelled_set: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ClipReader(str(labelled_set), "train")
    broken, decode = {reader.key(3), reader.key(7)}, ClipReader.decode

    def stumbling(self: ClipReader, sample: Any, *given: Any, **named: Any) -> Any:
        if sample.key in broken:
            raise DataError(f"{sample.key} is broken")
        return decode(self, sample, *given, **named)

    monkeypatch.setattr(ClipReader, "decode", stumbling)
    subject = of_run(run, None)
    looker = Looker(reader, subject.config.data, subject.encoders, batch=4)
    source = TokenSource(looker, None)
    found = probe_clips(
        looker, range(40), subject.config.grid, lambda: None, keeps_places=False, source=source
    )
    assert sorted(found.unreadable) == sorted(f"{key} is broken" for key in broken)
    assert found.indices == tuple(n for n in range(40) if n not in (3, 7))
    assert found.labels[3] == reader.meta(4).label
    (tokens,) = source.take([[3]], found.indices)
    np.testing.assert_allclose(
        tokens["trained"].float().mean((1, 2))[0].numpy(), found.means["trained"][3], atol=2e-3
    )


def test_a_head_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="probe again"):
        read_attentive(tmp_path / "none")
    head = AttentiveHead(HeadForm(8, 2, 1, 2))
    publish_head(tmp_path / "head", save(head.state_dict()), {"form": vars(head.form)})
    publish_head(tmp_path / "head", save(head.state_dict()), {"form": vars(head.form)})
    assert [path.name for path in tmp_path.iterdir()] == ["head"]
    read_attentive(tmp_path / "head")
    weights = tmp_path / "head" / "head.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="hash"):
        read_attentive(tmp_path / "head")


@pytest.mark.slow
def test_kill_9_in_mid_probing_leaves_nothing_half_written(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch", "probe", str(run), "--out", str(tmp_path / "out")]
    command += ["--epochs", "5000", "--kind", "attentive"]
    environment, root = os.environ | {"TMPDIR": str(tmp_path)}, Path(__file__).parents[2]
    process = subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("foreframe-scratch-*/train/*.f16")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    again = [*command[:-4], "--epochs", "1", "--kind", "attentive"]
    subprocess.run(again, env=environment, cwd=root, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "out" / "probe.json").is_file()
    assert not list(tmp_path.glob("foreframe-scratch-*")), "what the killed one left is gone too"


def test_data_whose_clips_all_have_one_label_are_probed_for_their_states(tmp_path: Path) -> None:
    """As those of robots, whose label is the task."""
    dataset = write_dataset(
        tmp_path / "robot", {"train": [12], "eval": [8]}, label=lambda _: "push the block"
    )
    made = run_train(tiny_config(dataset, tmp_path, train={"steps": 2}), quiet=True).run
    found, _ = probe_any(made, Asked())
    assert found["kinds"] == ["states"]
    assert "labels" not in found


def test_states_of_more_clips_than_memory_holds_are_refused(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run_train(tiny_config(small_dataset, tmp_path, train={"steps": 2}), quiet=True).run
    monkeypatch.setattr("pretrain.probe.offline.PLACES_BYTES", 1000)
    with pytest.raises(UsageError, match=r"28 clips take .* leave --all-clips out"):
        probe_any(made, Asked(all_clips=True, kinds=("retrieval",)))
