"""Serves the page with only the panel, and opens it in a browser. A test file imports the fixtures."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.browser.pages import CHROMIUM, PANEL, chromium, playwright_api, preview

ALONE = Path(__file__).parent
STARTUP_SECONDS = 60
GRADIOS = ("gradio-3.41.2", "gradio-4.40.0")


@pytest.fixture(scope="module", name="address")
def served_address(request, pytestconfig):
    """The address of the page. A Python environment with one of `GRADIOS` serves it, the first unless a test says."""
    if CHROMIUM is None:
        pytest.skip("browser: no Chromium found")
    gradio = getattr(request, "param", GRADIOS[0])
    python = _environment(Path(pytestconfig.cache.mkdir(gradio)), ALONE / f"{gradio}.txt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}
    process = subprocess.Popen([python, str(ALONE / "page.py"), str(port)], env=environment)
    try:
        _wait_for(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _environment(folder, requirements):
    """Return the Python of an environment with the requirements. It is made again when the requirements change."""
    python, made = folder / "bin" / "python", folder / "requirements.txt"
    wanted = requirements.read_text()
    if not made.exists() or made.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(requirements)]
        subprocess.run([python, *install], check=True)
        made.write_text(wanted)
    return python


def _wait_for(address, process):
    end = time.monotonic() + STARTUP_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(address).status_code == 200:
                return
        except httpx.TransportError:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
    raise RuntimeError(f"the page of the panel did not start (exit status {process.poll()})")


@pytest.fixture(scope="module", name="browser")
def open_browser(address):
    with chromium() as browser:
        yield browser


@pytest.fixture(name="page")
def opened_page(browser, address):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(20_000)
    playwright_api.expect.set_options(timeout=20_000)
    page.goto(f"{address}/?__theme=light")
    page.locator(f"{PANEL}mode").wait_for()
    page.wait_for_function("typeof rival !== 'undefined'")
    yield page
    page.close()


def switch_on(page):
    page.locator(f"{PANEL}enabled-checkbox input").check()
    playwright_api.expect(preview(page)).to_contain_text(
        "Inverts the img2img image in 10 evaluations, then makes 1 image."
    )


def open_all(page):
    for accordion in ("exemplars", "more"):
        page.locator(f"{PANEL}{accordion} > .label-wrap").click()
    page.locator(f"{PANEL}t_align").wait_for()
