"""What a user does on the page of a real WebUI, and what the page shows then.

With RIVAL_SCREENSHOTS naming a folder, `screenshot` saves the page there.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

playwright_api = pytest.importorskip("playwright.sync_api", reason="browser: playwright is not installed")

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
PANEL = "#img2img_rival_"
WIDE = {"width": 1280, "height": 1400}


@contextmanager
def chromium():
    """A browser for one test."""
    if CHROMIUM is None:
        pytest.skip("browser: no Chromium found")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


def open_img2img(page, server):
    """Open the WebUI's img2img tab."""
    page.set_default_timeout(60_000)
    playwright_api.expect.set_options(timeout=60_000)
    page.goto(f"{server.url}/?__theme=light")
    show_img2img(page)


def show_img2img(page):
    page.locator("#tabs > .tab-nav > button", has_text="img2img").first.click()


def upload(page, selector, file=ROOT / "demo" / "pizza.png"):
    page.locator(f"{selector} input[type=file]").set_input_files(str(file))
    page.locator(f"{selector} img").first.wait_for()


def paint(page, selector):
    """Upload a photo and paint a mask on it with the widest brush."""
    if page.locator(f"{selector} .forge-container").count():
        paint_on_canvas(page, selector)
        return
    page.locator(f"{selector} input[type=file]").set_input_files(str(ROOT / "demo" / "pizza.png"))
    canvas = page.locator(f"{selector} canvas[key=interface]")
    # what is painted before the canvas has the photo's size is lost
    playwright_api.expect(canvas).to_have_attribute("width", "128")
    # at the first hover the WebUI hides the canvas for a moment, to expand it; the next hover waits for it
    canvas.hover()
    page.locator(f"{selector} [aria-label='Use brush']").click()
    page.locator(f"{selector} input[type=range]").press("End")
    canvas.hover(position={"x": 200, "y": 300})
    page.mouse.down()
    for x, y in ((400, 300), (400, 360), (200, 360)):
        canvas.hover(position={"x": x, "y": y})
    page.mouse.up()


def paint_on_canvas(page, selector):
    """Do the same on Forge's own canvas."""
    upload(page, selector)
    canvas = page.locator(f"{selector} .forge-drawing-canvas")
    canvas.hover()
    # the first of the brush's sliders: width, opacity, softness
    page.locator(f"{selector} input[type=range]").first.fill("20")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.4)
    page.mouse.down()
    for x, y in ((0.7, 0.4), (0.7, 0.6), (0.3, 0.6)):
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y, steps=4)
    page.mouse.up()


def set_number(page, selector, value):
    box = page.locator(f"{selector} input[type=number]")
    box.fill(str(value))
    box.blur()


def set_up(page):
    upload(page, "#img2img_image")
    fill_in(page, "img2img", "a pizza", cfg_scale=5, denoising_strength=1, batch_size=4)


def fill_in(page, tab, prompt, **numbers):
    page.locator(f"#{tab}_prompt textarea").fill(prompt)
    for name, value in {"steps": 20, "width": 128, "height": 128, "seed": 1, **numbers}.items():
        set_number(page, f"#{tab}_{name}", value)


def enable(page, tab="img2img"):
    page.locator(f"#{tab}_rival_enabled > .label-wrap").click()
    playwright_api.expect(page.locator(f"#{tab}_rival_enabled .input-accordion-checkbox")).to_be_checked()


def choose(page, tab, mode):
    page.locator(f"#{tab}_rival_mode label", has_text=mode).click()


def generate(page, tab="img2img"):
    page.locator(f"#{tab}_generate").click()
    page.locator(f"#{tab}_gallery img, #html_log_{tab} .error").first.wait_for()
    page.locator(f"#{tab}_interrupt").wait_for(state="hidden")


def expect_report(page, part, tab="img2img"):
    playwright_api.expect(page.locator(f"#html_info_{tab}").last).to_contain_text(part)


def preview(page, tab="img2img"):
    return page.locator(f"#{tab}_rival_plan").last


def expect_preview(page, part, tab="img2img"):
    playwright_api.expect(preview(page, tab)).to_contain_text(part)


def screenshot(page, name, part=None):
    """Save an image of the page, or of a part of it."""
    folder = os.environ.get("RIVAL_SCREENSHOTS")
    if not folder:
        return
    # animations are brought to their ends
    how = {"path": str(Path(folder) / name), "animations": "disabled"}
    if part is None:
        page.screenshot(full_page=True, **how)
    else:
        part.screenshot(**how)
