"""`foreframe probe` on labelled data: from a run and from weights, what it writes, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from typer.testing import CliRunner

from data_pipeline.errors import CheckpointError, DataError, UsageError
from launch.cli import app
from launch.results import probe_any
from launch.train import run_train
from launch.weights import run_export
from pretrain.data.augment import eval_view
from pretrain.data.reader import ClipReader
from pretrain.features import Encoder
from pretrain.probe import Asked, classify
from pretrain.probe.attentive import AttentiveHead, HeadForm
from pretrain.probe.classify import Heads
from pretrain.probe.clips import Probed, probe_clips
from pretrain.probe.heads import publish_head, read_attentive
from pretrain.probe.kinds import kinds_of
from pretrain.probe.subject import fingerprint, of_run
from pretrain.probe.tokens import Looker, TokenSource
from tests.small_dataset import FPS, tiny_config, write_dataset


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
    shorter, _ = probe_any(run, Asked(frames=4, size=24, kinds=("knn",)), out=tmp_path / "shorter")
    assert (shorter["preprocessing"]["frames"], shorter["preprocessing"]["size"]) == (4, 24)
    assert shorter["preprocessing"]["fps"] == FPS
    with pytest.raises(UsageError, match="--size is 30: need a multiple of 8"):
        probe_any(run, Asked(size=30), out=tmp_path / "odd")
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    with pytest.raises((UsageError, CheckpointError), match=r"weights\.pt"):
        probe_any(tmp_path / "weights.pt", Asked(data=str(labelled_set)))
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
    alone = replace(data, videos=("one",) * len(data.videos))
    for way in (classify.by_line, classify.by_neighbours):
        with pytest.raises(DataError, match="of one video"):
            way(alone, {"": (np.zeros((10, 2), np.float32), np.zeros((12, 2), np.float32))})
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


def test_the_command_prints_a_row_a_probe_and_says_where_all_is(run: Path, tmp_path: Path) -> None:
    given = ["probe", str(run), "--kind", "knn,linear", "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines()]
    assert ["probe", "trained", "untrained", "most", "frequent", "class"] in lines
    assert [line[:2] for line in lines if line and line[0] == "knn"] == [["knn", "top-1"], ["knn", "class"]]
    assert str(tmp_path / "out" / "probes" / "linear-step-2") in done.output
    assert str(tmp_path / "out" / "probe.json") in done.output
    for wrong, said in (
        (["--lr", "1e-3,fast"], "--lr is '1e-3,fast': need numbers"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--kind", "cubic"], "need one or several of attentive"),
    ):
        refused = CliRunner().invoke(app, [*given, *wrong])
        assert isinstance(refused.exception, UsageError)
        assert said in str(refused.exception)


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
