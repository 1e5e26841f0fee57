"""The report in a browser: it opens from a file, asks for nothing, sorts, reads on a phone and on paper."""

from __future__ import annotations

import base64
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pretrain.curves import Picture
from pretrain.report import story, write_comparison, write_report
from tests.browser.conftest import PHONE, Browser
from tests.report_runs import write_lines, write_run, write_troubles

pytestmark = pytest.mark.browser
LONG = "a path that is long: /" + "x" * 120  # nothing in it that a line could be broken at


def _clips(run: Path, _: object) -> tuple[list[Picture], list[str]]:
    """In place of pictures of clips, which need a checkpoint."""
    (run / "pictures").mkdir(exist_ok=True)
    Image.new("RGB", (700, 470), "#3d85c6").save(run / "pictures" / "masks-1.png")
    return [Picture(run / "pictures" / "masks-1.png", "Masks of kind 1", "what is shaded is hidden")], [LONG]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run that had troubles, and one of five runs."""
    folder = tmp_path_factory.mktemp("runs")
    base = write_run(folder / "base", name="base")
    write_troubles(base)
    fast = write_run(folder / "fast", name="fast", config={"optim": {"lr": 3e-3}}, collapses=True, done=120)
    wide = {"model": {"encoder": {"preset": "vit_base"}}}
    seeds = [write_run(folder / f"wide-{s}", name=f"wide-seed{s}", seed=s, config=wide) for s in range(3)]
    write_lines(folder / "data" / "dead_letters.jsonl", [{"uri": f"/{'y' * 150}.mp4", "reason": LONG}] * 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story, "draw_pictures", _clips)
        one = write_report(base)
    return {"one": one, "several": write_comparison([base, fast, *seeds])}


def test_it_opens_from_its_file_asks_for_nothing_and_has_its_pictures(
    browser: Browser, pages: dict[str, Path]
) -> None:
    for name, page in pages.items():
        browser.get(page.as_uri())
        asked = browser.execute_script(
            "return performance.getEntriesByType('resource').map((entry) => entry.name)"
        )
        assert [address for address in asked if not address.startswith("data:")] == []
        assert browser.errors() == []
        images = browser.execute_script(
            "return [...document.images].map((each) => each.complete && each.naturalWidth > 0)"
        )
        assert images == ([True] if name == "one" else [])
        # A curve has a length: it is drawn, not only written down.
        lengths = browser.execute_script(
            "return [...document.querySelectorAll('figure svg')].map((svg) =>"
            " Math.max(...[...svg.querySelectorAll('path')].map((path) => path.getTotalLength())))"
        )
        assert len(lengths) > 10
        assert min(lengths) > 50
        words = "return document.querySelectorAll('figure svg text').length"
        assert browser.execute_script(words) > 100, "words of figures are words"
        browser.keep(f"report-{name}")


def rows(browser: Browser) -> list[list[str]]:
    """The cells of the first table that can be sorted."""
    found: list[list[str]] = browser.execute_script(
        "return [...document.querySelector('table.sort').tBodies[0].rows].map((row) =>"
        " [...row.cells].map((cell) => cell.textContent))"
    )
    return found


def column(browser: Browser, name: str) -> tuple[int, Any]:
    """Where a column of that table stands, and the button in its head."""
    buttons = browser.find_elements("css selector", "table.sort thead button")
    place = [button.text.strip() for button in buttons].index(name)
    return place, buttons[place]


def order_of(browser: Browser, place: int) -> str:
    found: str = browser.execute_script(
        "return document.querySelector('table.sort').tHead.rows[0].cells[arguments[0]].ariaSort", place
    )
    return found


def test_its_table_is_sorted_by_a_click_and_by_the_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(pages["several"].as_uri())
    written = rows(browser)
    place, button = column(browser, "loss")
    assert order_of(browser, place) == "none"
    button.click()
    falling = [float(row[place]) for row in rows(browser)]
    assert order_of(browser, place) == "descending"
    assert falling == sorted((float(row[place]) for row in written), reverse=True)
    assert falling != [float(row[place]) for row in written]
    browser.keep("report-sorted")
    button.send_keys(Keys.ENTER)
    assert order_of(browser, place) == "ascending"
    assert [float(row[place]) for row in rows(browser)] == falling[::-1]
    place_of_steps, steps = column(browser, "steps")
    steps.send_keys(Keys.SPACE)
    assert order_of(browser, place) == "none", "a table is sorted by one column"
    assert [row[place_of_steps] for row in rows(browser)] == ["200", "200", "200", "200", "120"]
    name, button = column(browser, "run")
    button.click()
    assert order_of(browser, name) == "ascending", "words begin with a"
    assert [row[0] for row in rows(browser)] == sorted(row[0] for row in written)

    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(pages["several"].as_uri())
    assert rows(browser) == written, "without scripts it is a plain table"
    assert browser.find_elements("css selector", "th button") == []


def test_on_a_phone_nothing_is_wider_than_the_screen_and_all_can_be_reached(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.resize(PHONE)
    for name, page in pages.items():
        browser.get(page.as_uri())
        browser.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true })")
        assert browser.execute_script("return innerWidth") == PHONE[0]
        assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
        smallest = browser.execute_script(
            "return Math.min(...[...document.querySelectorAll('figure svg text')].map((text) => {"
            " const to = text.getScreenCTM();"
            " return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(to.a, to.b) }))"
        )
        assert smallest > 9, "words in figures can be read"
        reached = (
            "return [...document.querySelectorAll('a, button, summary, .scroll')].map((e) => e.tabIndex)"
        )
        assert min(browser.execute_script(reached)) >= 0
        has_focus = browser.execute_script(
            "const all = [...document.querySelectorAll('.scroll')];"
            "const wide = all.find((e) => e.scrollWidth > e.clientWidth);"
            "if (wide) wide.focus(); return !wide || document.activeElement === wide && !!wide.ariaLabel"
        )
        assert has_focus, "a table that is wider is scrolled by the keyboard too"
        browser.keep(f"report-{name}-phone")


# Contrast of each element's words with the page. Source: WCAG 2.2.
CONTRAST = """
const part = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = (colour) => {
  const [red, green, blue] = colour.match(/[\\d.]+/g).map((each) => part(each / 255));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const ground = light(getComputedStyle(document.body).backgroundColor);
const ratio = (colour) => {
  const own = light(colour);
  return (Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05);
};
const each = (what, how) => [...document.querySelectorAll(what)].map((e) =>
  [ratio(getComputedStyle(e)[how]), e.outerHTML.slice(0, 80)]);
"""
WORDS = "h1, h2, h3, p, td, th, li, a, dd, dt, figcaption, caption, b, small, span, code, summary, button"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_by_day_and_by_night_words_and_figures_stand_out(
    browser: Browser, pages: dict[str, Path], scheme: str
) -> None:
    browser.scheme(scheme)
    for name, page in pages.items():
        browser.get(page.as_uri())
        ground = browser.execute_script(f"{CONTRAST} return ground")
        assert (ground > 0.9) == (scheme == "light")
        words = browser.execute_script(f"{CONTRAST} return each('{WORDS}', 'color')")
        assert len(words) > 100
        assert [found for found in words if found[0] < 4.5] == []
        drawn = browser.execute_script(f"{CONTRAST} return each('figure svg text', 'fill')")
        assert [found for found in drawn if found[0] < 4.5] == []
        browser.keep(f"report-{name}-{scheme}")


def marks_on_pages(pdf: bytes) -> list[int]:
    """How many times text is shown or a path is drawn, for each content stream of a PDF that sets a font."""
    found = []
    for packed in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        try:
            content = zlib.decompress(packed)
        except zlib.error:
            continue
        if b" Tf" in content:
            found.append(len(re.findall(rb"(?:^|\s)(?:Tj|TJ|S|f)(?=\s|$)", content)))
    return found


def test_on_paper_no_page_is_blank_and_what_was_folded_is_open(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.scheme("dark")
    folded = "document.querySelectorAll('details:not([open])').length"
    for name, page in pages.items():
        browser.get(page.as_uri())
        before = browser.execute_script(f"return {folded}")
        browser.execute_script(
            f"window.seen = []; addEventListener('beforeprint', () => window.seen.push({folded}))"
        )
        printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
        pdf = base64.b64decode(printed["data"])
        count = len(re.findall(rb"/Type\s*/Page\b", pdf))
        assert 3 <= count <= 16
        marks = sorted(marks_on_pages(pdf), reverse=True)
        assert len(marks) >= count
        assert marks[count - 1] > 20
        assert browser.execute_script("return window.seen") == [0]
        assert browser.execute_script(f"return {folded}") == before
        assert before == (2 if name == "one" else 0)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)", "paper is white by night too"
    browser.keep("report-print")
