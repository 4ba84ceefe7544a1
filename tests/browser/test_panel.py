"""The panel in a real browser on a real WebUI: what a person does, and what it shows.

With RIVAL_SCREENSHOTS naming a folder, the page is saved there as the README shows it.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

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


def upload(page, selector, file=ROOT / "demo" / "pizza.png"):
    page.locator(f"{selector} input[type=file]").set_input_files(str(file))
    page.locator(f"{selector} img").first.wait_for()


def paint(page, selector):
    """A photo, and a hole by hand with the widest brush."""
    page.locator(f"{selector} input[type=file]").set_input_files(str(ROOT / "demo" / "pizza.png"))
    canvas = page.locator(f"{selector} canvas[key=interface]")
    # a canvas that is not yet laid out for its photo loses what is painted
    playwright_api.expect(canvas).to_have_attribute("width", "128")
    # the first hover lets the WebUI hide the canvas for a moment, to expand it; the next waits for its return
    canvas.hover()
    page.locator(f"{selector} [aria-label='Use brush']").click()
    page.locator(f"{selector} input[type=range]").press("End")
    canvas.hover(position={"x": 200, "y": 300})
    page.mouse.down()
    for x, y in ((400, 300), (400, 360), (200, 360)):
        canvas.hover(position={"x": x, "y": y})
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
        "a pizza\nSteps: 20, Sampler: Euler, RIVAL mode: edit, RIVAL t_align: 450, RIVAL t_early: 350, "
        "RIVAL early_steps: 960, RIVAL alignment: latent, RIVAL start_mix: 0.25, RIVAL similarity: 0.75, "
        'RIVAL layers: "8, 16", RIVAL strength: 0.8, RIVAL weight_2: 0.3, RIVAL plain_inversion: True, '
        'RIVAL exemplar_prompt: "a pizza, hot", RIVAL inversion_iterations: 2'
    )
    page.locator("#img2img_tools #paste, #tab_img2img #paste").first.click()
    expect = playwright_api.expect
    expect(page.locator(f"{PANEL}enabled .input-accordion-checkbox")).to_be_checked()
    expect(page.locator(f"{PANEL}mode input:checked")).to_have_value("edit")
    numbers = {
        **{"t_align": 450, "t_early": 350, "early_steps": 960, "inversion_iterations": 2},
        **{"start_mix": 0.25, "similarity": 0.75, "strength": 0.8, "weight_2": 0.3},
    }
    for name, value in numbers.items():
        expect(page.locator(f"{PANEL}{name} input[type=number]")).to_have_value(str(value))
    expect(page.locator(f"{PANEL}layers input")).to_have_value("8, 16")
    expect(page.locator(f"{PANEL}plain_inversion input")).to_be_checked()
    expect(page.locator(f"{PANEL}exemplar_prompt textarea")).to_have_value("a pizza, hot")
    expect(page.locator(f"{PANEL}alignment input:checked")).to_have_value("latent")


def test_an_error_is_a_plain_sentence_on_the_page(page):
    set_up(page)
    enable(page)
    choose(page, "img2img", "inpaint")
    generate(page)
    sentence = page.locator("#html_log_img2img .error").first.inner_text()
    assert "RivalError: RIVAL: mode inpaint needs a mask" in sentence


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


def test_a_mode_and_the_similarity_set_what_they_stand_for(page):
    enable(page)
    expect = playwright_api.expect

    def number(name):
        return page.locator(f"{PANEL}{name} input[type=number]")

    choose(page, "img2img", "edit")
    expect(number("start_mix")).to_have_value("0")
    expect(number("early_steps")).to_have_value("900")
    set_number(page, f"{PANEL}similarity", 0.75)
    for name, value in {"t_align": "400", "t_early": "400", "start_mix": "0.5"}.items():
        expect(number(name)).to_have_value(value)
    choose(page, "img2img", "text")
    expect(number("start_mix")).to_have_value("1")
    expect(number("early_steps")).to_have_value("960")


def test_the_prompt_in_an_uploaded_exemplars_style_in_txt2img(page):
    page.locator("#tabs > .tab-nav > button", has_text="txt2img").first.click()
    fill_in(page, "txt2img", "a red apple", cfg_scale=7, batch_size=4)
    enable(page, "txt2img")
    choose(page, "txt2img", "text")
    generate(page, "txt2img")
    sentence = page.locator("#html_log_txt2img .error").first
    assert "RivalError: RIVAL: exemplar is missing: upload one in the panel" in sentence.inner_text()

    upload(page, "#txt2img_rival_exemplar", ROOT / "demo" / "house.png")
    generate(page, "txt2img")
    expect_report(page, "RIVAL mode: text", "txt2img")
    expect_report(page, "RIVAL report: 10 layers", "txt2img")
    screenshot(page, "panel-txt2img.png")


def test_a_hole_is_filled_in_the_inpaint_upload_tab(page, tmp_path):
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).rectangle((40, 40, 100, 100), fill=255)
    mask.save(tmp_path / "mask.png")
    page.locator("#mode_img2img > .tab-nav > button", has_text="Inpaint upload").click()
    upload(page, "#img_inpaint_base")
    upload(page, "#img_inpaint_mask", tmp_path / "mask.png")
    fill_in(page, "img2img", "a pizza", cfg_scale=7, denoising_strength=1, batch_size=2)
    enable(page)
    choose(page, "img2img", "inpaint")
    generate(page)
    expect_report(page, "RIVAL mode: inpaint")
    expect_report(page, "RIVAL report: 10 layers; 20 of 20 steps injected")


@pytest.mark.parametrize(
    ("tab", "image"), [("Inpaint", "#img2maskimg"), ("Inpaint sketch", "#inpaint_sketch")], ids=["mask", "sketch"]
)
def test_a_hole_painted_by_hand_is_filled(page, tab, image):
    page.locator("#mode_img2img > .tab-nav").get_by_text(tab, exact=True).click()
    paint(page, image)
    fill_in(page, "img2img", "a pizza", cfg_scale=7, denoising_strength=1, batch_size=2)
    enable(page)
    choose(page, "img2img", "inpaint")
    generate(page)
    expect_report(page, "RIVAL mode: inpaint")
    expect_report(page, "RIVAL report: 10 layers; 20 of 20 steps injected")


@pytest.mark.parametrize("tab", ["img2img", "txt2img"])
def test_the_panel_says_beforehand_what_a_sampler_does_otherwise(page, tab):
    page.locator("#tabs > .tab-nav > button", has_text=tab).first.click()
    enable(page, tab)
    note = page.locator(f"#{tab}_rival_sampler").first
    playwright_api.expect(note).not_to_contain_text("finds its own steps")
    page.locator(f"#{tab}_sampling input").click()
    page.locator(f"#{tab}_sampling li", has_text="DPM adaptive").click()
    playwright_api.expect(note).to_contain_text("finds its own steps")
