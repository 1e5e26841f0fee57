"""The gallery shows what is there, and stays small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.gallery import PAGE, PICTURES, on_white


def test_the_gallery_names_every_picture_that_lies_beside_it_in_words() -> None:
    named = re.findall(r"!\[([^\]]*)\]\(gallery/([^)]+)\)", PAGE.read_text(encoding="utf-8"))
    assert sorted(name for _, name in named) == sorted(path.name for path in PICTURES.iterdir())
    assert all(len(words) > 10 for words, _ in named)


def test_the_gallery_is_small() -> None:
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < 1_500_000


@pytest.mark.parametrize("head", ['<?xml version="1.0"?>\n<svg width="9">', "<svg>"])
def test_a_figure_gets_its_ground_before_all_else(tmp_path: Path, head: str) -> None:
    path = tmp_path / "a.svg"
    path.write_text(f"{head}<g/></svg>")
    on_white(path)
    assert path.read_text() == f'{head}<rect width="100%" height="100%" fill="#fff"/><g/></svg>'
