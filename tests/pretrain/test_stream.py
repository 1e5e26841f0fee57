"""The stream of batches: the same for any number of workers, never a sample short, never silent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.errors import ConfigError
from launch.train import run_train
from pretrain.config import RunConfig
from pretrain.data.corpus import Corpus
from pretrain.data.order import digest_of
from pretrain.data.reader import ClipReader
from pretrain.tracking.jsonl import read_metrics
from tests.pretrain.taken_batches import assert_equal, keys_of, opened, taken
from tests.small_dataset import tiny_config, write_dataset


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_batches_do_not_depend_on_the_number_of_workers(workers: int, small_dataset: Path) -> None:
    """Nor on how many they keep ready; and slots written again do not change what was taken from them."""
    alone = tiny_config(small_dataset, Path("runs"), data={"workers": 0})
    several = tiny_config(small_dataset, Path("runs"), data={"workers": workers, "prefetch": 1 + workers % 2})
    assert_equal(taken(several, 9), taken(alone, 9))


def test_a_resume_goes_on_with_the_next_unseen_clip(small_dataset: Path) -> None:
    config = tiny_config(small_dataset, Path("runs"), data={"workers": 0})
    whole = taken(config, 8)
    assert_equal(taken(config, 3, step=5), whole[5:])
    keys = [key for step in whole for batch in step for key in batch["keys"]]
    assert len(set(keys[:23])) == 23, "23 clips: the first epoch has no doubles"


def test_ranks_together_see_what_one_sees(small_dataset: Path) -> None:
    config = tiny_config(
        small_dataset,
        Path("runs"),
        train={"global_batch": 12, "micro_batch": 1},
        strategy={"kind": "deepspeed"},
    )
    alone = keys_of(config, 2)
    for world in (2, 3, 4, 6):
        ranks = [taken(config, 2, world=world, rank=rank) for rank in range(world)]
        together = [b["keys"][0] for step in range(2) for rank in ranks for b in rank[step]]
        assert together == alone


def test_crops_starts_and_masks_belong_to_the_sample_not_to_its_place_in_a_batch(small_dataset: Path) -> None:
    """The same clips in micro-batches of another size."""
    small = tiny_config(small_dataset, Path("runs"), train={"micro_batch": 1}, data={"frames": 4})
    large = tiny_config(small_dataset, Path("runs"), train={"micro_batch": 4}, data={"frames": 4})
    ones = torch.cat([batch["clips"] for step in taken(small, 4) for batch in step])
    fours = torch.cat([batch["clips"] for step in taken(large, 4) for batch in step])
    assert torch.equal(ones, fours)


def test_each_epoch_crops_a_clip_anew(small_dataset: Path) -> None:
    config = tiny_config(small_dataset, Path("runs"), train={"global_batch": 23, "micro_batch": 23})
    first, second = (dict(zip(b["keys"], b["clips"], strict=True)) for s in taken(config, 2) for b in s)
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[key], second[key]) for key in first)


def test_stops_and_other_ranks_lose_and_double_nothing_with_workers(small_dataset: Path) -> None:
    """Two legs, over two ranks and over three, with workers of their own: the ids of one process without."""
    train = {"global_batch": 12, "micro_batch": 2}
    alone = keys_of(tiny_config(small_dataset, Path("runs"), train=train), 3)
    found, done = [], 0
    for world, workers, steps in [(2, 2, 2), (3, 1, 1)]:
        config = tiny_config(
            small_dataset,
            Path("runs"),
            train=train,
            strategy={"kind": "deepspeed"},
            data={"workers": workers},
        )
        ranks = [taken(config, steps, world=world, rank=rank, step=done) for rank in range(world)]
        found += [key for step in range(steps) for rank in ranks for b in rank[step] for key in b["keys"]]
        done += steps
    assert found == alone


def mixture(first: Path, second: Path, **data: Any) -> RunConfig:
    shards = [{"shards": str(first), "weight": 0.75}, {"shards": str(second), "weight": 0.25}]
    return tiny_config(
        first, Path("runs"), data={"shards": shards, **data}, train={"global_batch": 8, "micro_batch": 4}
    )


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures: clips of one frame, as JPEG."""
    root = tmp_path_factory.mktemp("stills") / "stills"
    return write_dataset(root, {"train": [3, 2]}, num_frames=1, encoding="jpeg", first_number=1000)


def test_a_mixture_keeps_its_proportions_repeats_the_small_set_and_resumes(
    small_dataset: Path, stills: Path
) -> None:
    config = mixture(small_dataset, stills)
    whole = taken(config, 12)
    for step in whole:
        keys = [key for batch in step for key in batch["keys"]]
        assert sum(int(key, 16) >= 1000 for key in keys) == 2
    pictures = [key for step in whole for b in step for key in b["keys"] if int(key, 16) >= 1000]
    assert [sorted(pictures[k : k + 5]) for k in (0, 5, 10)] == [sorted(set(pictures))] * 3, (
        "epochs of its own"
    )
    assert_equal(taken(config, 4, step=8), whole[8:])


def test_pictures_and_clips_share_a_batch(small_dataset: Path, stills: Path) -> None:
    for batch in taken(mixture(small_dataset, stills), 2)[0]:
        for key, clip in zip(batch["keys"], batch["clips"], strict=True):
            is_still = torch.equal(clip, clip[:, :1].expand_as(clip))
            assert is_still == (int(key, 16) >= 1000)


def test_a_data_set_named_twice_is_refused(small_dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_dataset, tmp_path / "copy"))
    with pytest.raises(ConfigError, match="each data set once, with the sum of its weights"):
        Corpus(mixture(small_dataset, copy).data, 0)


def test_a_run_goes_on_with_another_batch_from_the_same_position(small_dataset: Path, tmp_path: Path) -> None:
    """4 steps of 4 clips, then 2 steps of 6, where that is allowed by name."""
    first = tiny_config(small_dataset, tmp_path, train={"steps": 4})
    run = run_train(first, quiet=True).run
    changed = tiny_config(small_dataset, tmp_path, train={"steps": 6, "global_batch": 6})
    with pytest.raises(
        ConfigError, match=r"global_batch is 6: need 4(.|\n)*--allow-change train.global_batch"
    ):
        run_train(changed, quiet=True)
    run_train(changed, quiet=True, allow_change=["train.global_batch"])
    corpus = Corpus(first.data, first.seed)
    expected = []
    for begin, end in [(0, 4), (4, 8), (8, 12), (12, 16), (16, 22), (22, 28)]:
        places = range(begin, end)
        digest = digest_of((p, corpus.name(corpus.spot(p))) for p in places) % (1 << 64)
        expected.append(f"{digest:016x}")
    assert [line["batch_digest"] for line in read_metrics(run)] == expected


def test_a_mixture_has_a_fingerprint_and_epochs_of_its_own(small_dataset: Path, stills: Path) -> None:
    one = Corpus(tiny_config(small_dataset, Path("runs")).data, 0)
    both = Corpus(mixture(small_dataset, stills).data, 0)
    assert one.fingerprint == one.readers[0].info.fingerprint
    assert one.epochs(46) == {"": 2.0}
    assert both.epochs(92) == {"/small": 3.0, "/stills": 4.6}
    swapped = mixture(small_dataset, stills).data.model_copy(
        update={"shards": tuple(reversed(mixture(small_dataset, stills).data.sources))}
    )
    assert len({one.fingerprint, both.fingerprint, Corpus(swapped, 0).fingerprint}) == 3


def test_a_cache_too_small_for_two_windows_is_refused(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipReader, "is_cached", True)
    with pytest.raises(ConfigError, match=r"data.cache_bytes is 1000: need at least \d+: two windows"):
        Corpus(tiny_config(small_dataset, Path("runs"), data={"cache_bytes": 1000}).data, 0)


def test_seconds_of_each_stage_and_of_waiting_are_told(small_dataset: Path) -> None:
    with opened(tiny_config(small_dataset, Path("runs"))) as batches:
        list(batches.take(4))
        stages = batches.take_stage_ms()
        assert list(stages) == ["read", "decode", "crop", "mask"]
        assert all(ms > 0 for ms in stages.values())
        assert 8 * sum(stages.values()) <= 1000 * batches.take_wait_s() * 1.01, (
            "without workers it all is waited for"
        )
        assert not any(batches.take_stage_ms().values())


def test_states_come_with_the_clips_and_not_where_one_has_none(small_dataset: Path) -> None:
    batch = taken(tiny_config(small_dataset, Path("runs")), 1)[0][0]
    reader = ClipReader(str(small_dataset), "train")
    numbers = [int(key, 16) for key in batch["keys"]]
    expected = np.stack([reader.read(number, 8, 8.0).state for number in numbers])  # type: ignore[arg-type]
    assert np.array_equal(batch["states"].numpy(), expected)
    assert batch["actions"].shape[:2] == (2, 8)
