"""What is asked of a sweep in ways that go wrong: repeated keys, values that are none, remarks, nesting."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_pipeline.errors import ConfigError
from launch.cli import app
from launch.sweep.axes import read_axes, read_list


def rows_of(path: Path, text: str | bytes) -> list[dict[str, str]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [dict(row) for row in read_list(path)]


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("seed=0 # the first", {"seed": "0"}),
        ("seed=0 # don't", {"seed": "0"}),
        ("seed=0 #don't", {"seed": "0"}),
        ("data.shards=a#b seed=1", {"data.shards": "a#b", "seed": "1"}),
        ("'data.shards=a #b' seed=1 # c", {"data.shards": "a #b", "seed": "1"}),
    ],
)
def test_a_remark_ends_a_line(line: str, row: dict[str, str], tmp_path: Path) -> None:
    assert rows_of(tmp_path / "l.txt", line) == [row]


def test_a_mark_of_the_bytes_order_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "l.txt", b"\xef\xbb\xbfseed=1\n") == [{"seed": "1"}]
    assert rows_of(tmp_path / "l.jsonl", b'\xef\xbb\xbf{"seed": 1}') == [{"seed": "1"}]
    assert rows_of(tmp_path / "l.yaml", b"\xef\xbb\xbf- seed: 1\n") == [{"seed": "1"}]


def test_a_section_in_a_list_sets_its_keys_and_no_other(tmp_path: Path) -> None:
    wanted = [{"optim.lr": "0.001", "model.encoder.depth": "2", "augment.crop_scale": "[0.5, 1]"}]
    text = '{"optim": {"lr": 1e-3}, "model": {"encoder": {"depth": 2}}, "augment.crop_scale": [0.5, 1]}'
    assert rows_of(tmp_path / "l.jsonl", text) == wanted
    assert rows_of(tmp_path / "l.yaml", f"- {text}") == wanted


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.jsonl", '{"seed": 0, "seed": 1}', "each key once: 'seed'"),
        ("l.jsonl", '{"optim": {"lr": 1, "lr": 2}}', "each key once: 'lr'"),
        ("l.yaml", "- seed: 0\n  seed: 1\n", "each key once"),
        ("l.yaml", "- optim: {lr: 1, lr: 2}\n", "each key once"),
        ("l.yaml", "- {seed: !!binary aGFsbG8=}\n", "texts, numbers, lists and sections"),
        ("l.yaml", "- {seed: !!set {a, b}}\n", "texts, numbers, lists and sections"),
        ("l.yaml", "- {seed: .nan}\n", "texts, numbers, lists and sections"),
        ("l.jsonl", "[" * 100_000, "nested too deeply"),
        ("l.jsonl", '{"a": ' * 100_000, "nested too deeply"),
        ("l.yaml", "[" * 3_000, "nested too deeply"),
    ],
)
def test_what_a_list_cannot_mean_is_a_sentence(name: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        rows_of(tmp_path / name, text)


def test_a_key_may_not_be_set_in_a_section_and_dotted(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text('{"optim": {"lr": 1}, "optim.lr": 2}')
    with pytest.raises(ConfigError, match="to be set once"):
        read_axes([], tmp_path / "l.jsonl")


def test_where_runs_are_told_of_is_no_axis() -> None:
    with pytest.raises(ConfigError, match=r"tracker\.group: need no axis: it says where runs are told of"):
        read_axes(["tracker.group=a,b"])
    assert read_axes(["tracker.group=a"]).fixed == ("tracker.group=a",)


def test_too_many_ranks_are_told_by_the_option_that_was_typed() -> None:
    done = CliRunner().invoke(app, ["sweep", "c.yaml", "seed=0,1", "--nproc", "5000"])
    assert done.exit_code == 2
    assert "--nproc" in done.output
    assert "ranks_per_node" not in done.output
