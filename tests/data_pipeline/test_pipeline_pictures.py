"""Still pictures through the whole pipeline: each is a clip of one frame, and videos are as without them."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.clips import PartPlan, cut_video
from data_pipeline.config import DataConfig
from data_pipeline.dataset import shard
from data_pipeline.decode import decode_jpegs, open_video
from data_pipeline.encode import encoded_size
from data_pipeline.errors import DataError, UsageError
from data_pipeline.format import CARD_FILE, META, ClipMeta, read_info, read_shards
from data_pipeline.index import build_index
from data_pipeline.manifest import Video, from_parquet
from data_pipeline.previews import Preview
from data_pipeline.redrive import redrive
from data_pipeline.sources import is_picture, list_sources
from data_pipeline.stages import build_part, inspect_safely
from data_pipeline.storage import Storage
from data_pipeline.verify import verify
from launch.data import run_index, run_shard
from pretrain.data.reader import ClipReader
from tests.data_pipeline.films import noise, quiet, write_video
from tests.data_pipeline.photos import by_name, draw, encode, write

MakeConfig = Callable[..., DataConfig]
pytestmark = pytest.mark.usefixtures("ray_session")

SECOND = {"length_s": 1.0, "stride_s": 1.0}
KINDS = ("jpg", "JPEG", "png", "webp", "bmp", "tif")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two films of two seconds, a picture of each kind, and a file that is neither."""
    folder = tmp_path / "mixed"
    for seed in (1, 2):
        write_video(folder / f"film-{seed}.mp4", noise(32, seed))
    for seed, ending in enumerate(KINDS):
        write(folder / "stills" / f"photo-{seed}.{ending}", draw(seed + 10))
    (folder / "notes.txt").write_text("no picture\n")
    return folder


def members_of(config: DataConfig) -> dict[str, dict[str, bytes]]:
    """Each sample's members as they lie in the tars."""
    storage, found = Storage(config.out), {}
    for read in read_shards(storage, read_info(storage).shards):
        for sample in read.samples:
            found[sample.key] = {
                suffix: storage.read(f"shards/{sample.stem}.tar", member.offset, member.size)
                for suffix, member in sample.members.items()
            }
    return found


def frames_of(members: dict[str, bytes]) -> np.ndarray:
    if "mp4" in members:
        with open_video(members["mp4"]) as video:
            return video.frames(range(len(video.timestamps_s)))
    return decode_jpegs([members[suffix] for suffix in sorted(members) if suffix.endswith(".jpg")])


def scaled(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """By area with Pillow, as another reference than the scaler in use."""
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


@pytest.mark.parametrize("encoding", ["mp4", "jpeg"])
def test_pictures_beside_videos_are_clips_of_one_frame_each(
    mixed: Path, make_config: MakeConfig, encoding: str
) -> None:
    encode_config = {"short_side": 32, "fps": 8.0, "encoding": encoding, "crf": 8, "jpeg_quality": 95}
    config = make_config(mixed, cut=SECOND, encode=encode_config, pictures=True)
    outcome = shard(config, quiet)
    pictures = by_name(outcome)
    assert len(pictures) == len(KINDS)
    assert Counter(clip.status for clip in outcome.clips) == {"kept": 4 + len(KINDS)}
    members = members_of(config)
    for seed in range(len(KINDS)):
        clip = pictures[f"photo-{seed}"]
        assert (clip.start_s, clip.end_s, clip.num_frames, clip.fps) == (0.0, 0.125, 1, 8.0)
        assert (clip.width, clip.height) == encoded_size(96, 64, 32)
        assert (clip.frozen, clip.motion) == (None, None)
        meta = ClipMeta.from_json(members[clip.clip_id][META])
        assert (meta.num_frames, meta.encoding, meta.name) == (1, encoding, clip.uri[len(str(mixed)) + 1 :])
        frames = frames_of(members[clip.clip_id])
        assert frames.shape == (1, 32, 48, 3)
        away = [
            np.abs(frames[0].astype(int) - scaled(draw(other + 10), (48, 32))).mean()
            for other in range(len(KINDS))
        ]
        assert int(np.argmin(away)) == seed
        assert away[seed] < (6 if encoding == "mp4" else 4)  # 4:2:0 of strong colours
    reader = ClipReader(config.out, "train")
    for number in range(len(reader)):
        read = reader.read(number, 8, 8.0)  # as training does: a picture is shown all the time
        is_still = read.meta.num_frames == 1
        assert (read.frames_THWC == read.frames_THWC[:1]).all() == is_still
    report = verify(config.out, deep=True)
    assert report.problems == ()
    assert report.num_frames_decoded == 4 * 8 + len(KINDS)
    assert not shard(config, quiet).is_new


def test_pictures_change_nothing_of_the_videos(mixed: Path, make_config: MakeConfig) -> None:
    without = shard(make_config(mixed, "without", cut=SECOND), quiet)
    beside = shard(make_config(mixed, "beside", cut=SECOND, pictures=True), quiet)
    told = [video for video in without.videos if video.status == "ignored"]
    assert {Path(video.uri).suffix: video.reason for video in told}[".png"] == (
        "its ending .png is a picture's: `pictures: true` takes those too"
    )
    assert len(told) == len(KINDS) + 1
    ours = {clip.clip_id: clip.members_sha256 for clip in without.clips}
    theirs = {clip.clip_id: clip.members_sha256 for clip in beside.clips}
    assert ours.items() < theirs.items()
    with pytest.raises(UsageError, match="another config"):
        shard(make_config(mixed, "without", cut=SECOND, pictures=True), quiet)


@pytest.mark.parametrize("kind", ["windows", "scenes", "spans"])
def test_however_videos_are_cut_a_picture_is_one_clip(
    mixed: Path, make_config: MakeConfig, kind: str
) -> None:
    if kind == "scenes":
        pytest.importorskip("scenedetect")
    outcome = shard(
        make_config(mixed, cut={"kind": kind, "length_s": 2.0, "stride_s": 0.5}, pictures=True), quiet
    )
    assert [clip.status for clip in by_name(outcome).values()] == ["kept"] * len(KINDS)
    cuts = {video.cuts_s for video in outcome.videos if video.is_picture}
    assert cuts == {() if kind == "scenes" else None}


def test_filters_look_at_what_a_picture_can_have(tmp_path: Path, make_config: MakeConfig) -> None:
    folder = tmp_path / "pictures"
    write(folder / "a.png", draw(1, 192, 128))
    write(folder / "a-smaller.jpg", scaled(draw(1, 192, 128), (96, 64)), quality=80)
    write(folder / "black.png", np.full((64, 96, 3), 3, np.uint8))
    framed = np.zeros((128, 96, 3), np.uint8)
    framed[32:96] = draw(2)
    write(folder / "framed.png", framed)
    strict = {"max_frozen": 0.0, "min_motion": 5.0, "max_black": 0.5, "max_distance": 8}
    outcome = shard(make_config(folder, filters=strict, pictures=True), quiet)
    found = by_name(outcome)
    assert {name: (clip.status, clip.reason.split(":")[0]) for name, clip in found.items()} == {
        "a": ("kept", ""),
        "a-smaller": ("filtered", "duplicate"),
        "black": ("filtered", "black"),
        "framed": ("kept", ""),
    }
    assert found["a-smaller"].duplicate_of == found["a"].clip_id
    left, top, width, height = found["framed"].crop
    assert (left, width) == (0, 96)
    assert 32 <= top <= 36
    assert 92 <= top + height <= 96


def test_a_set_of_pictures_alone(tmp_path: Path, make_config: MakeConfig) -> None:
    folder = tmp_path / "photos"
    for number in range(40):
        write(folder / f"n{number % 3}" / f"{number:03d}.JPEG", draw(number, 90 + number, 70), quality=90)
    config = make_config(folder, pictures=True)
    info = run_shard(config, progress=quiet)
    assert sum(info.num_clips.values()) == info.num_videos == 40
    assert 4 <= info.num_clips["eval"] <= 16
    card = (Path(config.out) / CARD_FILE).read_text()
    assert "40 clips, 5\u00a0s, cut from 40 pictures" in card
    assert "Each picture is a clip of one frame; clips were freed" in card
    assert "Videos were cut" not in card
    assert "The clip of a picture is one frame." in card
    previews, _ = from_parquet((Path(config.out) / "previews.parquet").read_bytes(), Preview)
    assert {preview.height for preview in previews} == {72}
    assert max(preview.width for preview in previews) < 2 * 96
    assert Image.open(io.BytesIO(previews[0].jpeg)).width == previews[0].width
    assert "three frames of" not in card


def test_ids_of_pictures_know_no_rate(mixed: Path, make_config: MakeConfig) -> None:
    at = [
        by_name(
            shard(
                make_config(mixed, f"at-{fps:g}", pictures=True, encode={"fps": fps, "short_side": 32}), quiet
            )
        )
        for fps in (8.0, 30.0)
    ]
    assert [clip.clip_id for clip in at[0].values()] == [clip.clip_id for clip in at[1].values()]
    assert {clip.end_s for clip in at[1].values()} == {0.033}


def test_a_mended_picture_is_redriven_and_hostile_ones_cost_themselves(
    mixed: Path, make_config: MakeConfig
) -> None:
    whole = encode(draw(50), "JPEG")
    late, text = mixed / "late.jpg", mixed / "text.png"
    late.write_bytes(whole[:600])
    text.write_text("<html>404</html>" * 10)
    config = make_config(mixed, cut=SECOND, pictures=True, max_failed_fraction=0.5)
    before = shard(config, quiet)
    reasons = {Path(letter.uri).name: letter.reason for letter in before.dead_letters}
    assert "cut short" in reasons["late.jpg"]
    assert "an HTML page, not a picture" in reasons["text.png"]
    late.write_bytes(whole)
    after = redrive(config, quiet)
    assert after.info.revision == 1
    assert by_name(after)["late"].status == "kept"
    standing = {clip.clip_id: clip for clip in after.clips}
    assert all(standing[clip.clip_id] == clip for clip in before.clips)
    assert verify(config.out, deep=True).problems == ()


def test_the_commands_count_pictures(
    mixed: Path, make_config: MakeConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    run_index(make_config(mixed, "index", pictures=True), progress=quiet)
    assert f"2 videos and {len(KINDS)} pictures usable" in capfd.readouterr().out
    config = make_config(mixed, cut=SECOND, pictures=True)
    run_shard(config, progress=quiet)
    said = capfd.readouterr().out
    assert f"{len(KINDS)} of them still pictures" in said
    card = (Path(config.out) / CARD_FILE).read_text()
    for words in (
        f"cut from 2 videos and {len(KINDS)} pictures",
        "a picture counting as one frame",
        ", each picture is a clip of one frame; clips",
        "All clips of videos last 1 s.",
        "files usable",
        "a still picture",
        "pictures: true",
    ):
        assert words in card, words
    assert "Repeated frames" not in card
    assert "Still clips" not in card


def test_pictures_of_a_store_are_those_of_a_folder(
    mixed: Path, make_config: MakeConfig, s3_bucket: str
) -> None:
    store = Storage(f"{s3_bucket}/mixed")
    for path in mixed.rglob("*.*"):
        if path.is_file():
            store.publish(path.relative_to(mixed).as_posix(), path.read_bytes())
    made = []
    for name, source in (("here", str(mixed)), ("there", f"{s3_bucket}/mixed")):
        config = make_config(source, name, pictures=True)
        rows = []
        for file in list_sources(config.sources, pictures=True).files:
            if is_picture(file.name):  # without Ray, whose workers know nothing of this store
                video = inspect_safely(file, config.inspect, picture_s=config.picture_s)
                clips = tuple(cut_video(video, file.spans, config))
                *_, found = build_part(
                    PartPlan("part", clips), {video.video_id: (file, video)}, config, config.out
                )
                assert isinstance(found, list)
                rows += found
        made.append([(row.clip_id, row.status, row.members_sha256) for row in rows])
    assert made[0] == made[1]
    assert len(made[0]) == len(KINDS)
    listed = list_sources((f"{s3_bucket}/mixed/**/*.[jJ]*",), pictures=True).files
    assert [file.name for file in listed] == ["stills/photo-0.jpg", "stills/photo-1.JPEG"]
    (alone,) = list_sources((f"{s3_bucket}/mixed/stills/photo-2.png",)).files  # refused when it is looked at
    assert alone.name == "photo-2.png"


def test_one_picture_is_a_set(tmp_path: Path, make_config: MakeConfig) -> None:
    path = write(tmp_path / "only.dat.jpg", draw(1))
    odd = path.rename(tmp_path / "only.dat")  # named outright, whatever its ending
    for name, source in (("a", odd), ("b", write(tmp_path / "one.png", draw(1)))):
        outcome = shard(make_config(source, name, pictures=True), quiet)
        assert outcome.info.num_clips == {"train": 1, "eval": 0}
    with pytest.raises(DataError, match="`pictures: true` takes pictures"):
        shard(make_config(odd, "c", max_failed_fraction=0.0), quiet)


def test_records_of_a_picture_stand_by_themselves(mixed: Path, make_config: MakeConfig) -> None:
    videos = build_index(make_config(mixed, pictures=True), quiet).videos
    picture = next(video for video in videos if video.name == "stills/photo-2.png")
    assert picture == dataclasses.replace(
        Video(picture.video_id, picture.uri, picture.name, "usable"),
        **{name: getattr(picture, name) for name in ("size_bytes", "content_sha256", "asked", "listing")},
        container="picture",
        codec="png",
        pixel_format="RGB",
        width=96,
        height=64,
        is_vfr=False,
        duration_s=0.125,
        num_frames=1,
    )
