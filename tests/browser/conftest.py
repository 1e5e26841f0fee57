"""A headless Chromium that pages are opened in: Debian's, without network, a new profile each time.

Screenshots go to $FOREFRAME_SCREENSHOTS, where it is set, so that a person can look at what the tests saw.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium")
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

PHONE, DESKTOP = (390, 844), (1280, 900)
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it refuses to run as root with one
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
AWAY = "--proxy-server=http://127.0.0.1:9"  # a closed port: whatever a page asks of another host fails


class Browser(Chrome):
    """Chromium, and what of a page's troubles its console says."""

    def errors(self) -> list[str]:
        """Console entries of level SEVERE since the last call."""
        return [entry["message"] for entry in self.get_log("browser") if entry["level"] == "SEVERE"]

    def resize(self, size: tuple[int, int]) -> None:
        """Show pages as on a screen of this width and height, in CSS pixels."""
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, name: str) -> None:
        """`light` or `dark`, as a page's media queries see it."""
        self.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": name}]}
        )

    def keep(self, name: str) -> None:
        """Write the visible page to the folder of screenshots, where one is wanted."""
        folder = os.environ.get("FOREFRAME_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser of its own for each test; skipped, with the reason, where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, AWAY, f"--user-data-dir={tmp_path / 'chromium'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = Browser(options=options, service=Service(driver))
    found.set_page_load_timeout(60)
    found.resize(DESKTOP)
    yield found
    found.quit()
