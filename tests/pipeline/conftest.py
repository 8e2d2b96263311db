"""Fixtures of several folders."""

import shutil

import pytest


@pytest.fixture(scope="session")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed; on Debian: apt install chromium")
    with playwright.sync_playwright() as started:
        # The sandbox needs rights that containers do not give.
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()
