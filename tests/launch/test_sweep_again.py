"""Sweeps that find something in their folder: another experiment, what runs, what cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Literal

import pytest
from typer.testing import CliRunner

from data_pipeline.errors import UsageError
from launch.cli import app
from launch.config import dump_config
from launch.lock import LOCK_FILE, lock_run
from launch.sweep import local
from launch.sweep.elements import LOCK, Element, Sweep, digest_of, held, not_default
from launch.sweep.local import command_of, run_here
from launch.sweep.record import SWEEP_FILE, free_number
from pretrain.config import DataConfig
from pretrain.config.base import Section
from pretrain.config.masks import BlockMaskConfig
from tests.launch.sweeps import run, small_config, starts, swept, training  # noqa: F401  fixtures
from tests.pretrain.small_objective import KINDS, config_of

HOLDER = """
import fcntl, json, os, pathlib, socket, sys, time
run = pathlib.Path(sys.argv[1])
lock = (run / ".lock").open("a+")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write(f"{os.getpid()} {socket.gethostname()}")
lock.flush()
print("held", flush=True)
deadline_s = time.monotonic() + 60
while not (run / "go").exists() and time.monotonic() < deadline_s:
    time.sleep(0.01)
result = {"run": str(run), "step": 10, "loss": 1.0, "clips_per_s": 1.0, "seconds": 1.0, "stopped": None}
(run / "result.json").write_text(json.dumps(result))
"""


def noted(*axes: str) -> Sweep:
    """A sweep that an earlier command has noted in its folder."""
    with held(swept("c.yaml", *axes)) as found:
        return found


def begin(element: Element) -> None:
    element.run.mkdir(parents=True)
    (element.run / "config.yaml").write_text(dump_config(element.config))


def begin_elsewhere(element: Element, ago_s: float) -> None:
    """As a run on another machine leaves its folder while it trains, or after that machine was lost."""
    begin(element)
    (element.run / LOCK_FILE).write_text("4711 another-host")
    (element.run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    for name in (LOCK_FILE, "metrics.jsonl"):
        os.utime(element.run / name, (time.time() - ago_s,) * 2)


def test_runs_of_another_experiment_are_not_taken_for_the_elements(base: str, stand_in: None) -> None:
    before = swept(base, "seed=0,1", "train.steps=4")
    assert run(before)[0] == 0
    (before.folder / SWEEP_FILE).unlink()
    after = swept(base, "seed=0,1", "train.steps=6")
    assert [each.name for each in after.elements] == ["002-seed-0", "003-seed-1"]
    code, said = run(after)
    assert (code, starts(after)) == (0, [1, 1])
    assert not any("finished before" in line for line in said)


def test_a_folder_with_another_run_is_refused_before_anything_starts(base: str, stand_in: None) -> None:
    found = noted("seed=0,1")
    begin(found.elements[1])
    other = found.elements[1].config.model_copy(update={"seed": 9})
    (found.elements[1].run / "config.yaml").write_text(dump_config(other))
    with pytest.raises(UsageError, match=r"another run \(seed 9 there, 1 here\): choose another --name"):
        run(found)
    assert starts(found) == [0, 0]
    (found.elements[1].run / "config.yaml").write_text("nonsense: 1\n")
    with pytest.raises(UsageError, match="choose another --name"):
        run(found)


def test_a_run_that_went_on_with_fewer_threads_is_still_its_element(base: str, stand_in: None) -> None:
    found = swept(base, "seed=0,1")
    run(found)
    config = found.elements[0].config
    threads = config.model_copy(update={"train": config.train.model_copy(update={"threads": 1})})
    (found.elements[0].run / "config.yaml").write_text(dump_config(threads))
    code, said = run(found)
    assert (code, starts(found)) == (0, [1, 1])
    assert sum("finished before" in line for line in said) == 2


def test_elements_are_named_under_the_lock(base: str, stand_in: None) -> None:
    one, two = swept(base, "optim.lr=0.1,0.2"), swept(base, "optim.lr=0.3,0.4")
    assert [each.name[:3] for each in (*one.elements, *two.elements)] == ["000", "001"] * 2
    run(one)
    code, named = run_here(two, nproc=1, parallel=1, env={}, say=lambda _: None)
    assert (code, starts(named)) == (0, [1, 1])
    assert [each.name for each in named.elements] == ["002-lr-0.3", "003-lr-0.4"]
    noted = json.loads((one.folder / SWEEP_FILE).read_text())["elements"]
    assert [each["name"][:3] for each in noted] == ["000", "001", "002", "003"]


def test_a_sweep_that_is_refused_writes_nothing(base: str, stand_in: None) -> None:
    found = swept(base, "seed=0,1")
    found.folder.mkdir(parents=True)
    with lock_run(found.folder, LOCK, "swept"), pytest.raises(UsageError, match="being swept"):
        run(found)
    assert [path.name for path in found.folder.iterdir()] == [LOCK]


def test_numbers_are_above_all_that_lies_there(tmp_path: Path) -> None:
    for name in ("004-seed-1", "notes", "7"):
        (tmp_path / name).mkdir()
    assert free_number(tmp_path, ["002-x"]) == 5
    assert free_number(tmp_path, ["²-x", "٣-x", "011-x"]) == 12
    assert free_number(tmp_path / "away", []) == 0


def test_an_element_lost_with_its_machine_is_run_again(base: str, stand_in: None) -> None:
    found = noted("seed=0,1")
    begin_elsewhere(found.elements[0], ago_s=3600)
    code, said = run(found)
    assert any("silent" in line and "another-host" in line and "run again" in line for line in said)
    assert (code, starts(found)) == (0, [1, 1])


def test_a_sweep_is_not_done_while_an_element_runs_elsewhere(base: str, stand_in: None) -> None:
    found = noted("seed=0,1")
    begin_elsewhere(found.elements[0], ago_s=1)
    code, said = run(found)
    assert any("running already on another-host, left alone" in line for line in said)
    assert (code, starts(found)) == (75, [0, 1])


@pytest.mark.parametrize("parallel", [1, 2])
def test_what_a_killed_sweep_left_running_counts_and_keeps_its_gpu(
    parallel: int, base: str, stand_in: None
) -> None:
    found = noted("seed=0,1,2")
    first = found.elements[0].run
    begin(found.elements[0])
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "4"}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(first)], env=env, stdout=subprocess.PIPE, text=True
    )
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if parallel == 2 and "002-seed-2  finished in" in line:
            (first / "go").touch()

    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        if parallel == 1:
            threading.Timer(0.3, (first / "go").touch).start()
        env = {"CUDA_VISIBLE_DEVICES": "4,5"}
        code, _ = run_here(found, nproc=1, parallel=parallel, env=env, say=say)
    finally:
        holder.kill()
        holder.wait()
    assert (code, starts(found)) == (0, [0, 1, 1])
    words = [" ".join(line.split()[2:4]) for line in said]
    if parallel == 1:
        assert words.index("000-seed-0 finished") < words.index("001-seed-1 started,")
    else:
        assert words.index("001-seed-1 finished") < words.index("002-seed-2 started,")
        gpus = [(each.run / "starts").read_text().strip() for each in found.elements[1:]]
        assert gpus == ["5", "5"]


def test_elements_are_run_by_the_interpreter_of_the_place(
    base: str, stand_in: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["sweep", base, "seed=0,1", "--name", "grid", "--no-data-check", "--with"]
    away = CliRunner().invoke(app, [*words, "python=/nonexistent/python"])
    assert isinstance(away.exception, UsageError)
    assert "/nonexistent/python" in str(away.exception)
    assert not Path("runs").exists()
    own = tmp_path / "own-python"
    own.symlink_to(sys.executable)
    used, before = [], local.command_of

    def command(config: Path, nproc: int, python: str) -> list[str]:
        used.append(python)
        return before(config, nproc, python)

    monkeypatch.setattr(local, "command_of", command)
    done = CliRunner().invoke(app, [*words, f"python={own}"])
    assert (done.exit_code, used) == (0, [str(own)] * 2)
    assert command_of(Path("c.yaml"), 2, str(own))[:3] == [str(own), "-m", "launch"]


def test_as_many_at_a_time_as_one_likes(base: str, stand_in: None) -> None:
    found = swept(base, "seed=0,1")
    assert run(found, parallel=10**11, env={"CUDA_VISIBLE_DEVICES": ""})[0] == 0


def test_a_folder_that_cannot_be_made_is_a_sentence(base: str, stand_in: None) -> None:
    found = swept(base, "seed=0,1")
    found.folder.mkdir(parents=True)
    (found.folder / "configs").write_text("")
    with pytest.raises(UsageError, match="configs cannot be made"):
        run(found)
    with pytest.raises(UsageError, match=r"cannot be made, choose another out=\.\.\."):
        swept(base, "seed=0,1", "out=/dev/null")


def test_an_element_that_cannot_be_started_has_failed_and_stops_no_other(base: str, stand_in: None) -> None:
    found = noted("seed=0,1,2")
    (found.folder / "configs" / f"{found.elements[1].name}.yaml").mkdir(parents=True)
    code, said = run(found)
    assert (code, starts(found)) == (1, [1, 0, 1])
    assert any("001-seed-1  failed, could not be started: " in line for line in said)


@pytest.mark.parametrize("out", ["runs?x", "runs#x", "runs%20x"])
def test_one_store_for_all_lies_where_its_address_says(out: str, base: str) -> None:
    with pytest.raises(UsageError, match=r"means something else in the address .*choose another out=\.\.\."):
        swept(base, "seed=0,1", f"out={out}")
    server = swept(base, "seed=0,1", f"out={out}", "tracker.uri=http://mlflow:5000")
    assert server.folder == Path(out, "grid")


class MoreData(DataConfig):
    not_known_yet: int = 7


class MoreMasks(BlockMaskConfig):
    shape: str = "box"


def test_a_version_that_knows_more_settings_still_knows_its_runs() -> None:
    plain = config_of("masked")
    data = MoreData.model_validate(plain.data.model_dump())
    masks = tuple(MoreMasks.model_validate(each.model_dump()) for each in plain.objective.masks)
    objective = plain.objective.model_copy(update={"masks": masks})
    assert digest_of(plain.model_copy(update={"data": data, "objective": objective})) == digest_of(plain)
    other = data.model_copy(update={"not_known_yet": 8})
    assert digest_of(plain.model_copy(update={"data": other})) != digest_of(plain)


def test_whatever_is_set_tells_runs_apart() -> None:
    configs = [config_of(name) for name in KINDS]
    first = configs[0]
    for name, value in (("kind", "frozen"), ("kind", "online")):
        configs.append(first.model_copy(update={"target": first.target.model_copy(update={name: value})}))
    configs.append(first.model_copy(update={"seed": 1}))
    configs.append(first.model_copy(update={"data": first.data.model_copy(update={"fps": 5.0})}))
    alone = [MultiKind(part=each) for each in (OneKind(), OtherKind())]
    assert len({digest_of(each) for each in configs}) == len(configs)
    assert not_default(alone[0]) == {} and not_default(alone[1]) == {"part": {"kind": "other"}}


class OneKind(Section):
    kind: Literal["one"] = "one"


class OtherKind(Section):
    kind: Literal["other"] = "other"


class MultiKind(Section):
    part: OneKind | OtherKind = OneKind()
