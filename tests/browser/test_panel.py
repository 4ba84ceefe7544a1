"""The panel in a real browser on a real WebUI: what a user does, and what the page shows.

With RIVAL_SCREENSHOTS naming a folder, the page is saved there as the README shows it.
"""

from __future__ import annotations

import re

import pytest
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from rival_ext.settings import similarity_values
from tests.browser.pages import (
    PANEL,
    ROOT,
    WIDE,
    choose,
    chromium,
    enable,
    expect_preview,
    expect_report,
    fill_in,
    generate,
    open_img2img,
    paint,
    playwright_api,
    preview,
    screenshot,
    set_number,
    set_up,
    show_img2img,
    upload,
)
from tests.host.servers import PATIENCE, WEBUIS


@pytest.fixture(scope="module", params=WEBUIS)
def server(request, tmp_path_factory):
    webui = WEBUIS[request.param]
    folder = webui.folder()
    if folder is None:
        pytest.skip(webui.skipped())
    # gradio 4 serves files of the WebUI only from its data folder and from folders named here
    allowed = ("--gradio-allowed-path", str(folder))
    server = webui(folder, tmp_path_factory.mktemp("webui"), flags=allowed)
    yield server
    server.stop()


@pytest.fixture
def page(server):
    with chromium() as browser:
        page = browser.new_page(viewport=WIDE)
        open_img2img(page, server)
        yield page


INFOTEXTS = {
    "AUTOMATIC1111": "Version: v1.10.1",
    "Forge": "Diffusion in Low Bits: Automatic, Version: f2.0.1v1.10.1-previous-669-gdfdcbab6",
    "reForge": "Version: f1.0.0v2-v1.10.1RC-latest-2510-g3b56b268",
}
"""The end of an infotext from each WebUI. Each infotext is pasted into all WebUIs."""


def test_variations_from_the_panel(page):
    set_up(page)
    enable(page)
    generate(page)
    assert "RIVAL report: 10 layers" in page.locator("#html_info_img2img").last.inner_text()
    # the report as sentences, under the gallery
    log = page.locator("#html_log_img2img").last
    playwright_api.expect(log).to_contain_text(
        "10 self-attention layers saw the exemplar's recorded features in 20 of 20"
    )
    page.locator("#img2img_gallery img").first.wait_for()
    screenshot(page, "panel.png")


@pytest.mark.parametrize("host", INFOTEXTS)
def test_a_pasted_infotext_brings_every_control_back(page, host):
    page.locator("#img2img_prompt textarea").fill(
        "a pizza\nSteps: 20, Sampler: Euler, RIVAL mode: edit, RIVAL t_align: 450, RIVAL t_early: 350, "
        "RIVAL early_steps: 960, RIVAL alignment: latent, RIVAL start_mix: 0.25, RIVAL similarity: 0.75, "
        'RIVAL layers: "8, 16", RIVAL strength: 0.8, RIVAL weight_2: 0.3, RIVAL plain_inversion: True, '
        'RIVAL exemplar_prompt: "a pizza, hot", RIVAL inversion_iterations: 2, ' + INFOTEXTS[host]
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
    expect(page.locator(f"{PANEL}layers input")).to_have_value("8,16")
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
    # no other test has this prompt, so each report differs from the one that was shown before
    for report in ("inverted in 10 evaluations", "stored inversion"):
        generate(page)
        expect_report(page, report)

    page.locator(f"{PANEL}more > .label-wrap").click()
    release, released = page.locator(f"{PANEL}release"), page.locator(f"{PANEL}released").last
    release.click()
    playwright_api.expect(released).to_have_text(re.compile(r"^\s*Released (?!0\.0)\d+\.\d MB for other runs\.\s*$"))
    release.click()
    playwright_api.expect(released).to_have_text("No inversion of yours is stored.")

    generate(page)
    expect_report(page, "inverted in 10 evaluations")


def test_a_mode_and_a_similarity_set_the_values_for_which_they_stand(page):
    enable(page)
    expect = playwright_api.expect

    def number(name):
        return page.locator(f"{PANEL}{name} input[type=number]")

    choose(page, "img2img", "edit")
    expect(number("start_mix")).to_have_value("0")
    expect(number("early_steps")).to_have_value("900")
    set_number(page, f"{PANEL}similarity", 0.75)
    for name, value in similarity_values(0.75).items():
        expect(number(name)).to_have_value(f"{value:g}")
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
    assert "RivalError: RIVAL: exemplar is missing, and txt2img has no image" in sentence.inner_text()

    upload(page, "#txt2img_rival_exemplar", ROOT / "demo" / "house.png")
    generate(page, "txt2img")
    expect_report(page, "RIVAL mode: text", "txt2img")
    expect_report(page, "RIVAL report: 10 layers", "txt2img")
    screenshot(page, "panel-txt2img.png")


def test_a_mask_is_filled_in_the_inpaint_upload_tab(page, tmp_path):
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
def test_a_mask_painted_by_hand_is_filled(page, tab, image):
    page.locator("#mode_img2img > .tab-nav").get_by_text(tab, exact=True).click()
    paint(page, image)
    fill_in(page, "img2img", "a pizza", cfg_scale=7, denoising_strength=1, batch_size=2)
    enable(page)
    choose(page, "img2img", "inpaint")
    generate(page)
    expect_report(page, "RIVAL mode: inpaint")
    expect_report(page, "RIVAL report: 10 layers; 20 of 20 steps injected")


def test_the_preview_says_what_the_run_will_do_and_knows_what_is_stored(page):
    upload(page, "#img2img_image", ROOT / "demo" / "house.png")
    fill_in(page, "img2img", "", cfg_scale=12, denoising_strength=0.75, batch_size=2, batch_count=2)
    enable(page)
    expect_preview(page, "Inverts the img2img image in 10 evaluations, then makes 4 images.")
    expect_preview(page, "A high CFG scale")
    page.locator(f"{PANEL}recommend").click()
    playwright_api.expect(page.locator("#img2img_denoising_strength input[type=number]")).to_have_value("0.65")
    playwright_api.expect(page.locator("#img2img_cfg_scale input[type=number]")).to_have_value("5")
    expect_preview(page, "Inverts the img2img image in 10 evaluations")
    set_number(page, "#img2img_denoising_strength", 1)
    expect_preview(page, "Without a prompt, a high denoising strength loses most of the content: set it to 0.65")
    expect_preview(page, "Inverts the img2img image in 10 evaluations, then makes 4 images.")
    playwright_api.expect(preview(page)).not_to_contain_text("CFG scale")
    generate(page)
    expect_preview(page, "Uses the stored inversion; makes 4 images.")

    # the seed and t_align change no inversion, the steps and the width do
    page.locator(f"{PANEL}more > .label-wrap").click()
    set_number(page, "#img2img_seed", 7)
    set_number(page, f"{PANEL}t_align", 300)
    expect_preview(page, "t_align 300")
    expect_preview(page, "Uses the stored inversion")
    for name, other, former in (("#img2img_steps", 21, 20), ("#img2img_width", 192, 128)):
        set_number(page, name, other)
        expect_preview(page, "Inverts the img2img image")
        set_number(page, name, former)
        expect_preview(page, "Uses the stored inversion")
    page.locator(f"{PANEL}exemplars > .label-wrap").click()
    upload(page, f"{PANEL}exemplar")
    expect_preview(page, "Inverts the uploaded exemplar in 10 evaluations")


def test_a_check_shows_the_exemplar_and_its_reconstruction(page):
    upload(page, "#img2img_image", ROOT / "demo" / "house.png")
    fill_in(page, "img2img", "a house", cfg_scale=5, denoising_strength=1, steps=60)
    enable(page)
    page.locator(f"{PANEL}check").click()
    # the progress is in the WebUI's own bar and in the page's title
    playwright_api.expect(page.locator("#img2img_results .progress")).to_contain_text(
        re.compile(r"Inverting \d+/60 \d+%")
    )
    page.wait_for_function(r"/^\[Inverting \d+\/60 \d+%.*\] /.test(document.title)")
    playwright_api.expect(page.locator(f"{PANEL}verdict .rival-good")).to_contain_text(re.compile(r"\d\d\.\d dB"))
    playwright_api.expect(page.locator(f"{PANEL}checked .thumbnail-item img")).to_have_count(3)
    expect_preview(page, "Uses the stored inversion")
    generate(page)
    expect_report(page, "stored inversion")
    # a second check inverts nothing
    page.locator(f"{PANEL}check").click()
    playwright_api.expect(page.locator(f"{PANEL}verdict").last).to_contain_text("the stored inversion")
    screenshot(page, "panel-check.png")


def test_a_check_is_interrupted_as_a_run_is(page):
    upload(page, "#img2img_image", ROOT / "demo" / "house.png")
    fill_in(page, "img2img", "", denoising_strength=1, steps=150)
    enable(page)
    page.locator(f"{PANEL}check").click()
    playwright_api.expect(page.locator("#img2img_results .progress")).to_contain_text("Inverting")
    page.locator("#img2img_interrupt").click()
    playwright_api.expect(page.locator(f"{PANEL}verdict .error")).to_contain_text("RIVAL: the check was interrupted")
    page.locator("#img2img_interrupt").wait_for(state="hidden")
    playwright_api.expect(page.locator("#img2img_generate")).to_be_visible()


def test_a_check_without_an_image_says_so(page):
    enable(page)
    page.locator(f"{PANEL}check").click()
    playwright_api.expect(page.locator(f"{PANEL}verdict .error")).to_contain_text(
        "RivalError: RIVAL: exemplar is missing"
    )


def test_a_prompt_button_fills_in_the_prompt_or_says_why_it_cannot(page, tmp_path):
    enable(page)
    prompt, message = page.locator(f"{PANEL}exemplar_prompt textarea"), page.locator(f"{PANEL}message").last
    page.locator(f"{PANEL}prompt_png_info").click()
    playwright_api.expect(message).to_have_text("There is no exemplar to read: upload one.")

    upload(page, "#img2img_image")
    page.locator(f"{PANEL}prompt_png_info").click()
    playwright_api.expect(message).to_contain_text("the exemplar's file contains no prompt")
    # the interrogators have no model here and no network to download one
    page.locator(f"{PANEL}prompt_clip").click()
    playwright_api.expect(message).to_contain_text("The exemplar could not be described")

    info = PngInfo()
    info.add_text(
        "parameters", "a pizza <lora:other:1>, hot\nNegative prompt: cold\nSteps: 20, Sampler: Euler, Seed: 1"
    )
    Image.open(ROOT / "demo" / "pizza.png").save(tmp_path / "made.png", pnginfo=info)
    page.locator(f"{PANEL}exemplars > .label-wrap").click()
    upload(page, f"{PANEL}exemplar", tmp_path / "made.png")
    expect_preview(page, "the uploaded exemplar")
    page.locator(f"{PANEL}prompt_png_info").click()
    playwright_api.expect(prompt).to_have_value("a pizza , hot")
    playwright_api.expect(message).to_have_text("")


def test_controls_without_effect_are_hidden(page):
    enable(page)
    page.locator(f"{PANEL}more > .label-wrap").click()
    expect = playwright_api.expect
    expect(page.locator(f"{PANEL}exact")).to_be_hidden()
    page.locator(f"{PANEL}exemplar_prompt textarea").fill("a pizza")
    expect(page.locator(f"{PANEL}exact")).to_be_visible()
    expect(page.locator(f"{PANEL}t_early")).to_be_visible()
    page.locator(f"{PANEL}alignment label", has_text="off").click()
    expect(page.locator(f"{PANEL}t_early")).to_be_hidden()
    assert page.locator("#txt2img_rival_mode label").count() == 3


def test_a_preset_is_remembered_by_the_browser(page):
    enable(page)
    page.locator(f"{PANEL}more > .label-wrap").click()
    expect = playwright_api.expect
    name, t_align = page.locator(f"{PANEL}preset input"), page.locator(f"{PANEL}t_align input[type=number]")
    set_number(page, f"{PANEL}t_align", 444)
    choose(page, "img2img", "edit")
    name.fill("mine")
    name.press("Enter")
    page.locator(f"{PANEL}preset_save").click()
    page.wait_for_function("localStorage.getItem('rival-presets')?.includes('mine')")

    page.reload()
    show_img2img(page)
    enable(page)
    page.locator(f"{PANEL}more > .label-wrap").click()
    expect(t_align).to_have_value("800")
    name.click()
    page.locator(f"{PANEL}preset li", has_text="mine").click()
    expect(t_align).to_have_value("444")
    expect(page.locator(f"{PANEL}mode input:checked")).to_have_value("edit")
    page.locator(f"{PANEL}preset_delete").click()
    page.wait_for_function("localStorage.getItem('rival-presets') === '{}'")


def test_an_image_of_the_gallery_becomes_the_exemplar(page):
    page.locator("#tabs > .tab-nav > button", has_text="txt2img").first.click()
    fill_in(page, "txt2img", "a red apple", cfg_scale=7)
    generate(page, "txt2img")
    page.locator("#txt2img_rival_use").click()
    page.locator("#txt2img_rival_exemplar img").first.wait_for()
    playwright_api.expect(page.locator("#txt2img_rival_enabled .input-accordion-checkbox")).to_be_checked()
    expect_preview(page, "Inverts the uploaded exemplar", "txt2img")
    generate(page, "txt2img")
    expect_report(page, "RIVAL report: 10 layers", "txt2img")

    # an image that is sent to the other tab takes its values with it
    set_number(page, "#txt2img_rival_similarity", 0.75)
    page.locator("#txt2img_send_to_img2img").click()
    page.locator("#img2img_image img").first.wait_for()
    playwright_api.expect(page.locator(f"{PANEL}enabled .input-accordion-checkbox")).to_be_checked()
    playwright_api.expect(page.locator(f"{PANEL}similarity input[type=number]")).to_have_value("0.75")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 420])
def test_the_panel_fits_its_page(page, server, theme, width):
    page.set_viewport_size({"width": width, "height": 1000})
    page.goto(f"{server.url}/?__theme={theme}")
    show_img2img(page)
    enable(page)
    for accordion in ("exemplars", "more"):
        page.locator(f"{PANEL}{accordion} > .label-wrap").click()
    panel = page.locator(f"{PANEL}enabled")
    upload(page, f"{PANEL}exemplar", ROOT / "demo" / "house.png")
    expect_preview(page, "the uploaded exemplar")
    assert panel.evaluate("panel => panel.scrollWidth <= panel.clientWidth")
    screenshot(page, f"panel-{theme}-{width}.png", part=panel)


@pytest.mark.parametrize("at_call", [5, 25])
def test_a_page_closed_during_a_run_leaves_a_server_for_the_next(server, page, at_call):
    """At call 5 the run is inverting, at call 25 it is sampling."""
    set_up(page)
    enable(page)
    server.client.delete("/rival/v1/store").raise_for_status()
    server.plan(at_call, "wait")
    page.locator("#img2img_generate").click()
    assert server.is_waiting(PATIENCE)
    other = page.context.browser.new_page(viewport=WIDE)
    page.close()
    server.release()
    other.goto(f"{server.url}/?__theme=light")
    show_img2img(other)
    set_up(other)
    enable(other)
    generate(other)
    # the closed page's run has ended, and its inversion is stored
    expect_report(other, "stored inversion")
    assert server.leftovers() == []
    assert server.is_idle()
