"""Every host is asked before anything is written: is it reached, are versions, folders and GPUs right."""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UsageError, why
from data_pipeline.format import DATASET_FILE
from launch.remote import Ran, run_on
from launch.submit.base import Job
from launch.submit.shell import interpreter
from launch.submit.ssh import probe
from launch.submit.ssh.place import SshPlace
from pretrain.config import RunConfig

ANSWER_S = 60.0  # Python starts slowly from a cold network's folder
SEEN_WITHIN_S = 10.0  # a file that was just written, through a network's folder
PACKAGES = {
    "train": ("foreframe", "torch", "deepspeed", "numpy"),
    "shard": ("foreframe", "ray", "av", "numpy"),
}


@dataclass(frozen=True)
class Meeting:
    """Where the hosts of a job meet: the first one's address, and a port that is free there."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def check_hosts(place: SshPlace, job: Job) -> None:
    """Raises: UsageError with all that is wrong on any host."""
    if job.kind == "train":
        _ = place.ranks  # slots that differ are told before any host is asked
    answers, problems = _ask_all(place, job)
    has_gpus = place.gpus_per_node > 0 or any(answer["gpus"] for answer in answers.values())
    for host, answer in answers.items():
        problems += [f"{host}: {told}" for told in _problems(answer, job)]
        needed = place.gpus_needed(host)
        if job.kind == "train" and has_gpus and answer["gpus"] < needed:
            told = f"it has {answer['gpus']} GPUs, and a rank is to run on number {needed - 1}"
            problems.append(f"{host}: {told}: need a GPU a slot")
    if not problems and place.nodes > 1:
        _, problems = _meet(place, answers)
    refuse(place, problems)


def find_meeting(place: SshPlace) -> Meeting:
    """Where they meet now. Raises: UsageError, with all that stands against it."""
    nothing: dict[str, Any] = {"workdir": "/", "folders": [], "packages": [], "paths": []}
    answers, problems = read_answers(place, ask(place, place.names[:1], "probe", nothing))
    meeting = None
    if not problems:
        meeting, problems = _meet(place, answers)
    refuse(place, problems)
    assert meeting is not None, "no problem and no meeting"
    return meeting


def refuse(place: SshPlace, problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise UsageError(f"{problems[0]}; nothing was started")
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise UsageError(f"{place.nodes} hosts were asked, and nothing was started:{listed}")


def _ask_all(place: SshPlace, job: Job) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What each host says of itself; and why some do not."""
    with ExitStack() as open_:
        tokens = [(folder, open_.enter_context(_token(folder))) for folder in written_folders(job)]
        asked = {
            "workdir": str(job.workdir),
            "folders": [[str(folder), *token, SEEN_WITHIN_S] for folder, token in tokens],
            "packages": list(PACKAGES[job.kind]),
            "paths": local_paths(job),
        }
        ran = ask(place, place.names, "probe", asked)
    return read_answers(place, ran)


def ask(place: SshPlace, hosts: Sequence[str], what: str, asked: Mapping[str, Any]) -> dict[str, Ran]:
    """The probe's own text, run by each host's interpreter."""
    command = shlex.join(["exec", interpreter(place), "-", what, json.dumps(asked)])
    text = Path(probe.__file__).read_text(encoding="utf-8")
    return run_on(hosts, command, timeout_s=ANSWER_S, ssh_config=place.ssh_config, input=text)


def read_answers(place: SshPlace, ran: Mapping[str, Ran]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    answers, problems = {}, []
    for host, found in ran.items():
        if found.problem is not None:
            problems.append(found.problem)
        elif found.exit_code in (126, 127):
            problems.append(
                f"{host}: {interpreter(place)} is not there, or cannot be run: need the same interpreter "
                "under the same path on every host; another one is `--with python=PATH`"
            )
        else:
            try:
                answers[host] = dict(json.loads(found.out.splitlines()[-1]))
            except (ValueError, IndexError):
                problems.append(
                    f"{host}: its Python does not answer: {found.last_line or 'nothing was said'}"
                )
    return answers, problems


def _problems(answer: Mapping[str, Any], job: Job) -> Iterator[str]:
    """What is wrong with one host, in words."""
    here = probe.versions(list(PACKAGES[job.kind]))
    for package, there in answer["versions"].items():
        own = here[package]
        if there != own:
            found = f"is {there}" if there is not None else "is not installed"
            yield f"{package} {found}, here {own or 'it is not installed'}: need the same on every host"
    for folder, told in zip(written_folders(job), answer["folders"], strict=True):
        if told == "unseen":
            yield (
                f"{folder} is another folder there: a file that this machine has written is not seen; "
                "need an out=... that all hosts share under the same path"
            )
        elif told is not None:
            yield f"{folder} cannot be written there: {told}"
    if not answer["has_workdir"]:
        yield f"{job.workdir} is not there: submit from a folder that all hosts share"
    for path in answer["missing"]:
        yield f"{path} is not there: need the data under the same path on every host"


def _meet(place: SshPlace, answers: Mapping[str, Mapping[str, Any]]) -> tuple[Meeting | None, list[str]]:
    """The first host's address and port, if each host has a way there."""
    first = place.names[0]
    address = place.address or answers[first]["address"]
    if address is None:
        return None, [f"{first}: at which address the others reach it is not known: need address=..."]
    if place.address is None and (address.startswith("127.") or address == "::1"):
        return None, [
            f"{first}: ssh reaches it at {address}, where no other host does: need address=..., one of its "
            "own on the network between the hosts"
        ]
    ran: dict[str, Ran] = {}
    for is_first, hosts in ((True, [first]), (False, place.names[1:])):
        asked = {"address": address, "port": place.port, "is_first": is_first}
        ran |= ask(place, hosts, "meeting", asked)
    found, problems = read_answers(place, ran)
    for host, answer in found.items():
        if answer["problem"] is not None:
            problems.append(f"{host}: {answer['problem']}")
        elif host != first and answer["interface"] == "lo":
            problems.append(f"{host}: {address} is its own address: need address=..., the one of {first}")
    own = found.get(first)
    if own is not None and not own["is_own"]:
        problems.append(f"{first}: {address} is no address of this host: need address=..., one of its own")
    elif own is not None and own["port"] is None:
        wanted = f"port {place.port} is in use" if place.port else "no free port was found"
        problems.append(f"{first}: {wanted}: need port=..., one that is free there, or port=null")
    if problems or own is None:
        return None, problems
    return Meeting(address, own["port"]), []


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def written_folders(job: Job) -> list[Path]:
    """Folders that all hosts must share, as far as they are there: of the submission, and `out`."""
    out = job.config.out
    found = [job.folder] if "://" in out else [job.folder, job.workdir / out]
    return list(dict.fromkeys(nearest(folder) for folder in found))


def local_paths(job: Job) -> list[str]:
    """What is read, and must be under the same path on every host; stores and globs are not looked for."""
    if isinstance(job.config, RunConfig):
        named = [f"{source.shards}/{DATASET_FILE}" for source in job.config.data.sources]
    else:
        named = [source for source in job.config.sources if not set("*?[") & set(source)]
    return [str(job.workdir / Path(name).expanduser()) for name in named if "://" not in name]


@contextmanager
def _token(folder: Path) -> Iterator[tuple[str, str]]:
    """A file of this machine in a folder, and what it holds, until the end of the block."""
    path, content = folder / f".foreframe-seen-{secrets.token_hex(8)}", secrets.token_hex(16)
    try:
        path.write_text(content)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written, choose another out=...: {why(error)}") from error
    try:
        yield str(path), content
    finally:
        path.unlink(missing_ok=True)
