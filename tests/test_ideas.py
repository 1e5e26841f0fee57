"""docs/ideas.md names files, functions and settings that are there, in both languages the same."""

from __future__ import annotations

import ast
import json
import re
from typing import get_args

import pytest

from benchmarks.experiments import refusal
from benchmarks.measuring import RESULTS
from benchmarks.tables import ROOT
from data_pipeline.worlds import World
from launch.experiment.command import shipped_experiments
from pretrain.config.base import Section

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
    tried = [set(re.findall(r"`(\w+)`", row.rstrip("| ").rpartition("|")[2])) for row in terms()]
    assert len(tried) > 10 and all(tried)
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


def terms() -> list[str]:
    text = (ROOT / PAGES[0]).read_text().partition("\n## ")[2].partition("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("| ")][1:]


def test_functions_that_are_named_are_in_the_files_that_are_named() -> None:
    named = [found for row in terms() for found in re.findall(r"`([\w.]+)` in \[[^\]]*\]\(([^)]+)\)", row)]
    assert {name for name, _ in named} == {"Objective.targets", "Objective.wanted", "l1_of", "normed"}
    for name, file in named:
        holder, _, function = name.rpartition(".")
        tree = ast.parse((ROOT / "docs" / file).read_text())
        classes = {each.name: each.body for each in tree.body if isinstance(each, ast.ClassDef)}
        body = classes[holder] if holder else tree.body
        assert function in [each.name for each in body if isinstance(each, ast.FunctionDef)], name


def test_settings_that_are_named_are_there() -> None:
    sections = [Section]
    for each in sections:
        sections += each.__subclasses__()
    fields = {name: field for each in sections for name, field in each.model_fields.items()}
    kinds = {
        kind
        for each in sections
        if "kind" in each.model_fields
        for kind in get_args(each.model_fields["kind"].annotation)
    }
    keys = [key for row in terms() for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:: \w+)?`", row)]
    assert len(keys) > 5
    assert [key for key in keys if not set(key.split(".")) <= set(fields)] == []
    named = [kind for row in terms() for kind in re.findall(r"`[a-z_]+\.kind: (\w+)`", row)]
    assert len(named) > 3 and set(named) <= kinds
    of_worlds = [name for row in terms() for name in re.findall(r"`(\w+)` of a world", row)]
    assert set(of_worlds) == {"leaves", "walls"} <= set(World.model_fields)
