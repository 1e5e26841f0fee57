"""docs/ideas.md names files, functions and settings that are there, in both languages the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.experiments import refusal
from benchmarks.measuring import RESULTS
from benchmarks.tables import ROOT
from launch.experiment.command import shipped_experiments

PAGES = ("docs/ideas.md", "docs/ideas.zh.md")
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)\)")


@pytest.mark.parametrize("name", PAGES)
def test_every_file_that_is_named_is_there(name: str) -> None:
    page = ROOT / name
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert len(links) > 10
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_both_languages_name_the_same_files_functions_and_tables() -> None:
    def named(name: str) -> tuple[list[str], list[str]]:
        text = (ROOT / name).read_text()
        marks = re.findall(r"<!-- table: (\w+) -->", text)
        terms = text.partition("\n## ")[2].partition("\n## ")[0]
        return [*sorted(LINK.findall(terms)), *sorted(re.findall(r"`([^`]+)`", terms))], marks

    assert named(PAGES[0]) == named(PAGES[1])


def test_a_term_is_tied_to_an_experiment_that_is_shipped() -> None:
    terms = (ROOT / PAGES[0]).read_text().partition("\n## ")[2].partition("\n## ")[0]
    rows = [line for line in terms.splitlines() if line.startswith("| ")][1:]
    tried = [set(re.findall(r"`(\w+)`", row.rstrip("| ").rpartition("|")[2])) for row in rows]
    assert len(rows) > 10 and all(tried)
    assert set().union(*tried) <= set(shipped_experiments())


def test_every_experiment_is_on_the_page() -> None:
    text = (ROOT / PAGES[0]).read_text()
    assert [name for name in shipped_experiments() if f"<!-- table: experiment_{name} -->" not in text] == []


@pytest.mark.parametrize("name", shipped_experiments())
def test_what_is_kept_of_an_experiment_is_of_its_settings(name: str) -> None:
    path = RESULTS / f"experiment_{name}.json"
    if not path.exists():
        pytest.skip(f"{name} was not measured yet")
    found = json.loads(path.read_text())
    assert refusal(found) is None
    assert "laid_over" in found, "which configs it rests on is kept"


@pytest.mark.parametrize("file", ["objective/base.py", "config/training.py"])
def test_functions_and_settings_that_are_named_are_there(file: str) -> None:
    source = Path(ROOT, "pretrain", file).read_text()
    wanted = {
        "objective/base.py": ["def targets(", "def wanted(", "def normed(", "def l1_of("],
        "config/training.py": ["stop_gradient:", "momentum:", '"ema", "online", "frozen"'],
    }[file]
    assert [each for each in wanted if each not in source] == []
