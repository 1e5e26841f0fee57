"""The browser of these tests: it says what goes wrong on a page, and reaches no other host."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.conftest import PHONE, Browser

pytestmark = pytest.mark.browser


def test_it_shows_a_page_and_says_its_errors(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<title>seen</title><body><script>console.error('planted')</script>"
        "<img src='http://example.org/x.png'><p id=w></p><script>w.textContent = innerWidth</script>"
    )
    browser.resize(PHONE)
    browser.get(page.as_uri())
    assert browser.title == "seen"
    found = browser.errors()
    assert any("planted" in message for message in found)
    assert any("example.org" in message for message in found), "nothing may be fetched from elsewhere"
    browser.keep("browser")
