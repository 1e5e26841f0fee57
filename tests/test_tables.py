"""The numbers in the pages are those of the results files."""

from __future__ import annotations

import pytest

from benchmarks.tables import PAGES, ROOT, TABLES, demo_table, drawn


def test_the_readme_shows_the_results_file() -> None:
    readme = (ROOT / "README.md").read_text()
    assert demo_table() in readme, "draw it with `python -m benchmarks.tables`"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_its_tables_are_drawn(name: str) -> None:
    page = ROOT / name
    if not page.exists():
        pytest.skip(f"there is no {name}")
    text = page.read_text()
    assert drawn(text) == text, "draw it with `python -m benchmarks.tables`"


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_drawn_between_its_marks(name: str) -> None:
    if not (ROOT / "benchmarks" / "results" / f"{name}.json").exists():
        pytest.skip(f"{name} was not measured yet")
    text = drawn(f"before\n<!-- table: {name} -->\nold\n<!-- end -->\nafter\n")
    assert "\nold\n" not in text
    assert TABLES[name]() in text
    assert drawn(text) == text
