"""The panel in a real browser on a real WebUI: what a person does, and what it shows.

With RIVAL_SCREENSHOTS naming a folder, the page is saved there as the README shows it.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.host.servers import RealServer, real_folder

playwright_api = pytest.importorskip("playwright.sync_api", reason="browser: playwright is not installed")

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
PANEL = "#img2img_rival_"
WIDE = {"width": 1280, "height": 1400}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if real_folder() is None:
        pytest.skip("real WebUI: none found; set RIVAL_WEBUI to its folder")
    server = RealServer(real_folder(), tmp_path_factory.mktemp("webui"))
    yield server
    server.stop()


@pytest.fixture
def page(server):
    if CHROMIUM is None:
        pytest.skip("browser: no Chromium found")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport=WIDE)
        page.set_default_timeout(60_000)
        playwright_api.expect.set_options(timeout=60_000)
        page.goto(f"{server.url}/?__theme=light")
        page.locator("#tabs > .tab-nav > button", has_text="img2img").first.click()
        yield page
        browser.close()


def upload_photo(page):
    page.locator("#img2img_image input[type=file]").set_input_files(str(ROOT / "demo" / "pizza.png"))
    page.locator("#img2img_image img").first.wait_for()


def set_number(page, selector, value):
    box = page.locator(f"{selector} input[type=number]")
    box.fill(str(value))
    box.blur()


def set_up(page):
    upload_photo(page)
    page.locator("#img2img_prompt textarea").fill("a pizza")
    numbers = {"steps": 20, "width": 128, "height": 128, "cfg_scale": 5, "denoising_strength": 1, "batch_size": 4}
    for name, value in numbers.items():
        set_number(page, f"#img2img_{name}", value)
    set_number(page, "#img2img_seed", 1)


def enable(page):
    page.locator(f"{PANEL}enabled > .label-wrap").click()
    playwright_api.expect(page.locator(f"{PANEL}enabled .input-accordion-checkbox")).to_be_checked()


def generate(page):
    page.locator("#img2img_generate").click()
    page.locator("#img2img_gallery img, #html_log_img2img .error").first.wait_for()
    page.locator("#img2img_interrupt").wait_for(state="hidden")


def expect_report(page, part):
    playwright_api.expect(page.locator("#html_info_img2img").last).to_contain_text(part)


def screenshot(page, name):
    folder = os.environ.get("RIVAL_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(800)
        page.screenshot(full_page=True, path=str(Path(folder) / name))


def test_variations_from_the_panel(page):
    set_up(page)
    enable(page)
    generate(page)
    assert "RIVAL report: 10 layers" in page.locator("#html_info_img2img").last.inner_text()
    page.locator("#img2img_gallery img").first.wait_for()
    screenshot(page, "panel.png")
    page.locator(f"{PANEL}more > .label-wrap").click()
    screenshot(page, "panel-more.png")


def test_a_pasted_infotext_brings_every_control_back(page):
    page.locator("#img2img_prompt textarea").fill(
        "a pizza\nSteps: 20, Sampler: Euler, RIVAL mode: variation, RIVAL t_align: 450, RIVAL t_early: 350, "
        "RIVAL early_steps: 960, RIVAL alignment: latent, RIVAL start: inverted, "
        'RIVAL exemplar_prompt: "a pizza, hot", RIVAL inversion_iterations: 2'
    )
    page.locator("#img2img_tools #paste, #tab_img2img #paste").first.click()
    expect = playwright_api.expect
    expect(page.locator(f"{PANEL}enabled .input-accordion-checkbox")).to_be_checked()
    for name, value in {"t_align": 450, "t_early": 350, "early_steps": 960, "inversion_iterations": 2}.items():
        expect(page.locator(f"{PANEL}{name} input[type=number]")).to_have_value(str(value))
    expect(page.locator(f"{PANEL}exemplar_prompt textarea")).to_have_value("a pizza, hot")
    expect(page.locator(f"{PANEL}alignment input:checked")).to_have_value("latent")
    expect(page.locator(f"{PANEL}start input:checked")).to_have_value("inverted")


def test_an_error_is_a_plain_sentence_on_the_page(page):
    set_up(page)
    enable(page)
    page.locator("#img2img_sampling input").click()
    page.locator("#img2img_sampling ul li", has_text=re.compile(r"^\W*Heun\W*$")).click()
    generate(page)
    assert (
        "RivalError: RIVAL: sampler Heun is not supported; choose one of"
        in page.locator("#html_log_img2img .error").first.inner_text()
    )


def test_the_button_releases_the_stored_inversions_and_the_next_run_inverts_again(page):
    set_up(page)
    enable(page)
    page.locator(f"{PANEL}exemplar_prompt textarea").fill("a slice of pizza")
    # no other test has this prompt: each run's report differs from the one shown before it
    for report in ("inverted in 20 evaluations", "stored inversion"):
        generate(page)
        expect_report(page, report)

    page.locator(f"{PANEL}more > .label-wrap").click()
    release, released = page.locator(f"{PANEL}release"), page.locator(f"{PANEL}released").last
    release.click()
    playwright_api.expect(released).to_have_text(re.compile(r"^\s*Released (?!0\.0)\d+\.\d MB\.\s*$"))
    release.click()
    playwright_api.expect(released).to_have_text("Released 0.0 MB.")

    generate(page)
    expect_report(page, "inverted in 20 evaluations")
