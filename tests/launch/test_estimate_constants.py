"""No figure of an estimate is without a source."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from typer.testing import CliRunner

import launch.estimate
from launch.cli import app
from launch.estimate.constants import constants

ROOT = Path(__file__).parents[2]
# what has no value of its own: the share of a unit, sizes of the clips that were measured, ends of a table
OTHERS = {"DAY_S", "SECONDS", "SIZE", "ENCODING", "MOST_GPUS", "NODE_GPUS", "PARTS", "MOMENTS", "Strategy",
          "LOADER", "DOCTOR", "From", "MANY_CLIPS", "MOST"}  # fmt: skip


def test_every_constant_of_the_estimate_has_an_origin_and_a_source() -> None:
    """Read out of the source: a new module constant fails until it is in the table."""
    found = set()
    for file in Path(str(launch.estimate.__file__)).parent.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    told = {name for each in constants() for name in each.names}
    assert len(found - OTHERS) > 10 and found - OTHERS == told
    assert all(each.value and each.source for each in constants())


def test_what_is_said_to_be_measured_names_a_file_that_is_there() -> None:
    measured = [each for each in constants() if each.origin == "measured"]
    assert measured
    for each in measured:
        (file,) = re.findall(r"(?:benchmarks/results|docs/decisions)/[\w.-]+", each.source)
        assert (ROOT / file).exists(), each.what


def test_the_command_explains_what_it_was_asked_of() -> None:
    given = ["estimate", "configs/train/vjepa2-vitl16.yaml", "--explain"]
    printed = CliRunner().invoke(app, given).output
    assert "of a link's rate that a collective gets: 80 %\n      not measured: assumed" in printed
    assert "h100: to other nodes: 50 GB/s  [--network]" in printed and "h200:" not in printed
    assert max(map(len, printed.splitlines())) <= 100
    told = json.loads(CliRunner().invoke(app, [*given, "--json"]).output)["constants"]
    assert {each["origin"] for each in told} == {"measured", "published", "maker's", "not measured"}
