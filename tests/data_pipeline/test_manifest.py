import json

import pytest

from data_pipeline.errors import DataError
from data_pipeline.format import ShardDone, to_json
from data_pipeline.manifest import Clip, DeadLetter, Video, from_parquet, to_jsonl, to_parquet

CLIPS = [
    Clip("a", "v", "x.mp4", 0.0, 2.0, "kept", split="train", shard="train-000000", offset=512, size_bytes=9),
    Clip("b", "v", "näh 'q\"\n🎬.mp4", 2.0, 4.0, "failed", "cut short"),
    Clip("c", "v", "x.mp4", 4.0, 6.0, "filtered", "black: all", crop=(0, 8, 64, 48), black=1.0, phash="00ff"),
]


def test_records_come_back_as_they_went() -> None:
    videos = [
        Video("v", "u", "n", "usable", state_names=("x", "y"), is_vfr=None, cuts_s=(0.5, 2.0)),
        Video("w", "u", "n", "failed", cuts_s=()),
    ]
    for record, rows in ((Clip, CLIPS), (Video, videos), (Clip, [])):
        found, notes = from_parquet(to_parquet(rows, record, {"listing": "abc"}), record)
        assert found == rows
        assert notes["listing"] == "abc"


def test_equal_records_give_equal_bytes() -> None:
    assert to_parquet(CLIPS, Clip) == to_parquet(list(CLIPS), Clip)


def test_another_table_is_refused() -> None:
    with pytest.raises(DataError, match="columns"):
        from_parquet(to_parquet(CLIPS, Clip), Video)
    with pytest.raises(DataError, match="cannot be read"):
        from_parquet(b"PAR1 not really", Video)


def test_a_dead_letter_is_one_line_whatever_the_name() -> None:
    lines = to_jsonl([DeadLetter("a\nb.mp4", "v", "inspect", "DataError", "why")] * 2).splitlines()
    assert [json.loads(line)["uri"] for line in lines] == ["a\nb.mp4"] * 2


def test_a_done_record_comes_back_and_half_of_one_does_not() -> None:
    done = ShardDone("s", "train", 1, 2, "t", "i", "p")
    assert ShardDone.from_json(to_json(done)) == done
    with pytest.raises(DataError):
        ShardDone.from_json(to_json(done)[:-9])
