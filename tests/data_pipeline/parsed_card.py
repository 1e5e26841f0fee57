"""A data card read back: its sections with their words, tables and pictures."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "line", "rect", "polygon"}


class Parsed(HTMLParser):
    """Sections by title with their text, tables and pictures; the tags and attributes that occur."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: Counter[str] = Counter()
        self.words: dict[str, str] = {}
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.images: dict[str, list[str]] = {}
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.titles: list[str] = []
        self._section = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.titles.append("")
        if tag == "table":
            self.tables.setdefault(self._section, []).append([])
        elif tag == "tr":
            self.tables[self._section][-1].append([])
        elif tag in ("td", "th"):
            self.tables[self._section][-1][-1].append("")
        elif tag == "img":
            self.images.setdefault(self._section, []).append(dict(attrs)["src"] or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "h2":
            self._section = self.titles[-1]

    def handle_data(self, data: str) -> None:
        data = data.replace("\u00a0", " ")
        if self.open and self.open[-1] == "h2":
            self.titles[-1] += data
        self.words[self._section] = self.words.get(self._section, "") + data
        if {"td", "th"} & set(self.open):
            self.tables[self._section][-1][-1][-1] += data

    def rows(self, section: str, table: int = 0) -> dict[str, list[str]]:
        """A table's rows by their first cell."""
        return {row[0]: row[1:] for row in self.tables[section][table][1:]}


def number(text: str) -> int:
    return int(text.replace(",", ""))
