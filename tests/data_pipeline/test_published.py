"""Published files of labels, in their shapes, become lists that the list source reads."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_pipeline.errors import DataError, UsageError
from data_pipeline.published import convert
from data_pipeline.sources.lists import match_lists
from launch.cli import app

KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
abseiling,--abc_def12,12,22,train,0
"playing chess, slowly",xyz98765432,3,13,val,1
tai chi,gone5678901,0,10,train,0
,testtest123,0,10,test,0
zumba,-bareidonly,5,15,train,0
"""


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    names = (
        "abseiling/--abc_def12_000012_000022.mp4",
        "playing chess/xyz98765432_000003_000013.mkv",
        "-bareidonly.mp4",
        "78687.webm",
        "42326.webm",
        "notes.txt",
        "0FD8r7FnnZY_00007.mp4",
        "twice/7.mp4",
        "again/7.mp4",
    )
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"video")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def told(text: str, tmp_path: Path) -> Path:
    path = tmp_path / "labels.file"
    path.write_text(text)
    return path


def test_kinetics_names_files_by_id_and_times(videos: Path, tmp_path: Path) -> None:
    found = convert(told(KINETICS, tmp_path), tmp_path / "list.csv", "kinetics", videos)
    assert [list(row.values()) for row in rows_of(tmp_path / "list.csv")] == [
        ["abseiling/--abc_def12_000012_000022.mp4", "abseiling", "train", "", ""],
        ["playing chess/xyz98765432_000003_000013.mkv", "playing chess, slowly", "eval", "", ""],
        ["-bareidonly.mp4", "zumba", "train", "", ""],
    ]
    assert (found.num_lines, found.num_labels) == (3, 3)
    assert found.missing == ("gone5678901_000000_000010",)
    assert found.passed == ("line 5: it has no label",)


def test_kinetics_times_are_cut_out_of_whole_videos_when_asked(videos: Path, tmp_path: Path) -> None:
    convert(told(KINETICS, tmp_path), tmp_path / "list.csv", "kinetics", videos, is_untrimmed=True)
    spans = [(row["start_s"], row["end_s"]) for row in rows_of(tmp_path / "list.csv")]
    assert spans == [("", ""), ("", ""), ("5.0", "15.0")]


def test_lines_of_a_path_and_a_label(videos: Path, tmp_path: Path) -> None:
    text = "/data/k400/78687.webm 3\nplaying chess/xyz98765432_000003_000013.mkv 12\n\nlonely\n"
    found = convert(told(text, tmp_path), tmp_path / "list.csv", "paths", videos, split="eval")
    rows = [(row["uri"], row["label"], row["split"]) for row in rows_of(tmp_path / "list.csv")]
    assert rows == [
        ("78687.webm", "3", "eval"),
        ("playing chess/xyz98765432_000003_000013.mkv", "12", "eval"),
    ]
    assert found.passed == ("line 4: it is not a path, a space and a label",)


def test_something_something_takes_the_template_without_brackets(videos: Path, tmp_path: Path) -> None:
    first = {"id": "78687", "label": "holding potato next to vicks", "placeholders": ["potato", "vicks"]}
    first["template"] = "Holding [something] next to [something]"
    second = {"id": "42326", "template": "Bending [something] so that it deforms"}
    text = json.dumps([first, second, {"id": "1"}])
    names = tmp_path / "labels.json"
    names.write_text(json.dumps({"Holding something next to something": "41"}))
    found = convert(told(text, tmp_path), tmp_path / "list.csv", "ssv2", videos, names=names, split="train")
    assert [(row["uri"], row["label"]) for row in rows_of(tmp_path / "list.csv")] == [
        ("78687.webm", "Holding something next to something")
    ]
    assert found.passed == (
        "line 2: 'Bending something so that it deforms' is not among the labels",
        "line 3: it has no template, so no label",
    )


def test_diving48_labels_are_numbers_or_the_words_of_its_vocabulary(videos: Path, tmp_path: Path) -> None:
    video = {"vid_name": "0FD8r7FnnZY_00007", "label": 1, "start_frame": 0, "end_frame": 154}
    source = told(json.dumps([video, {**video, "label": 9}]), tmp_path)
    convert(source, tmp_path / "list.csv", "diving48", videos)
    assert rows_of(tmp_path / "list.csv")[0]["label"] == "1"
    names = tmp_path / "vocab.json"
    names.write_text(json.dumps([["Back", "15som", "05Twis", "FREE"], ["Forward", "Dive", "NoTwis", "PIKE"]]))
    found = convert(source, tmp_path / "list.csv", "diving48", videos, names=names)
    assert [row["label"] for row in rows_of(tmp_path / "list.csv")] == ["Forward Dive NoTwis PIKE"]
    assert found.passed == ("line 2: its label 9 is not among the 2 of the vocabulary",)


def test_what_is_written_is_a_list_as_the_sources_read_it(videos: Path, tmp_path: Path) -> None:
    convert(told(KINETICS, tmp_path), tmp_path / "list.csv", "kinetics", videos)
    files, ignored = match_lists([str(tmp_path / "list.csv")], str(videos))
    assert ignored == []
    spans = {file.spans[0].label: file.spans[0].split for file in files}
    assert spans == {"abseiling": "train", "playing chess, slowly": "eval", "zumba": "train"}


def test_two_files_of_one_name_are_not_guessed_between(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"again/7.mp4 and twice/7.mp4 have its name"):
        convert(told("7.mp4 3\n", tmp_path), tmp_path / "list.csv", "paths", videos)
    assert not (tmp_path / "list.csv").exists()


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ("kinetics", "a,b\n1,2\n"),
        ("kinetics", "label,youtube_id,time_start,time_end\nx,y,zero,ten\n"),
        ("ssv2", "{}"),
        ("ssv2", "[1]"),
        ("diving48", '[{"vid_name": "a"}]'),
        ("diving48", "no json"),
    ],
)
def test_a_file_of_another_layout_is_a_sentence(videos: Path, tmp_path: Path, layout: str, text: str) -> None:
    with pytest.raises(DataError, match=f"is no file of labels as {layout} publishes them"):
        convert(told(text, tmp_path), tmp_path / "list.csv", layout, videos)


KINETICS_HEAD = "label,youtube_id,time_start,time_end\n\nfine,a,0,10\n"
DIVE = '{"vid_name": "a", "label": 1}'


@pytest.mark.parametrize(
    ("layout", "text", "where"),
    [
        ("kinetics", KINETICS_HEAD + "x,y,inf,10\n", "at line 4: 'inf' is no time"),
        ("kinetics", KINETICS_HEAD + "x,y,0\n", "at line 4: None is no time"),
        ("kinetics", KINETICS_HEAD + "x,y,10,10\n", "at line 4: it is from 10 to 10 s"),
        ("kinetics", KINETICS_HEAD + "x,y,-5,10\n", "at line 4: it is from -5 to 10 s"),
        ("kinetics", KINETICS_HEAD + "x\0,y,0,10\n", "at line 4: its label is 'x.x00'"),
        ("kinetics", KINETICS_HEAD + "x" * 200_000 + ",y,0,10\n", "at line 4: field larger"),
        ("paths", "a.mp4 3\nb.mp4 3\0\n", "at line 2: its label is '3.x00'"),
        ("ssv2", "[" * 20_000, ": maximum recursion"),
        ("ssv2", '[{"id": "a", "template": "x"}, 7]', "at entry 2: 7 is no object"),
        ("ssv2", '[{"id": "a", "template": "x\\u0000"}]', "at entry 1: its label is"),
        ("ssv2", '[{"id": "a", "template": "x\\ud800"}]', "at entry 1: its label is"),
        ("ssv2", '[{"id": {}, "template": "x"}]', "at entry 1: its id is"),
        ("diving48", f'[{DIVE}, {{"vid_name": "a", "label": Infinity}}]', "at entry 2: its label is 'inf'"),
        ("diving48", f'[{DIVE}, {{"vid_name": "a", "label": 1e400}}]', "at entry 2: its label is 'inf'"),
        ("diving48", f'[{{"vid_name": "a", "label": {"9" * 400}}}]', "at entry 1: its label is '999"),
        ("diving48", f'[{DIVE}, {{"label": 1}}]', "at entry 2: its vid_name is 'None'"),
    ],
)
def test_a_wrong_entry_is_named_with_its_place(
    layout: str, text: str, where: str, videos: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"labels\.file is no file of labels as {layout} .*{where}"):
        convert(told(text, tmp_path), tmp_path / "list.csv", layout, videos)


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("ssv2", '["x"]'),
        ("ssv2", "[" * 20_000),
        ("ssv2", "x"),
        ("diving48", '{"0": "x"}'),
        ("diving48", '[["Back"], 7]'),
        ("diving48", '[["Back"], [7]]'),
        ("diving48", '[["Back"], []]'),
    ],
)
def test_names_of_another_content_are_named(layout: str, names: str, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(names)
    text = '[{"id": "78687", "template": "x", "vid_name": "78687", "label": 0}]'
    with pytest.raises(DataError, match=r"names\.json(, label \d: | holds no names)"):
        convert(told(text, tmp_path), tmp_path / "l.csv", layout, videos, names=tmp_path / "names.json")


def test_a_list_is_never_written_over_what_it_is_made_from(videos: Path, tmp_path: Path) -> None:
    source = told("78687.webm 3\n", tmp_path)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    for out in (source, tmp_path / "videos" / ".." / source.name, tmp_path / "link", tmp_path / "hard"):
        with pytest.raises(UsageError, match="name another file"):
            convert(source, out, "paths", videos)
    names = tmp_path / "names.json"
    names.write_text("{}")
    with pytest.raises(UsageError, match="name another file"):
        convert(source, names, "paths", videos, names=names)
    assert (source.read_text(), names.read_text()) == ("78687.webm 3\n", "{}")


def test_the_command_says_what_is_missing_and_what_comes_next(videos: Path, tmp_path: Path) -> None:
    given = [str(told(KINETICS, tmp_path)), str(tmp_path / "list.csv"), "--videos", str(videos)]
    done = CliRunner().invoke(app, ["labels", *given, "--format", "kinetics"])
    assert done.exit_code == 0
    assert "3 videos of 3 labels" in done.output
    assert "1 listed videos are not below" in done.output
    assert f"root={videos}" in done.output
    refused = CliRunner().invoke(app, ["labels", *given, "--format", "imagenet"])
    assert isinstance(refused.exception, UsageError)
    assert "need kinetics, paths, ssv2, diving48" in str(refused.exception)
