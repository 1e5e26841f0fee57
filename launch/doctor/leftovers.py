"""What ended jobs left behind: locks of torch's extensions, temporary folders, processes."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.scratch import PREFIX
from launch.doctor.check import Check
from launch.doctor.limits import read_text

# What is made with tempfile.mkdtemp and removed at a command's end; no other name is told to be removed.
# rank and ranks: of earlier versions. tracking: of benchmarks.
MADE = (
    "foreframe-extensions-",
    "foreframe-picture-",
    "foreframe-rank-",
    "foreframe-ranks-",
    "foreframe-report-",
    "foreframe-smoke-",
    "foreframe-tracking-",
    "foreframe-ui-",
)
MADE_NAME = re.compile(rf"(?:{'|'.join(MADE)})[a-z0-9_]{{8}}")
OLD_S, BEGUN_S = 3600.0, 60.0
MOST_NAMED = 4
COMMANDS = ("train", "supervise", "shard", "demo", "smoke", "probe", "index")
BUILDERS = ("python", "ninja", "nvcc", "c++", "g++", "gcc", "cc1plus", "deepspeed", "foreframe", "torchrun")


@dataclass(frozen=True)
class Process:
    """started_s: since 1970. words: of its command line."""

    pid: int
    parent: int
    started_s: float
    words: tuple[str, ...]


def boot_time_s() -> float:
    """When the machine was started, since 1970."""
    lines = (read_text(Path("/proc/stat")) or "").splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("btime")), 0.0)


def processes(proc: Path = Path("/proc")) -> list[Process]:
    """All processes that /proc tells of, with their command lines."""
    ticks, boot_s, found = os.sysconf("SC_CLK_TCK"), boot_time_s(), []
    for entry in proc.iterdir() if proc.is_dir() else ():
        if not entry.name.isdigit():
            continue
        stat = read_text(entry / "stat")
        words = read_text(entry / "cmdline")
        if stat is None or not words:
            continue  # it has ended, or is the kernel's own
        fields = stat.rsplit(")", 1)[1].split()
        started_s = boot_s + int(fields[19]) / ticks
        plain = tuple(word for word in words.split("\0") if word)
        found.append(Process(int(entry.name), int(fields[1]), started_s, plain))
    return found


def ancestors(running: Iterable[Process], pid: int) -> set[int]:
    """A process, its parent, and so on."""
    parents = {each.pid: each.parent for each in running}
    found = set()
    while pid and pid not in found:
        found.add(pid)
        pid = parents.get(pid, 0)
    return found


def extension_folders(environment: Mapping[str, str], home: Path) -> list[Path]:
    """Where torch builds extensions: the folder that is set, and its own."""
    own = home / ".cache" / "torch_extensions"
    told = environment.get("TORCH_EXTENSIONS_DIR")
    return [*([Path(told)] if told else []), *([own] if not told or Path(told) != own else [])]


def check_extension_locks(folders: Sequence[Path], named: str | None, running: Sequence[Process]) -> Check:
    """Locks that a killed build left: every later job would wait for them for ever.

    named: TORCH_EXTENSIONS_DIR, which jobs of ours use too; others have a folder of their own each.
    Source: torch.utils.file_baton makes `lock` and removes it; it holds no process's number.
    """
    locks = [
        lock
        for folder in folders
        if folder.is_dir()
        for lock in sorted(folder.rglob("lock"))
        if lock.is_file()
    ]
    stale: list[Path] = []
    held: list[Path] = []
    for lock in locks:
        try:
            made_s = lock.stat().st_mtime
        except OSError:
            continue  # it was just let go
        older = [each for each in running if each.started_s <= made_s and _builds(each)]
        (held if older else stale).append(lock)
    name = "extension locks"
    if stale:
        found = f"{stale[0]}{_more(stale)}: older than every process that could hold it"
        remedy = f"`{_remove('rm', stale[:MOST_NAMED])}`: a build that waits for it hangs for ever"
        ours = named is not None and any(Path(named) in lock.parents for lock in stale)
        return Check(name, "fail" if ours else "warn", found, remedy)
    if held:
        found = f"{held[0]}{_more(held)}: a build may be at work"
        remedy = f"if none is (`ps aux | grep ninja`): `{_remove('rm', held[:1])}`"
        return Check(name, "warn", found, remedy)
    return Check(name, "pass", "none")


def _builds(process: Process) -> bool:
    name = Path(process.words[0]).name
    return any(name.startswith(builder) for builder in BUILDERS)


def check_temporary_folders(base: Path, running: Sequence[Process], now_s: float) -> Check:
    """Folders that killed commands left where temporary files go."""
    oldest_s = min((each.started_s for each in running if _command(each) or _is_rank(each)), default=now_s)
    before_s = min(oldest_s, now_s - OLD_S)
    begun = [path for dot in ("", ".") for path in sorted(base.glob(f"{dot}{PREFIX}*"))]
    scratch = [path for path in begun if _is_unlocked(path, now_s)]
    others = [path for path in sorted(base.glob("foreframe-*")) if _is_left(path, before_s)]
    name, stale = "temporary folders", [*others, *scratch]
    if not stale:
        return Check(name, "pass", f"none left in {base}")
    found = f"{len(stale)} left by killed commands: {stale[0]}{_more(stale)}"
    if not others:
        return Check(name, "warn", found, "the next job here removes them")
    if len(others) <= MOST_NAMED:
        return Check(name, "warn", found, f"`{_remove('rm -r', others)}`")
    kinds = [made for made in MADE if any(path.name.startswith(made) for path in others)]
    names = " -o ".join(f"-name '{made}????????'" for made in kinds)
    whose = f"-type d -perm 700 -user {os.getuid()} -mmin +{(now_s - before_s) // 60:.0f}"
    where = shlex.quote(str(base))
    remedy = f"`find {where} -maxdepth 1 {whose} \\( {names} \\) -exec rm -r {{}} +`"
    return Check(name, "warn", found, remedy)


def _remove(command: str, paths: Sequence[Path]) -> str:
    return f"{command} {shlex.join(map(str, paths))}"


def _is_left(path: Path, before_s: float) -> bool:
    """Whether mkdtemp made it for one of our commands, as this user, and all that run now began later."""
    if MADE_NAME.fullmatch(path.name) is None:
        return False
    try:
        found = path.lstat()
    except OSError:  # just gone
        return False
    is_made = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700
    return is_made and found.st_uid == os.getuid() and found.st_mtime < before_s


def _is_unlocked(path: Path, now_s: float) -> bool:
    """Whether the process whose scratch folder it was is gone: data_pipeline.scratch holds a lock."""
    try:
        if now_s - path.stat().st_mtime < BEGUN_S:
            return False
        handle = os.open(path / "lock", os.O_RDONLY)
    except OSError:  # another user's, or just gone
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def check_jobs(running: Sequence[Process], own: int, now_s: float) -> Check:
    """Other jobs of foreframe on this machine, some perhaps forgotten. own: this process."""
    mine = ancestors(running, own)
    found = {each.pid: command for each in running if each.pid not in mine and (command := _command(each))}
    # What a job was started by, as `timeout` or a shell, has the same words.
    jobs = [(each, found[each.pid]) for each in running if each.pid in found and each.parent not in found]
    if not jobs:
        return Check("other jobs", "pass", "none of foreframe's runs here")
    told = ", ".join(
        f"{command} (process {each.pid}, {_age(now_s - each.started_s)})" for each, command in jobs[:4]
    )
    remedy = "unless they are wanted, `kill PROCESS` asks each to save and end: cores and memory are shared"
    return Check("other jobs", "warn", f"{told}{_more(jobs, 4)}", remedy)


def _command(process: Process) -> str | None:
    """Which of foreframe's long commands a process is; of a job's ranks only their starter counts."""
    words = process.words
    for at, word in enumerate(words[:-1]):
        is_ours = Path(word).name == "foreframe" or (word == "launch" and at > 0 and words[at - 1] == "-m")
        if is_ours and at <= 6 and words[at + 1] in COMMANDS:
            return words[at + 1]
    return None


def _is_rank(process: Process) -> bool:
    return any(word == "launch.train" for word in process.words[:8])


def _age(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _more(found: Sequence[object], told: int = 1) -> str:
    return f" and {len(found) - told} more" if len(found) > told else ""


def look_at_leftovers(base: Path) -> list[Check]:
    """All of these on this machine."""
    running, now_s = processes(), time.time()
    mine = ancestors(running, os.getpid())
    others = [each for each in running if each.pid not in mine]
    folders = extension_folders(os.environ, Path.home())
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    return [
        check_extension_locks(folders, named, others),
        check_temporary_folders(base, running, now_s),
        check_jobs(running, os.getpid(), now_s),
    ]
