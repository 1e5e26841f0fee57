"""The numbers in the README are those of the results files."""

from __future__ import annotations

from benchmarks.tables import ROOT, demo_table, drawn


def test_the_readme_shows_the_results_file() -> None:
    readme = (ROOT / "README.md").read_text()
    assert demo_table() in readme, "draw it with `python -m benchmarks.tables`"
    assert drawn(readme) == readme
