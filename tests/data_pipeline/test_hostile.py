"""What hostile files cost: themselves, with a true reason, and nothing else."""

from __future__ import annotations

import io
import os
import re
import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_pipeline.config import DataConfig, InspectConfig
from data_pipeline.decode import container, inspect, open_video
from data_pipeline.errors import DataError
from data_pipeline.format import ClipMeta
from data_pipeline.sources import SourceFile, list_sources
from data_pipeline.stages import encode_safely, inspect_safely
from tests.data_pipeline.hostile import Hostile, write_hostile
from tests.data_pipeline.numbered import numbered_frames, read_number, write_video
from tests.data_pipeline.photos import draw, encode, png_that_claims
from tests.data_pipeline.tasks import UNFILTERED, task_of

LIMITS = InspectConfig(timeout_s=20.0, memory_bytes=512 << 20)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Hostile]:
    return write_hostile(tmp_path_factory.mktemp("hostile") / "files")


@pytest.fixture(scope="module")
def files(corpus: dict[str, Hostile]) -> dict[Path, SourceFile]:
    folder = next(iter(corpus.values())).path.parent
    return {Path(file.address): file for file in list_sources((str(folder),), None).files}


def is_in_order(numbers: list[int], hostile: Hostile, meta: ClipMeta) -> bool:
    """Whether a clip's frames are those shown at its ticks."""
    times = np.array(hostile.times_ms) - hostile.times_ms[0]
    ticks = (meta.start_s + np.arange(meta.num_frames) / meta.fps) * 1000 + 1
    return numbers == (np.maximum(np.searchsorted(times, ticks, side="right") - 1, 0) % 256).tolist()


def test_each_hostile_file_ends_as_it_should(
    corpus: dict[str, Hostile], files: dict[Path, SourceFile], make_config: Callable[..., DataConfig]
) -> None:
    """One child process for all of them, so that what one does to it would be seen by the next."""
    wrong = []
    for name, hostile in corpus.items():
        if not hostile.is_listed:
            continue
        video = inspect_safely(files[hostile.path], LIMITS)
        if hostile.fate == "refused":
            if video.status != "failed" or not re.search(hostile.reason, video.reason):
                wrong.append(f"{name}: {video.status} {video.reason}")
            continue
        if video.status == "failed":
            if hostile.fate == "whole" or not re.search(hostile.reason, video.reason):
                wrong.append(f"{name}: failed {video.reason}")
            continue
        config = make_config(hostile.path, filters=UNFILTERED)
        task, clips = task_of(files[hostile.path], config, LIMITS, video)
        if not clips and hostile.fate == "whole":
            wrong.append(f"{name}: no clips of {video.duration_s} s")
        for clip, members in encode_safely(task, clips, LIMITS):
            if clip.status == "failed":
                if hostile.fate == "whole" or not re.search(hostile.reason, clip.reason):
                    wrong.append(f"{name} {clip.clip_id}: {clip.reason}")
                continue
            meta = ClipMeta.from_json(members["json"])
            with open_video(members["mp4"]) as encoded:
                numbers = [read_number(image) for image in encoded.frames(range(meta.num_frames))]
            if not is_in_order(numbers, hostile, meta):
                wrong.append(f"{name} at {meta.start_s}: frames {numbers}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["pipe", "device", "folder", "dangling", "looping"])
def test_what_is_no_file_is_refused_unopened(name: str, corpus: dict[str, Hostile]) -> None:
    for read in (inspect, open_video):
        with pytest.raises(DataError, match=corpus[name].reason):
            read(corpus[name].path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")
def test_an_unreadable_file_is_refused_with_the_systems_words(tmp_path: Path) -> None:
    path = write_video(tmp_path / "secret.mp4", numbered_frames(3))
    path.chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            inspect(path)
        except DataError as error:
            os._exit(0 if "cannot be opened: Permission denied" in str(error) else 2)
        except BaseException:
            traceback.print_exc()
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        yield server


@pytest.mark.parametrize("kind", ["ffconcat", "m3u8, a file", "m3u8, an address", "dash"])
def test_libav_opens_no_other_file_and_no_address(
    kind: str, tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first bytes give nothing away: the list of containers and protocols holds by itself."""
    monkeypatch.setattr(container, "refuse_early", lambda source: b"")
    write_video(tmp_path / "other.ts", numbered_frames(10))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/other.ts"
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n"
    text = {
        "ffconcat": "ffconcat version 1.0\nfile 'other.ts'\n",
        "m3u8, a file": playlist.format(tmp_path / "other.ts"),
        "m3u8, an address": playlist.format(address),
        "dash": f'<?xml version="1.0"?><MPD profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><BaseURL>'
        f"{address}</BaseURL></MPD>",
    }[kind]
    path = tmp_path / "list.mp4"
    path.write_text(text)
    if kind == "ffconcat":  # that libav would, if it were let
        with av.open(str(path)) as opened:
            assert opened.streams.video
    for source in (path, text.encode()):
        with pytest.raises(DataError, match="no video container is recognised"):
            container.open_container(source)
    with pytest.raises(TimeoutError):
        listener.accept()


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_other_decoders_get_only_what_begins_like_a_video(decoder: str, tmp_path: Path) -> None:
    path = tmp_path / "list.mp4"
    path.write_text(" \n\n#EXTM3U\n#EXT-X-TARGETDURATION:3\n" + "#\n" * 60)
    with pytest.raises(DataError, match=r"only names other files|not installed"):
        open_video(path, decoder)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"its first bytes|not installed"):
        open_video(b"some text" * 50, decoder)  # type: ignore[arg-type]


def test_a_decoder_that_hangs_costs_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_config: Callable[..., DataConfig]
) -> None:
    """The child is made to hang on one file by name; the next file is read as ever."""
    hook = (
        "import time, data_pipeline.decode as decode\n"
        "def hanging(true):\n"
        "    def call(source, *rest, **named):\n"
        "        if 'hanging' in str(source): time.sleep(600)\n"
        "        return true(source, *rest, **named)\n"
        "    return call\n"
        "decode.open_video = hanging(decode.open_video)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hook)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    limits = InspectConfig(timeout_s=1.0, memory_bytes=(512 << 20) + 4096)  # a child of its own
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("hanging", "well"):
        write_video(folder / f"{name}.mp4", numbered_frames(10))
    results = {}
    config = make_config(folder, filters=UNFILTERED)
    for file in list_sources((str(folder),), None).files:
        task, clips = task_of(file, config, limits)
        results[Path(file.name).stem] = [clip for clip, _ in encode_safely(task, clips, limits)]
    assert {(r.error_class, r.attempts) for r in results["hanging"]} == {("TimedOutError", 2)}
    assert "silent for 1 s" in results["hanging"][0].reason
    assert {clip.status for clip in results["well"]} == {"kept"}


def test_equal_sources_give_equal_clips_bit_by_bit(
    corpus: dict[str, Hostile], make_config: Callable[..., DataConfig], files: dict[Path, SourceFile]
) -> None:
    file = files[corpus["plain"].path]
    config = make_config(file.address, filters=UNFILTERED)
    task, clips = task_of(file, config, LIMITS)
    once, again = ([members for _, members in encode_safely(task, clips, LIMITS)] for _ in range(2))
    assert once == again
    assert len({members["mp4"] for members in once}) == len(clips)
    with av.open(io.BytesIO(once[0]["mp4"])) as opened:
        assert opened.streams.video[0].frames == 4


def test_hostile_pictures_cost_themselves_alone(tmp_path: Path) -> None:
    """In the child, one after the other; the last would take all its memory."""
    folder = tmp_path / "pictures"
    whole = encode(draw(), "JPEG")
    files = {
        "a-truncated.jpg": (whole[: len(whole) // 2], "DataError", "cut short"),
        "b-bomb.png": (png_that_claims(60_000, 60_000), "DataError", "more pixels than are read"),
        "c-text.jpg": (b"some text\n" * 30, "DataError", "no picture is recognised"),
        "d-zero.png": (b"", "DataError", "empty"),
        "e-film.jpg": (b"\0\0\0\x18ftypisom" + bytes(100), "DataError", "no picture is recognised"),
        "f-large.png": (encode(Image.new("L", (9000, 9000))), "OutOfMemoryError", "more memory to decode"),
        "g-whole.jpg": (whole, "", ""),
        "h-really-a-png.jpg": (encode(draw()), "", ""),
        "i-picture.mp4": (whole, "DataError", "not a video; if it is to be one, give it a picture's ending"),
    }
    folder.mkdir()
    for name, (data, _, _) in files.items():
        (folder / name).write_bytes(data)
    (folder / "j-nowhere.jpg").symlink_to(folder / "nothing.jpg")
    limits = InspectConfig(timeout_s=20.0, memory_bytes=(192 << 20) + 4096)  # a child of its own
    found = {
        file.name: inspect_safely(file, limits, picture_s=0.125)
        for file in list_sources((str(folder),), pictures=True).files
    }
    dangling = found.pop("j-nowhere.jpg")
    assert "leads nowhere" in dangling.reason
    for name, (_, error_class, reason) in files.items():
        assert (found[name].error_class, found[name].is_picture) == (error_class, not error_class), found[
            name
        ]
        assert reason in found[name].reason, found[name].reason
