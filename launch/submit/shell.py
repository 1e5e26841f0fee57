"""Lines of shell scripts: what is exported, and commands that a person can read."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Mapping

from launch.submit.base import Job, Place

WIDTH = 100
# NCCL says what goes wrong, and remembers its last collectives, which ranks leave in files after a hang.
GPU_VARIABLES = {"NCCL_DEBUG": "WARN", "TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
DUMPS_VARIABLE, DUMPS = "TORCH_FR_DUMP_TEMP_FILE", "collectives-rank-"  # torch appends the rank
SHELL_WORD = re.compile(r'"[^"`\\]*"|\$[A-Za-z_][A-Za-z0-9_]*')  # "$HOST:$PORT", $NODE: a shell's own


def exports(env: Mapping[str, str]) -> str:
    """A line for each variable, with its value quoted."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())


def word(text: str) -> str:
    """Quoted for a shell; what already is a quoted expression, such as "$SLURM_NODEID", stays one."""
    return text if SHELL_WORD.fullmatch(text) else shlex.quote(text)


def command(words: Iterable[str], indent: str = "  ") -> str:
    """A command, broken before options where it would be too long for a line."""
    lines, line = [], ""
    for each in words:
        text = word(each)
        if line and text.startswith("--") and len(line) > WIDTH // 2:
            lines.append(line)
            line = indent + text
        else:
            line = f"{line} {text}" if line else text
    return " \\\n".join([*lines, line])


def interpreter(place: Place) -> str:
    return place.python or sys.executable


def preamble(job: Job, place: Place) -> str:
    """Where a node works and with which code; the place's own variables."""
    return (
        f"cd {shlex.quote(str(job.workdir))}\n"
        "# The code as it was submitted, before what is installed or lies in this folder.\n"
        f"export PYTHONPATH={shlex.quote(str(job.code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1\n"
        f"{exports(place.env)}"
    )


def gpu_variables(dumps: str) -> str:
    """What nodes with GPUs are given beside the place's own variables, of which one of the same name counts.

    dumps: where each rank leaves its last collectives, a shell's expression before the rank's number.
    """
    lines = "".join(f'export {name}="${{{name}:-{value}}}"\n' for name, value in GPU_VARIABLES.items())
    return (
        "# NCCL says what goes wrong. After a hang each rank leaves its last collectives: torchfrtrace reads "
        f"them.\n{lines}export {DUMPS_VARIABLE}={dumps}\n"
    )
