"""The data card: its numbers are the rows', any name stays text, and no set is too odd for it."""

from __future__ import annotations

import dataclasses
import io
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.card import publish_card
from data_pipeline.card.words import duration, share, size
from data_pipeline.config import DataConfig
from data_pipeline.format import CARD_FILE
from data_pipeline.manifest import Clip, Video, to_parquet
from data_pipeline.previews import PREVIEWS_FILE, Preview
from data_pipeline.storage import Storage
from tests.data_pipeline.card_rows import clip, config, info, some_rows, video
from tests.data_pipeline.parsed_card import Parsed, number

HOSTILE = (
    "<script>alert(1)</script>.mp4",
    "\"><img src=x onerror='alert(1)'>.mp4",
    "two\nlines\tand & &amp;.mp4",
    "\u202egnp.4pm",
    "👩‍🚀 emoji.mp4",
    "nul\0 and esc\x1b[31m.mp4",
    "عربى.mp4",
    "l" * 3000 + ".mp4",
    "</style></title><svg onload=alert(1)>",
    "half \udcff a byte.mp4",
)
Publish = Callable[..., str]


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    """Writes the card of rows and gives its text."""

    def write(
        videos: Sequence[Video],
        clips: Sequence[Clip],
        previews: Sequence[Preview] | None = None,
        settings: DataConfig | None = None,
        **changes: Any,
    ) -> str:
        storage = Storage(tmp_path)
        if previews is not None:
            storage.publish(PREVIEWS_FILE, to_parquet(previews, Preview))
        publish_card(storage, settings or config(), info(clips, **changes), videos, clips)
        return storage.read(CARD_FILE).decode()

    return write


def test_its_counts_are_the_rows(publish: Publish) -> None:
    videos, clips = some_rows()
    page = Parsed(publish(videos, clips))
    kept = [c for c in clips if c.status == "kept"]
    names = {v.video_id: v.name for v in videos}

    splits = page.rows("Splits")
    for split in ("train", "eval"):
        of_split = [c for c in kept if c.split == split]
        assert [number(text) for text in splits[split][:2]] == [
            len(of_split),
            len({c.video_id for c in of_split}),
        ]
    folders = Counter(names[c.video_id][0] + "/" for c in kept)
    sources = page.rows("Where the clips come from")
    assert {name: number(cells[1]) for name, cells in sources.items()} == folders
    in_folder = Counter(v.name[0] + "/" for v in videos if v.status == "usable")
    assert {name: number(cells[0]) for name, cells in sources.items()} == in_folder
    minutes = {name: float(cells[3].split()[0]) for name, cells in sources.items()}
    assert minutes == pytest.approx({name: count * 2 / 60 for name, count in folders.items()}, abs=0.01)
    labels = page.rows("Labels")
    counted = Counter(c.label for c in kept if c.label)
    assert {name: number(cells[0]) for name, cells in labels.items()} == counted
    rules = page.rows("What was left out")
    filtered = Counter(c.reason.split(":")[0] for c in clips if c.status == "filtered")
    assert {name: number(cells[0]) for name, cells in rules.items()} == filtered
    failed = page.rows("What failed")
    num_failed = sum(c.status == "failed" for c in clips)
    assert sorted(map(number, (cells[2] for cells in failed.values()))) == [0, num_failed]
    assert sorted(map(number, (cells[1] for cells in failed.values()))) == [0, 7]
    assert number(page.rows("What was passed over")["not a video's ending"][0]) == 11
    head = page.words[""]
    assert f"{len(kept)} clips" in head
    assert f"of {len(clips)} clips" in head
    assert "7 failed, 11 files passed over" in head
    duplicates = [c.duplicate_of for c in clips if c.duplicate_of]
    assert (
        f"{len(duplicates)} clips left out as copies of {len(set(duplicates))} that stayed"
        in page.words["Near-duplicates"]
    )


def test_histograms_count_every_scored_clip_and_those_past_a_threshold(publish: Publish) -> None:
    videos, clips = some_rows(200)
    text = publish(videos, clips)
    scored = [c for c in clips if c.motion is not None]
    assert all(
        f'aria-label="{name}: {len(scored):,} clips"' in text for name in ("Motion", "Brightness", "Black")
    )
    motion = next(part for part in text.split("<figure>") if part.startswith("<h3>Motion"))
    bars = re.findall(r"<title>\S+ to \S+: ([\d,]+) kept(?:, ([\d,]+) left out)?</title>", motion)
    assert sum(number(kept) for kept, _ in bars) == sum(c.status == "kept" for c in scored)
    assert sum(number(out or "0") for _, out in bars) == sum(c.status == "filtered" for c in scored)
    past = sum(c.motion < 0.02 for c in scored if c.motion is not None)
    assert f"{past} clips of {len(scored)}" in motion
    assert "min_motion 0.02" in motion
    median = float(np.median([c.motion for c in clips if c.status == "kept" and c.motion is not None]))
    told = re.search(r"Half of the kept clips reach ([\d.]+)", motion)
    assert told is not None
    assert float(told[1]) == pytest.approx(median, abs=0.02)


def test_another_order_of_rows_gives_the_same_bytes(publish: Publish) -> None:
    videos, clips = some_rows(100)
    first = publish(videos, clips)
    for seed in range(3):
        random.Random(seed).shuffle(videos)
        random.Random(seed + 10).shuffle(clips)
        assert publish(videos, clips) == first


def test_whatever_a_name_holds_stays_text(publish: Publish) -> None:
    videos = [dataclasses.replace(video(k), uri=f"/in/{text}", name=text) for k, text in enumerate(HOSTILE)]
    videos += [
        dataclasses.replace(video(50 + k), uri=text, name=text, status="failed", reason=text, error_class="E")
        for k, text in enumerate(HOSTILE)
    ]
    videos += [Video(f"i{k}", text, "", "ignored", text) for k, text in enumerate(HOSTILE)]
    clips = [clip(v, 0, label=v.name) for v in videos[: len(HOSTILE)]]
    clips += [clip(v, 1, status="filtered", reason=f"{v.name}: {v.name}") for v in videos[: len(HOSTILE)]]
    clips += [clip(v, 2, status="failed", reason=v.name) for v in videos[: len(HOSTILE)]]
    previews = [
        Preview(c.clip_id, "", 9, 9, b"\xff\xd8") for c in clips[: len(HOSTILE)] if "\udcff" not in c.uri
    ]
    sources = [text for text in HOSTILE if "\udcff" not in text]  # a config is UTF-8
    text = publish(videos, clips, previews, config(sources=sources))
    page = Parsed(text)
    assert not {"script", "iframe", "object", "link", "base", "form", "a"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert page.tags["img"] == len(previews)
    assert page.tags["style"] == page.tags["title"] - text.count("<g><title>") == 1
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e]", text)
    everything = "".join(page.words.values())
    for shown in (
        HOSTILE[0],
        HOSTILE[1],
        r"two\nlines\tand & &amp;.mp4",
        r"\u202egnp.4pm",
        HOSTILE[4],
        HOSTILE[6],
    ):
        assert shown in everything
    assert "l" * 1000 not in text
    assert text.encode().decode() == text


def test_nothing_is_fetched_and_no_script_may_run(publish: Publish) -> None:
    text = publish(*some_rows())
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text
    page = Parsed(text)
    assert not {"src", "href", "action", "srcset"} & page.attributes
    assert "url(" not in text
    assert "<script" not in text


def test_pictures_stand_with_the_verdict_of_their_clip(publish: Publish) -> None:
    from PIL import Image

    videos, clips = some_rows()
    sink = io.BytesIO()
    Image.new("RGB", (30, 10)).save(sink, "JPEG")
    chosen = [c for c in clips if c.status == "kept"][:5] + [
        c for c in clips if c.reason.startswith("black")
    ][:3]
    rules = ["" if c.status == "kept" else "black" for c in chosen]
    previews = [
        Preview(c.clip_id, rule, 30, 10, sink.getvalue()) for c, rule in zip(chosen, rules, strict=True)
    ]
    previews.append(Preview("f" * 20, "", 30, 10, sink.getvalue()))  # of a clip that is no more
    page = Parsed(publish(videos, clips, previews))
    assert {name: len(found) for name, found in page.images.items()} == {
        "What is in it": 5,
        "What was left out": 3,
    }
    assert all(c.clip_id in page.words["What is in it"] for c in chosen[:5])
    assert all(c.clip_id in page.words["What was left out"] for c in chosen[5:])


EMPTY_SECTIONS = {
    "What is in it": "no pictures",
    "Labels": "No clip has a label",
    "What was left out": "No clip was left out",
    "Near-duplicates": "None among",
    "What failed": "Nothing failed",
    "What was passed over": "No other file",
}


def test_empty_sections_say_so(publish: Publish) -> None:
    source = video(0)
    page = Parsed(publish([source], [clip(source, k) for k in range(3)]))
    for title, words in EMPTY_SECTIONS.items():
        assert words in page.words[title]


def test_an_empty_set_has_a_card(publish: Publish) -> None:
    page = Parsed(publish([], []))
    assert set(EMPTY_SECTIONS) < set(page.titles)
    assert "Nothing is kept" in page.words["Worth a look"]
    assert "nan" not in "".join(page.words.values()).lower()


def test_a_set_of_failures_alone_has_a_card(publish: Publish) -> None:
    videos = [video(k) for k in range(30)]
    bare = {"brightness": None, "black": None, "frozen": None, "motion": None, "phash": "", "split": ""}
    clips = [
        clip(
            v, k, status="failed", reason=f"the frame at {k}.25 s is damaged", error_class="DataError", **bare
        )
        for v in videos
        for k in range(4)
    ]
    page = Parsed(publish(videos, clips))
    (row,) = page.rows("What failed").values()
    assert row == ["DataError", "0", "120"]
    assert len(page.rows("What failed", 1)) == 20
    assert "No clips have this score" in page.words["How clips and videos are distributed"]
    assert "Nothing is kept" in page.words["Worth a look"]


def test_clips_of_a_video_that_is_gone_count(publish: Publish) -> None:
    source = video(0)
    kept = clip(source, 0)
    page = Parsed(publish([], [kept], [Preview(kept.clip_id, "", 9, 9, b"\xff\xd8")]))
    assert page.rows("Splits")["train"][0] == "1"
    assert source.uri in page.words["What is in it"]


def test_every_table_is_bounded(publish: Publish) -> None:
    videos = [
        video(k, f"folder-{k}", width=100 + k, codec=f"codec-{k}", average_fps=1.0 + k / 10)
        for k in range(3000)
    ]
    clips = [clip(v, 0, label=f"label {k}", width=2 * k + 2) for k, v in enumerate(videos)]
    clips += [clip(v, 1, status="filtered", reason=f"rule-{k}: x") for k, v in enumerate(videos)]
    clips += [clip(v, 2, status="failed", reason=f"words {chr(200 + k)}") for k, v in enumerate(videos)]
    text = publish(videos, clips)
    page = Parsed(text)
    assert len(text) < 300_000
    assert max(len(rows) for tables in page.tables.values() for rows in tables) <= 32
    assert "2,980 more" in page.words["Where the clips come from"]
    assert number(page.rows("Where the clips come from")["2,980 more"][1]) == 2980


def findings(publish: Publish, *rows: Any, **changes: Any) -> str:
    return Parsed(publish(*rows, **changes)).words["Worth a look"]


def test_what_a_person_should_look_at_is_said(publish: Publish) -> None:
    videos = [video(k, "big" if k < 18 else "small") for k in range(20)]
    clips = [clip(v, k, split="eval" if v is videos[0] else "train") for v in videos for k in range(10)]
    quiet = findings(publish, videos, [c for c in clips if c.video_id != videos[1].video_id])
    assert "Enlarged" not in quiet
    assert "Variable" not in quiet
    assert "Much is left out" not in quiet
    assert "big/" in quiet  # one source outweighs the other
    assert "Small eval split" in quiet
    out = [dataclasses.replace(c, status="filtered", reason="black: x") for c in clips[:120]]
    assert "60 % of 200 clips were left out: black 60 %" in findings(publish, videos, [*out, *clips[120:]])
    changed = [
        dataclasses.replace(videos[0], is_vfr=True, state_names=("x",)),
        dataclasses.replace(videos[1], width=100, height=90),
        dataclasses.replace(videos[2], average_fps=5.0),
        *videos[3:],
    ]
    loud = findings(publish, changed, clips)
    assert "Variable frame rate. 1 video " in loud
    assert "Enlarged pictures. 1 video (20 s of clips, 5.0 %)" in loud
    assert "Repeated frames. 1 video (20 s of clips, 5.0 %)" in loud
    assert "State names differ" in loud


def test_copies_across_the_splits_are_told_when_none_were_looked_for(publish: Publish) -> None:
    videos = [video(0), video(1)]
    clips = [clip(videos[0], 0, split="eval"), clip(videos[1], 0), clip(videos[1], 1)]
    settings = config(filters={"max_distance": None})
    assert "Eval clips that are in train. 2 kept clips" in findings(publish, videos, clips, settings=settings)
    assert "Eval clips" not in findings(publish, videos, clips[1:], settings=settings)
    page = Parsed(publish(videos, clips, settings=settings))
    assert "not looked for" in page.words["Near-duplicates"]


@pytest.mark.parametrize("kind", ["windows", "scenes", "spans"])
@pytest.mark.parametrize("encoding", ["mp4", "jpeg"])
def test_the_first_lines_say_how_it_was_made(publish: Publish, kind: str, encoding: str) -> None:
    settings = config(cut={"kind": kind, "length_s": 3.5}, encode={"encoding": encoding, "short_side": 112})
    source = video(0)
    head = Parsed(publish([source], [clip(source, 0)], settings=settings)).words[""]
    assert "3.5 s" in head
    assert "112 px" in head
    assert ("JPEG a frame" if encoding == "jpeg" else "H.264") in head
    assert ("divided at their cuts" in head) == (kind == "scenes")


def test_previews_that_cannot_be_read_do_not_cost_the_card(publish: Publish, tmp_path: Path) -> None:
    Storage(tmp_path).publish(PREVIEWS_FILE, b"half a fi")
    source = video(0)
    assert "no pictures" in Parsed(publish([source], [clip(source, 0)])).words["What is in it"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (size(0), "0 B"),
        (size(1023), "1023 B"),
        (size(1024 * 1010), "1010 KiB"),
        (size(1.5 * 1024**2), "1.5 MiB"),
        (size(5000 * 1024**4), "5,000.00 TiB"),
        (share(1, 0), "–"),
        (share(0, 7), "0 %"),
        (share(1, 10_000), "< 0.1 %"),
        (share(9_999_999, 10_000_000), "> 99.9 %"),
        (share(996, 1000), "99.6 %"),
        (share(7, 7), "100 %"),
        (share(110, 100), "110 %"),
        (duration(0), "0 s"),
        (duration(99), "99 s"),
        (duration(100), "1.7 min"),
        (duration(36_000_000), "10,000.0 h"),
    ],
)
def test_numbers_read_as_people_write_them(text: str, words: str) -> None:
    assert text.replace("\u00a0", " ") == words
