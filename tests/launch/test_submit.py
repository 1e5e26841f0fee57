"""A submission: what is frozen, what a node then runs, and what is refused before anything is written."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Literal

import pytest

from data_pipeline.config import DataConfig
from data_pipeline.errors import ConfigError, DataError, UsageError
from launch import provenance
from launch.config import dump_config, read_config
from launch.lock import lock_run
from launch.submit import freeze, places
from launch.submit.base import Job, Place, Started
from launch.submit.freeze import code_digest, code_files, find_submission, read_record
from launch.submit.local import LocalPlace
from launch.submit.places import read_place
from launch.submit.shell import command, preamble
from launch.submit.submission import Asked, make_job, read_job_config, submit
from pretrain.config import RunConfig
from tests.small_dataset import tiny_config

ROOT = Path(__file__).parents[2]


class Elsewhere(Place):
    """A place whose script says what it would run; it refuses what a test wants refused."""

    kind: Literal["elsewhere"] = "elsewhere"
    refuses: str = ""

    def files(self, job: Job) -> dict[str, str]:
        words = job.arguments(self, node_rank='"$NODE"', rendezvous='"$HEAD:$PORT"')
        return {"job.sh": f"#!/bin/sh\n{preamble(job, self)}{command(['python', *words])}\n", "b.txt": "b\n"}

    def start(self, job: Job, *, detach: bool) -> Started:
        if self.refuses:
            raise UsageError(self.refuses)
        return Started("17", (("watch", "look 17"), ("stop", "end 17")))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to submit from, which is nobody's checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def config(small_dataset: Path, here: Path) -> RunConfig:
    return tiny_config(small_dataset, here / "runs", name="one")


def submitted(config: RunConfig | DataConfig, place: Place | None = None, **asked: bool) -> list[str]:
    said: list[str] = []
    place = place or Elsewhere()
    submit(make_job(config, place), place, Asked(**asked), said.append)
    return said


def test_a_dry_run_prints_what_it_saves_and_starts_nothing(config: RunConfig) -> None:
    place = Elsewhere(refuses="must not be asked")
    said = submitted(config, place, is_dry=True)
    folder = Path(config.out) / "one" / "submissions" / "001"
    assert said[0] == (folder / "job.sh").read_text().rstrip("\n")
    assert os.access(folder / "job.sh", os.X_OK) and not os.access(folder / "b.txt", os.X_OK)
    record = read_record(folder)
    assert record["state"] == "dry run"
    assert {path.name for path in folder.iterdir()} >= {"code", "config.yaml", "logs", "submission.json"}
    for name, digest in record["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert read_config(folder / "config.yaml", [], RunConfig) == config


def test_what_was_started_is_told_and_written_down(config: RunConfig) -> None:
    said = submitted(config)
    assert said == ["frozen runs/one/submissions/001", "watch  look 17", "stop   end 17"]
    found = find_submission(Path("runs/one"))
    assert found.folder.name == "001"
    assert found.record["state"] == "submitted" and found.record["id"] == "17"
    assert found.record["told"] == {"watch": "look 17", "stop": "end 17"}


def test_what_a_place_refuses_stays_as_not_started(config: RunConfig) -> None:
    with pytest.raises(UsageError, match="no room"):
        submitted(config, Elsewhere(refuses="no room there"))
    assert read_record(Path("runs/one/submissions/001"))["state"] == "not started: no room there"
    submitted(config)
    assert find_submission(Path("runs/one")).folder.name == "002"


def test_nodes_run_the_code_as_it_was_submitted(config: RunConfig, here: Path) -> None:
    """Not what lies in the folder that they work in, nor what is installed."""
    (here / "launch").mkdir()
    (here / "launch" / "__init__.py").write_text("raise SystemExit('edited while it waited')")
    submitted(config, LocalPlace(), is_dry=True)
    script = (here / "runs/one/submissions/001/job.sh").read_text()
    where = (
        "import launch, pretrain, data_pipeline as d; print(launch.__file__, pretrain.__file__, d.__file__)"
    )
    asking = script[: script.index("exec ")] + f"exec {sys.executable} -c '{where}'\n"
    done = subprocess.run(["sh", "-c", asking], capture_output=True, text=True, check=True)
    code = here / "runs/one/submissions/001/code"
    assert all(Path(found).is_relative_to(code) for found in done.stdout.split())


def test_frozen_code_is_the_code_and_says_where_it_is_from(config: RunConfig) -> None:
    submitted(config)
    folder = Path("runs/one/submissions/001")
    assert code_files(folder / "code") == code_files(ROOT)
    assert code_digest(folder / "code") == code_digest(ROOT) == read_record(folder)["code"]
    frozen = json.loads((folder / "code/launch/frozen.json").read_text())
    assert frozen == provenance.source()
    ask = "from launch.provenance import source; import json; print(json.dumps(source()))"
    env = os.environ | {"PYTHONPATH": str((folder / "code").absolute()), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == frozen
    (folder / "code/launch/submit/base.py").open("a").write("\n")
    assert code_digest(folder / "code") != read_record(folder)["code"]


def test_two_at_once_get_a_folder_each(config: RunConfig) -> None:
    place = Elsewhere()
    jobs = [make_job(config, place) for _ in range(3)]
    assert {job.folder.name for job in jobs} == {"001"}
    made: list[Job] = []
    threads = [
        threading.Thread(target=lambda job=job: made.append(freeze.freeze(job, place))) for job in jobs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job.folder.name for job in made) == ["001", "002", "003"]
    for job in made:
        assert str(job.folder) in (job.folder / "job.sh").read_text(), "its own, not another's"
    assert len(list(jobs[0].folder.parent.iterdir())) == 3


def test_a_node_gets_the_options_that_its_kind_of_job_takes(config: RunConfig, here: Path) -> None:
    data = DataConfig(name="set", out="s3://bucket/set", sources=("clips",))
    place = Elsewhere(nodes=4, gpus_per_node=8)
    own = ["--nnodes", "4", "--node-rank", "$NODE", "--rendezvous", "$HEAD:1"]
    train = make_job(config, place, allow_change=("optim.lr",))
    file = str(here / "runs/one/submissions/001/config.yaml")
    found = train.arguments(place, node_rank="$NODE", rendezvous="$HEAD:1")
    assert found == ["supervise", file, "--nproc", "8", "--allow-change", "optim.lr", *own]
    recorded = make_job(config, Elsewhere(), profile=5).arguments(Elsewhere())
    assert recorded[-2:] == ["--profile", "5"]
    with pytest.raises(UsageError, match="--profile 5000"):
        make_job(config, Elsewhere(), profile=5000)
    with pytest.raises(UsageError, match="makes a data set"):
        make_job(data, place, profile=5)
    shard = make_job(data, place)
    assert shard.folder == here / "jobs/set/submissions/001"
    file = str(shard.folder / "config.yaml")
    assert shard.arguments(place, node_rank="$NODE", rendezvous="$HEAD:1") == ["shard", file, *own]
    assert shard.arguments(Elsewhere()) == ["shard", file]


def test_a_sweep_has_a_config_for_each_element(config: RunConfig) -> None:
    elements = [config.model_copy(update={"seed": seed}) for seed in range(3)]
    place = Elsewhere()
    said: list[str] = []
    submit(make_job(config, place, elements=3), place, Asked(), said.append, elements)
    folder = Path("runs/one/submissions/001")
    assert [read_config(path, [], RunConfig) for path in sorted((folder / "elements").iterdir())] == elements
    assert not (folder / "config.yaml").exists()
    assert {f"elements/00{number}.yaml" for number in range(3)} <= set(read_record(folder)["files"])


def test_a_command_breaks_before_options_and_quotes_what_needs_it() -> None:
    long = "/a/path/that/is/rather/long/config.yaml"
    words = ["/my python", "-m", "launch", "supervise", long, "--nproc", "8", "--node-rank",
             '"$SLURM_NODEID"', "--rendezvous", "a b;c"]  # fmt: skip
    text = command(words)
    assert text.splitlines()[0].endswith(" \\")
    done = subprocess.run(
        ["sh", "-c", f"SLURM_NODEID=3; printf '%s\\n' {text}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [word if word != '"$SLURM_NODEID"' else "3" for word in words]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "abcdef"),
        ("MLFLOW_TRACKING_PASSWORD", "x"),
        ("HF_TOKEN", "x"),
        ("MYSQL_PWD", "x"),
        ("SSH_PASSPHRASE", "x"),
        ("PRIVATE_KEY", "x"),
        ("AZURE_STORAGE_KEY", "x"),
        ("GITHUB_PAT", "x"),
        ("PASS", "x"),
        ("DB_PASS", "x"),
        ("SSHPASS", "x"),
        ("AWS_ACCESS_KEY_ID", "x"),
        ("MLFLOW_TRACKING_URI", "http://ann:hunter2@host"),
        ("WHATEVER", "AKIAIOSFODNN7EXAMPLE"),
        ("not a name", "x"),
    ],
)
def test_no_credential_is_set_by_a_script(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"credentials|names of variables"):
        Elsewhere(env={name: value})


@pytest.mark.parametrize("text", ["a\0b", "a\nb", "\x1b[2J", "\x7f"])
def test_control_characters_reach_no_script(text: str) -> None:
    with pytest.raises(ValueError, match=r"without control characters: X has one"):
        Elsewhere(env={"X": text})
    with pytest.raises(ValueError, match="without control characters"):
        Elsewhere(python=text)


@pytest.mark.parametrize("python", ["/nonexistent/python", "no-such-python", "/etc/passwd", "/etc"])
def test_an_interpreter_that_is_not_here_is_refused_before_anything_is_frozen(
    python: str, config: RunConfig, here: Path
) -> None:
    with pytest.raises(UsageError, match=r"python is '.*', no program that can be run here"):
        submitted(config, LocalPlace(python=python), detach=True)
    assert not (here / "runs").exists()
    LocalPlace(python="sh").check(make_job(config, LocalPlace()))  # one on PATH is enough


def test_where_a_credential_lies_is_no_credential() -> None:
    assert Elsewhere(env={"RAY_AUTH_TOKEN_PATH": "/home/ann/token", "AWS_SHARED_CREDENTIALS_FILE": "/c"}).env
    assert Elsewhere(env={"PROXY_BYPASS": "10.0.0.0/8", "ASCEND_PASSES": "2"}).env


@pytest.mark.parametrize("name", ["PYTHONPATH", "PYTHONSAFEPATH"])
def test_the_frozen_code_cannot_be_switched_off(name: str) -> None:
    with pytest.raises(ValueError, match="frozen code"):
        Elsewhere(env={name: "/elsewhere"})


@pytest.mark.parametrize("text", ["0x10", "010", "0.10", "1e3", "true", "null", "2026-01-02", "a: b", "x#y"])
def test_the_value_of_a_variable_is_the_text_that_was_written(here: Path, text: str) -> None:
    assert read_place("local", [f"env.X={text}"]).env == {"X": text}
    (here / "place.yaml").write_text(f"kind: local\nenv:\n  X: {text!r}\n  Y: {text.split(':')[0]}\n")
    assert read_place(str(here / "place.yaml")).env == {"X": text, "Y": text.split(":")[0]}


@pytest.mark.parametrize("key", ["probe.data", "init.weights", "tracker.uri"])
def test_a_config_with_credentials_is_not_frozen(config: RunConfig, here: Path, key: str) -> None:
    section, name = key.split(".")
    plain = config.model_dump()
    plain[section] = {**plain[section], name: "s3://ann:hunter2@bucket/x"}
    if section == "tracker":
        plain[section] = {"kind": "mlflow", "uri": "http://ann:hunter2@host:5000"}
    place = Elsewhere()
    try:
        job = make_job(RunConfig.model_validate(plain), place)
    except ValueError:
        return  # refused even before
    with pytest.raises(ConfigError, match=key) as found:
        submit(job, place, Asked(is_dry=True), lambda _: None)
    assert "hunter2" not in str(found.value) and not (here / "runs").exists()


def test_a_data_set_with_credentials_in_its_addresses_is_not_frozen(here: Path) -> None:
    data = DataConfig(name="set", out="s3://k:hunter2@bucket/set", sources=("s3://k:hunter2@bucket/v",))
    with pytest.raises(ConfigError, match=r"sources: (.|\n)*credentials") as found:
        submitted(data, is_dry=True)
    assert "hunter2" not in str(found.value) and not (here / "jobs").exists()


def test_sources_that_are_not_there_are_told_before_a_job_waits_for_them(here: Path) -> None:
    (here / "clips").mkdir()
    (here / "clips/a.mp4").touch()
    for sources in (("nowhere",), ("clips/*.avi",), ("clips", "/nope/x.csv")):
        data = DataConfig(name="set", out="data/set", sources=sources)
        with pytest.raises(DataError, match="--no-data-check"):
            submitted(data)
        submitted(data, checks_data=False)
    submitted(DataConfig(name="set", out="data/set", sources=("clips/*.mp4", "s3://bucket/v", "clips")))


def test_a_folder_that_python_could_take_no_code_from_is_refused(config: RunConfig, here: Path) -> None:
    odd = config.model_copy(update={"out": str(here / "with:colon")})
    with pytest.raises(UsageError, match="colon"):
        submitted(odd, is_dry=True)


def test_what_a_killed_submission_left_goes_with_the_next_one(config: RunConfig, here: Path) -> None:
    parent = here / "runs/one/submissions"
    for name, age_s in ((".new-old", 7200), (".new-now", 0)):
        (parent / name).mkdir(parents=True)
        then = (parent / name).stat().st_mtime - age_s
        os.utime(parent / name, (then, then))
    submitted(config)
    assert sorted(path.name for path in parent.iterdir()) == [".new-now", "001"]


def test_numbers_of_variables_are_text(here: Path) -> None:
    file = here / "place.yaml"
    file.write_text("kind: local\nenv: {NCCL_IB_TIMEOUT: 22, NCCL_DEBUG: WARN}\n")
    assert read_place(str(file)).env == {"NCCL_IB_TIMEOUT": "22", "NCCL_DEBUG": "WARN"}


@pytest.mark.parametrize(
    ("name", "settings", "error", "told"),
    [
        ("locl", [], UsageError, "did you mean local"),
        ("nowhere.yaml", [], UsageError, "does not exist"),
        ("local", ["nodes=2"], ConfigError, "must be 1|is 1"),
        ("local", ["partition=gpu"], ConfigError, "partition"),
        ("local", ["nodes=none"], ConfigError, "whole number"),
        ("local", ["env={AWS_SECRET_ACCESS_KEY: x}"], ConfigError, "credentials"),
    ],
)
def test_a_place_that_is_none_is_a_sentence(
    here: Path, name: str, settings: list[str], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        read_place(name, settings)


@pytest.mark.parametrize(
    ("text", "told"),
    [("nodes: 1", "kind: need one of"), ("kind: locl", "try local"), ("kind: local\nnodse: 1", "try nodes")],
)
def test_a_file_of_a_place_is_checked(here: Path, text: str, told: str) -> None:
    (here / "place.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_place("place.yaml")


def test_each_kind_of_place_can_be_had() -> None:
    for kind in places.PLACES:
        assert places.place_class(kind).model_fields["kind"].default == kind


def test_a_batch_that_does_not_fit_the_ranks_is_refused_here(config: RunConfig, here: Path) -> None:
    (here / "run.yaml").write_text(dump_config(config))
    with pytest.raises(ConfigError, match=r"train\.global_batch"):
        read_job_config("run.yaml", ["strategy.kind=deepspeed"], Elsewhere(nodes=7, gpus_per_node=8))


def test_nothing_is_written_for_a_run_that_could_not_start(config: RunConfig, here: Path) -> None:
    data = config.data.model_copy(update={"shards": str(here / "none")})
    with pytest.raises(DataError):
        submitted(config.model_copy(update={"data": data}))
    assert not (here / "runs").exists()
    (here / "runs/one").mkdir(parents=True)
    (here / "runs/one/notes.txt").touch()
    with pytest.raises(UsageError, match="holds no run"):
        submitted(config)
    assert [path.name for path in (here / "runs/one").iterdir()] == ["notes.txt"]


def test_a_run_of_another_experiment_is_refused_before_it_waits_in_a_queue(config: RunConfig) -> None:
    checkpoint = Path("runs/one/checkpoints/step-00000002")
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    Path("runs/one/config.yaml").write_text(dump_config(config))
    changed = config.model_copy(update={"seed": config.seed + 1})
    with pytest.raises(ConfigError, match="--allow-change seed"):
        submitted(changed)
    assert not Path("runs/one/submissions").exists()
    place = Elsewhere()
    submit(make_job(changed, place, ("seed",)), place, Asked(), lambda _: None)


@pytest.mark.parametrize("name", [".lock", ".lock-supervise-00000"])
def test_a_run_that_is_being_trained_is_not_submitted_again(config: RunConfig, here: Path, name: str) -> None:
    run = here / "runs/one"
    run.mkdir(parents=True)
    with lock_run(run, name), pytest.raises(UsageError, match=f"process {os.getpid()} on"):
        submitted(config)
    assert not (run / "submissions").exists()


def test_out_that_cannot_be_written_is_a_sentence(config: RunConfig, here: Path) -> None:
    (here / "runs").write_text("a file")
    with pytest.raises(UsageError, match="cannot be written"):
        submitted(config, is_dry=True)
