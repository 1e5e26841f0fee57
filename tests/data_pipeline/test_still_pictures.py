"""Still pictures as one frame each: every kind comes out as it is meant, and damage is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.decode import PictureDecoder, inspect_picture, picture_format
from data_pipeline.errors import DataError
from tests.data_pipeline.photos import (
    LOSSLESS,
    SIDES,
    draw,
    encode,
    png_that_claims,
    stored,
    with_orientation,
    write,
)

KINDS = ("JPEG", *LOSSLESS)


def read(data: bytes | Path) -> np.ndarray:
    with PictureDecoder(data) as picture:
        return picture.frames([0])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_one_frame_at_no_time(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "it has any name.jpg"
    path.write_bytes(encode(draw(), kind))
    for source in (path, str(path), path.read_bytes()):
        with PictureDecoder(source) as picture:
            assert picture.timestamps_s.tolist() == [0.0]
            assert (picture.width, picture.height, picture.codec) == (96, 64, kind.lower())
            frames = picture.frames([0])
            assert frames.shape == (1, 64, 96, 3)
            difference = np.abs(frames[0].astype(int) - draw())
            assert difference.max() == 0 if kind in LOSSLESS else difference.mean() < 1.5
            assert picture.frames([0, 0]).shape[0] == 2
            for wrong in ([1], [], [-1]):
                with pytest.raises(DataError, match="one frame"):
                    picture.frames(wrong)


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_turns_a_picture_upright(kind: str, orientation: int) -> None:
    upright = draw(3, 40, 24)
    options = LOSSLESS.get(kind, {"quality": 98, "subsampling": "4:4:4"})
    data = encode(stored(upright, orientation), kind, **options, exif=with_orientation(orientation))
    found = read(data)
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < (0.01 if kind in LOSSLESS else 2)
    turned = {3: 180, 4: 180, 5: 90, 6: 270, 7: 270, 8: 90}.get(orientation, 0)
    with PictureDecoder(data) as picture:
        assert picture.rotation == turned


def test_a_broken_exif_turns_nothing() -> None:
    for exif in (b"Exif\0\0" + b"\xff" * 40, b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"nonsense"):
        assert read(encode(draw(), "JPEG", quality=95, exif=exif)).shape == (64, 96, 3)
    assert read(encode(draw(), "JPEG", quality=95, exif=with_orientation(9))).shape == (64, 96, 3)


def test_every_mode_becomes_the_colours_it_stands_for() -> None:
    """Held against numpy, mode by mode."""
    rgb = draw(1)
    grey = rgb[..., 0]
    alpha = draw(2)[..., 1]
    over_black = np.rint(rgb * (alpha[..., None] / 255.0))
    levels = (grey.astype(np.uint16) << 8) | 0x5A
    palette = Image.fromarray(rgb).quantize(16)
    cmyk = np.concatenate([255 - rgb, np.full((64, 96, 1), 40, np.uint8)], axis=2)
    from_cmyk = rgb * ((255 - 40) / 255.0)
    bits = Image.fromarray((grey > 128).astype(np.uint8) * 255).convert("1")
    keyed = rgb.copy()
    keyed[:10] = 200
    unkeyed = keyed.copy()
    unkeyed[:10] = 0
    cases = {
        "grey PNG": (encode(grey), _three(grey)),
        "grey JPEG": (encode(grey, "JPEG", quality=98), _three(grey)),
        "16 bit PNG": (encode(levels), _three(grey)),
        "16 bit TIFF": (encode(levels, "TIFF"), _three(grey)),
        "16 bit TIFF, big end first": (_big_endian_tiff(levels), _three(grey)),
        "palette": (encode(palette), np.asarray(palette.convert("RGB"))),
        "palette BMP": (encode(palette, "BMP"), np.asarray(palette.convert("RGB"))),
        "palette, one colour seen through": (encode(palette, transparency=0), _without(palette, 0)),
        "alpha PNG": (encode(np.dstack([rgb, alpha])), over_black),
        "alpha WEBP": (encode(np.dstack([rgb, alpha]), "WEBP"), over_black),
        "alpha TIFF": (encode(np.dstack([rgb, alpha]), "TIFF"), over_black),
        "grey with alpha": (
            encode(_with_alpha(grey, alpha)),
            np.rint(_three(grey) * (alpha[..., None] / 255.0)),
        ),
        "one colour seen through": (encode(keyed, transparency=(200, 200, 200)), unkeyed),
        "CMYK TIFF": (encode(Image.fromarray(cmyk, "CMYK"), "TIFF"), from_cmyk),
        "CMYK JPEG": (encode(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=98), from_cmyk),
        "black and white": (encode(bits), _three((grey > 128).astype(np.uint8) * 255)),
        "progressive JPEG": (encode(rgb, "JPEG", quality=98, subsampling="4:4:4", progressive=True), rgb),
        "LZW TIFF": (encode(rgb, "TIFF", compression="tiff_lzw"), rgb),
    }
    for name, (data, wanted) in cases.items():
        difference = np.abs(read(data).astype(float) - wanted)
        assert difference.max() <= (1 if "JPEG" not in name else 30), name
        assert difference.mean() < (0.6 if "JPEG" not in name else 2), name


def _three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def _with_alpha(grey: np.ndarray, alpha: np.ndarray) -> Image.Image:
    image = Image.fromarray(grey)
    image.putalpha(Image.fromarray(alpha))
    return image


def _without(palette: Image.Image, index: int) -> np.ndarray:
    colours = np.array(palette.convert("RGB"))
    colours[np.asarray(palette) == index] = 0
    return colours


def _big_endian_tiff(levels: np.ndarray) -> bytes:
    """By the TIFF 6.0 specification: a header, the rows, one directory of ten tags."""
    height, width = levels.shape
    rows = levels.astype(">u2").tobytes()
    tags = {
        256: width,
        257: height,
        258: 16,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: height,
        279: len(rows),
        339: 1,
    }
    directory = len(tags).to_bytes(2, "big")
    for tag, value in tags.items():
        directory += tag.to_bytes(2, "big") + (4).to_bytes(2, "big") + (1).to_bytes(4, "big")
        directory += value.to_bytes(4, "big")
    return b"MM\0*" + (8 + len(rows)).to_bytes(4, "big") + rows + directory + bytes(4)


@pytest.mark.parametrize("size", [(48, 32), (30, 64), (200, 150), (96, 64)])
def test_pictures_are_scaled_as_frames_are(size: tuple[int, int]) -> None:
    with PictureDecoder(encode(draw()), size) as picture:
        assert (picture.width, picture.height) == size
        found = picture.frames([0])[0].astype(int)
        np.testing.assert_array_equal(found, picture.frames([0], size)[0])
        assert picture.frames([0], (96, 64)).shape == (1, 64, 96, 3)
    if size == (48, 32):
        blocks = draw().reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
        assert np.abs(found - blocks).max() <= 2
    assert found.shape == (size[1], size[0], 3)


def test_of_pages_and_pictures_behind_it_the_first_counts() -> None:
    pages = {"save_all": True, "append_images": [Image.fromarray(draw(9))]}
    np.testing.assert_array_equal(read(encode(draw(), "TIFF", **pages)), draw())
    assert np.abs(read(encode(draw(), "MPO", quality=95, **pages)).astype(int) - draw()).mean() < 2
    for kind in ("PNG", "WEBP"):
        with pytest.raises(DataError, match="an animation of 2 frames"):
            PictureDecoder(encode(draw(), kind, **pages))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"\xff\xd8\xff", "JPEG picture, and its header is damaged"),
        (b"\xff\xd8\xff\xe0" + bytes(500), "JPEG picture"),
        (
            b"just some text, named .jpg\n" * 20,
            "no picture is recognised.*JPEG, PNG, WEBP, BMP and TIFF are read",
        ),
        (b"<!DOCTYPE html><html>404</html>" * 5, "an HTML page, not a picture"),
        (b"GIF89a" + bytes(100), "it is a GIF picture; JPEG"),
        (b"\0\0\0\x20ftypavif" + bytes(100), "a HEIC or AVIF picture"),
        (b"\0\0\0\x18ftypisom" + bytes(100), "no picture is recognised"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n" * 10, "no picture is recognised"),
        (bytes(1000), "no picture is recognised"),
        (png_that_claims(50_000, 50_000), "claims more pixels than are read"),
        (png_that_claims(4000, 100), "one more than 32 times the other"),
        (encode(np.zeros((8, 8), np.float32), "TIFF"), "numbers of 32 bits"),
        (encode(np.zeros((8, 8), np.int32), "TIFF"), "numbers of 32 bits"),
        (encode(Image.new("LAB", (8, 8)), "TIFF"), "Lab colours"),
    ],
)
def test_each_bad_picture_has_a_true_reason(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(data)
    for source in (data, tmp_path / "bad.jpg"):
        with pytest.raises(DataError, match=reason):
            PictureDecoder(source)


@pytest.mark.parametrize("kind", [*KINDS, "TIFF in LZW"])
def test_a_picture_cut_short_is_an_error(kind: str) -> None:
    data = encode(draw(), "TIFF", compression="tiff_lzw") if "LZW" in kind else encode(draw(), kind)
    for share in (0.1, 0.3, 0.5, 0.8, 0.95):
        with pytest.raises(DataError, match="cut short"):
            PictureDecoder(data[: int(share * len(data))])


@pytest.mark.parametrize("kind", [*KINDS, "MPO"])
def test_whatever_is_flipped_it_is_a_picture_or_an_error(kind: str) -> None:
    rng = np.random.default_rng(0)
    plain = np.frombuffer(encode(draw(0, 48, 32), kind), np.uint8)
    num_errors = 0
    for number in range(400):
        spoiled = plain.copy()
        places = rng.integers(0, len(spoiled) if number % 2 else 120, rng.integers(1, 6))
        spoiled[places] = rng.integers(0, 256, len(places))
        try:
            with PictureDecoder(spoiled.tobytes()) as picture:
                assert picture.frames([0], (16, 16)).shape == (1, 16, 16, 3)
        except (DataError, MemoryError):
            num_errors += 1
    assert num_errors


def test_facts_are_of_one_frame(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", stored(draw(), 6), quality=90, exif=with_orientation(6))
    facts = inspect_picture(path, 0.125)
    assert (facts.container, facts.codec, facts.pixel_format) == ("picture", "jpeg", "RGB")
    assert (facts.width, facts.height, facts.rotation) == (96, 64, 270)
    assert (facts.num_frames, facts.duration_s, facts.average_fps, facts.is_vfr) == (1, 0.125, 0.0, False)


def test_first_bytes_tell_a_picture_and_take_no_video_for_one(videos: Path) -> None:
    assert [picture_format(encode(draw(), kind)) for kind in KINDS] == list(KINDS)
    for path in videos.glob("*.mp4"):
        assert picture_format(path.read_bytes()[:512]) == ""
    for head in (b"", b"BM", b"BMX stands for bicycle motocross", b"RIFF1234AVI LIST", b"RIFF1234WAVE"):
        assert picture_format(head) == ""
