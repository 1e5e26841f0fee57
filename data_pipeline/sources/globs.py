"""Globs, with one meaning for folders and for s3:// prefixes: `*` and `?` stay in a folder, `**` does not."""

from __future__ import annotations

import re

MAGIC = re.compile(r"[*?[]")


def has_magic(source: str) -> bool:
    return MAGIC.search(source) is not None


def split_glob(source: str) -> tuple[str, str]:
    """The folder before the first part with a sign of its own, and the pattern below it."""
    first = MAGIC.search(source)
    end = source.rfind("/", 0, first.start() if first else len(source)) + 1
    return source[:end], source[end:]


def depth_of(pattern: str) -> int | None:
    """How many folders deep a match can lie; None where there is no end."""
    parts = pattern.split("/")
    return None if "**" in parts else len(parts)


def compile_glob(pattern: str) -> re.Pattern[str]:
    """A regular expression for names below the fixed folder, forward slashes between parts."""
    parts = [part for part in pattern.split("/") if part]
    text = ""
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        if part == "**":
            text += ".*" if is_last else "(?:[^/]+/)*"
        else:
            text += _compile_part(part) + ("" if is_last else "/")
    return re.compile(text, re.DOTALL)


def _compile_part(part: str) -> str:
    text, at = "", 0
    while at < len(part):
        sign = part[at]
        end = part.find("]", at + 3 if part[at + 1 : at + 2] == "!" else at + 2) if sign == "[" else -1
        if sign == "*":
            text += "[^/]*"
        elif sign == "?":
            text += "[^/]"
        elif end > 0:
            chosen = part[at + 1 : end]
            excludes = "^" if chosen.startswith("!") else ""
            inner = re.sub(r"([\\\[\]^&~|])", r"\\\1", chosen.removeprefix("!"))
            text += f"(?!/)[{excludes}{inner}]"
            at = end
        else:
            text += re.escape(sign)
        at += 1
    return text
