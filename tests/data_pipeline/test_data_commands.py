"""What the commands say, beside what they do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError, UsageError
from launch.data import run_index, run_shard, run_verify

MakeConfig = Callable[..., DataConfig]


def test_the_closing_table_and_the_reasons_are_printed(
    bad_files: Path, make_config: MakeConfig, ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config(bad_files, max_failed_fraction=1.0)
    info = run_shard(config)
    said = capfd.readouterr().out
    assert info.num_clips["train"] == 5
    for words in ("videos found", "index ", "clips/s", "zero.mp4: the file is empty", "dead_letters.jsonl"):
        assert words in said
    run_shard(config)
    assert "was finished before" in capfd.readouterr().out
    run_verify(config.out, deep=True)
    assert "is whole" in capfd.readouterr().out


def test_index_alone_writes_the_table_of_videos(
    videos: Path, make_config: MakeConfig, ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = run_index(make_config(videos))
    assert Path(path).name == "videos.parquet"
    assert Path(path).is_file()
    assert "5 videos usable" in capfd.readouterr().out
    run_index(make_config(videos))
    assert "nothing changed" in capfd.readouterr().out


def test_damage_ends_with_every_finding(videos: Path, make_config: MakeConfig, ray_session: None) -> None:
    config = make_config(videos)
    run_shard(config, progress=lambda *_: None)
    (Path(config.out) / "shards" / "eval-000000.tar").unlink()
    (Path(config.out) / "shards" / "train-000000.done.json").unlink()
    with pytest.raises(DataError) as caught:
        run_verify(config.out)
    assert "eval-000000.tar" in str(caught.value)
    assert "train-000000.done.json" in str(caught.value)


def test_an_empty_or_missing_folder_and_a_file_for_out_are_sentences(
    tmp_path: Path, videos: Path, make_config: MakeConfig
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="no video is in"):
        run_shard(make_config(tmp_path / "empty"))
    with pytest.raises(UsageError, match="does not exist"):
        run_shard(make_config(tmp_path / "missing"))
    with pytest.raises(UsageError, match="which is a file"):
        run_shard(make_config(videos, out="file"))
    assert not (tmp_path / "out").exists()
