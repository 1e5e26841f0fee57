import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.verify import verify


@pytest.fixture
def dataset(finished: DataConfig, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(finished.out, tmp_path / "data")


def test_a_whole_data_set_has_no_findings(dataset: Path) -> None:
    report = verify(str(dataset), deep=True)
    assert report.problems == ()
    assert (report.num_samples, report.num_frames_decoded) == (25, 100)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (
            lambda s: flip(s / "train-000000.tar", 5000),
            r"train-000000\.tar: \w{20}\.\S+ at byte \d+ is damaged",
        ),
        (lambda s: flip(s / "train-000000.index.parquet", 60), "is not the index that its done record names"),
        (lambda s: (s / "train-000000.done.json").unlink(), r"train-000000\.done\.json could not be read"),
        (lambda s: (s / "train-000000.tar").unlink(), r"train-000000\.tar could not be read"),
        (lambda s: (s / "train-000000.done.json").write_text("{"), "a done record cannot be read"),
        (
            lambda s: [p.unlink() for p in s.glob("train-000000.*")],
            r"train-000000\.done\.json could not be read",
        ),
        (
            lambda s: (s / "train-000077.tar").write_bytes(b"x"),
            r"train-000077\.tar belongs to no finished shard",
        ),
        (lambda s: (s.parent / "manifest.parquet").write_bytes(b"x"), "is not the one that dataset.json"),
        (
            lambda s: [shutil.copy(p, s / p.name.replace("0.", "9.", 1)) for p in s.glob("*0.*")],
            r"train-000009\.tar belongs to no finished shard",
        ),
        (
            lambda s: (s.parent / "dataset.json").write_text(
                re.sub(
                    r'("index_sha256": ?")..', r"\g<1>zz", (s.parent / "dataset.json").read_text(), count=1
                )
            ),
            "is not the record that",
        ),
    ],
    ids=[
        "flipped",
        "index",
        "no-done",
        "no-tar",
        "half-done",
        "no-shard",
        "stray",
        "manifest",
        "extra-shard",
        "dataset-json",
    ],
)
def test_each_damage_is_named(dataset: Path, damage: Callable[[Path], object], finding: str) -> None:
    damage(dataset / "shards")
    problems = verify(str(dataset)).problems
    assert any(re.search(finding, problem) for problem in problems), problems


def test_counts_that_are_not_those_of_the_shards_are_refused(dataset: Path) -> None:
    path = dataset / "dataset.json"
    path.write_text(path.read_text().replace('"num_samples":', '"num_samples":1', 1))
    with pytest.raises(DataError, match=r"was changed \(train has"):
        verify(str(dataset))


def test_an_unfinished_data_set_is_none(dataset: Path) -> None:
    (dataset / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"no finished data set"):
        verify(str(dataset))
