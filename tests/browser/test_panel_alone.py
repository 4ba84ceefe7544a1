"""The panel alone in a real browser, under the gradio of AUTOMATIC1111 1.10, without a WebUI.

With RIVAL_SCREENSHOTS naming a folder, the panel is saved there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from rival_ext.settings import similarity_values
from tests.browser.alone.serving import open_all, open_browser, opened_page, served_address, switch_on  # noqa: F401
from tests.browser.pages import PANEL, ROOT, playwright_api, preview, set_number, upload

pytestmark = pytest.mark.slow

IN_ORDER = [
    *("enabled-checkbox", "mode", "similarity", "slots", "weight", "exemplar_prompt"),
    *("prompt_png_info", "prompt_clip", "prompt_deepbooru", "recommend", "check"),
    *("t_align", "t_early", "early_steps", "start", "alignment", "features", "start_mix", "uncond_share", "strength"),
    *("layers", "exemplar_tokens", "feature_nodes", "chain", "inversion_nodes", "inversion_iterations"),
    "plain_inversion",
    *("preset", "preset_save", "preset_delete", "release"),
]
"""The controls that the keyboard reaches with all accordions open, from top to bottom. gradio's image control it cannot
reach."""

UNNAMED = """panel => [...panel.querySelectorAll("input:not([type=file]), textarea, button")]
    .filter(control => control.offsetParent)
    .filter(control => ![
        ...[...(control.labels ?? [])].map(label => label.innerText),
        ...[control.getAttribute("aria-label"), control.title, control.innerText],
        control.closest(".block")?.querySelector("label, [data-testid=block-label]")?.innerText,
    ].some(name => name?.trim()))
    .map(control => control.outerHTML)"""
"""JavaScript that lists the controls of the panel that have no name."""


def write(page, name, value):
    control = page.locator(f"{PANEL}{name} input")
    control.fill(value)
    control.press("Enter")


def apply_preset(page, title):
    write(page, "preset", title)


def test_every_setting_goes_through_the_panel_and_comes_back_from_the_generation_parameters(page):
    switch_on(page)
    open_all(page)
    numbers = {
        **{"similarity": 0.75, "t_align": 450, "t_early": 350, "early_steps": 960, "start_mix": 0.25},
        **{"inversion_iterations": 2, "exemplar_tokens": 0.5, "strength": 0.8, "weight": 0.4},
    }
    page.locator(f"{PANEL}mode label", has_text="edit").click()
    playwright_api.expect(page.locator(f"{PANEL}early_steps input[type=number]")).to_have_value("900")
    set_number(page, f"{PANEL}similarity", 0.75)
    similar = similarity_values(0.75)
    playwright_api.expect(page.locator(f"{PANEL}t_align input[type=number]")).to_have_value(str(similar["t_align"]))
    for name, value in numbers.items():
        set_number(page, f"{PANEL}{name}", value)
    choices = {"alignment": "latent", "features": "live"}
    page.locator(f"{PANEL}alignment label", has_text="latent").click()
    # 7 is none of those that the list offers
    nodes = {"inversion_nodes": "all", "feature_nodes": "7"}
    for name, value in nodes.items():
        write(page, name, value)
    page.locator(f"{PANEL}features label", has_text="live").click()
    page.locator(f"{PANEL}exemplar_prompt textarea").fill("a pizza, hot")
    page.locator(f"{PANEL}exact input").check()

    page.locator("#img2img_generate").click()
    answer = page.locator("#img2img_answer textarea")
    playwright_api.expect(answer).to_have_value(re.compile("RIVAL mode"))
    parameters = answer.input_value()

    page.reload()
    page.locator(f"{PANEL}mode").wait_for()
    open_all(page)
    answer.fill(parameters)
    answer.blur()
    page.locator("#img2img_paste").click()
    playwright_api.expect(page.locator(f"{PANEL}enabled-checkbox input")).to_be_checked()
    for name, value in numbers.items():
        playwright_api.expect(page.locator(f"{PANEL}{name} input[type=number]")).to_have_value(str(value))
    for name, value in {**choices, "mode": "edit"}.items():
        playwright_api.expect(page.locator(f"{PANEL}{name} input:checked")).to_have_value(value)
    # what live features hide is set nevertheless
    page.locator(f"{PANEL}features label", has_text="recorded").click()
    for name, value in nodes.items():
        playwright_api.expect(page.locator(f"{PANEL}{name} input")).to_have_value(value)
    playwright_api.expect(page.locator(f"{PANEL}exemplar_prompt textarea")).to_have_value("a pizza, hot")
    playwright_api.expect(page.locator(f"{PANEL}exact input")).to_be_checked()


def test_controls_without_effect_are_hidden(page):
    switch_on(page)
    open_all(page)

    def expect_shown(shown, *names):
        for name in names:
            playwright_api.expect(page.locator(f"{PANEL}{name}")).to_be_visible(visible=shown)

    inversion = ("inversion_nodes", "inversion_iterations")
    expect_shown(True, "t_early", "feature_nodes", *inversion)
    expect_shown(False, "exact")
    page.locator(f"{PANEL}chain label", has_text="noised").click()
    expect_shown(False, *inversion)
    playwright_api.expect(preview(page)).to_contain_text("Noises the img2img image in 8 evaluations")
    page.locator(f"{PANEL}features label", has_text="live").click()
    expect_shown(False, "feature_nodes")
    page.locator(f"{PANEL}chain label", has_text="inverted").click()
    expect_shown(True, *inversion)
    page.locator(f"{PANEL}mode label", has_text="edit").click()
    playwright_api.expect(preview(page)).to_contain_text("Inverts the img2img image in 16 evaluations")


def test_the_part_that_is_painted_over_is_the_region(page):
    switch_on(page)
    open_all(page)
    upload(page, f"{PANEL}exemplar", ROOT / "demo" / "house.png")
    playwright_api.expect(preview(page)).to_contain_text("Inverts the uploaded exemplar")
    page.locator("#img2img_generate").click()
    page.locator("#img2img_seen img").wait_for()
    assert page.locator("#img2img_region img").count() == 0

    canvas = page.locator(f"{PANEL}exemplar canvas[key=interface]")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    canvas.hover()
    left, top = box["x"] + box["width"] / 3, box["y"] + box["height"] / 3
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(left + box["width"] / 3, top + box["height"] / 3, steps=10)
    page.mouse.up()
    page.locator("#img2img_generate").click()
    page.locator("#img2img_region img").wait_for()


def test_the_prompt_buttons_read_the_image_that_is_shown(page):
    prompt = page.locator(f"{PANEL}exemplar_prompt textarea")
    page.locator(f"{PANEL}prompt_clip").click()
    playwright_api.expect(page.locator(f"{PANEL}message").last).to_have_text(
        "There is no exemplar to read: upload one."
    )
    upload(page, "#img2img_image")
    for button, text in {"clip": "a slice of pizza", "deepbooru": "pizza, food"}.items():
        page.locator(f"{PANEL}prompt_{button}").click()
        playwright_api.expect(prompt).to_have_value(text)


@pytest.mark.parametrize(("preset", "similarity"), [("inspired", 0.2), ("default", 0.5), ("close", 0.8)])
def test_a_built_in_preset_is_a_similarity_with_everything_else_at_its_default(page, preset, similarity):
    open_all(page)
    set_number(page, f"{PANEL}early_steps", 555)
    page.locator(f"{PANEL}exemplar_prompt textarea").fill("a pizza")
    apply_preset(page, preset)
    for name, value in {"similarity": similarity, "early_steps": 1000, **similarity_values(similarity)}.items():
        playwright_api.expect(page.locator(f"{PANEL}{name} input[type=number]")).to_have_value(f"{value:g}")
    # it says nothing of the image at hand
    playwright_api.expect(page.locator(f"{PANEL}exemplar_prompt textarea")).to_have_value("a pizza")


def test_the_preset_paper_is_the_authors_form_in_the_present_mode(page):
    open_all(page)
    set_number(page, f"{PANEL}similarity", 0.9)
    page.locator(f"{PANEL}mode label", has_text="edit").click()
    playwright_api.expect(page.locator(f"{PANEL}early_steps input[type=number]")).to_have_value("900")
    set_number(page, f"{PANEL}early_steps", 555)
    apply_preset(page, "paper")
    numbers = {"early_steps": 900, "start_mix": 0, "uncond_share": 1, "t_align": 600, "t_early": 600, "strength": 1}
    for name, value in numbers.items():
        playwright_api.expect(page.locator(f"{PANEL}{name} input[type=number]")).to_have_value(str(value))
    for name, value in {"mode": "edit", "start": "permuted"}.items():
        playwright_api.expect(page.locator(f"{PANEL}{name} input:checked")).to_have_value(value)


def test_a_built_in_preset_is_neither_saved_over_nor_deleted(page):
    open_all(page)
    apply_preset(page, "close")
    message = page.locator(f"{PANEL}preset_message").last
    page.locator(f"{PANEL}preset_save").click()
    playwright_api.expect(message).to_have_text("The preset close is built in: save yours under another name.")
    page.locator(f"{PANEL}preset_delete").click()
    playwright_api.expect(message).to_have_text("The preset close is built in and stays.")
    assert page.evaluate("localStorage.getItem('rival-presets')") is None


def test_presets_of_before_are_applied_whatever_their_names(page):
    # lists of values, in the order of the fields of that time
    values = ["edit", 0.5, 321, 654, 0.5, 1, 1, 1, "a bee", "fine", 0.5, 900, "latent", 2, 0.5, "live", False, False]
    stored = {"close": values, "mine": ["text", 0.5, 123, *values[3:]]}
    page.evaluate("stored => localStorage.setItem('rival-presets', JSON.stringify(stored))", stored)
    open_all(page)
    set_number(page, f"{PANEL}uncond_share", 0.3)
    for title, (mode, t_align) in {"mine": ("text", 123), "close (yours)": ("edit", 321)}.items():
        apply_preset(page, title)
        numbers = {"t_align": t_align, "start_mix": 0.5, "inversion_iterations": 2, "uncond_share": 1}
        for name, value in numbers.items():
            playwright_api.expect(page.locator(f"{PANEL}{name} input[type=number]")).to_have_value(str(value))
        for name, value in {"mode": mode, "start": "permuted", "features": "live", "chain": "inverted"}.items():
            playwright_api.expect(page.locator(f"{PANEL}{name} input:checked")).to_have_value(value)
        for name in ("inversion_nodes", "feature_nodes"):
            playwright_api.expect(page.locator(f"{PANEL}{name} input")).to_have_value("all")
    page.locator(f"{PANEL}preset_delete").click()
    page.wait_for_function("!localStorage.getItem('rival-presets').includes('321')")
    assert "123" in page.evaluate("localStorage.getItem('rival-presets')")


def test_a_name_that_no_preset_has_changes_nothing(page):
    broken = []
    page.on("pageerror", lambda error: broken.append(error))
    open_all(page)
    set_number(page, f"{PANEL}t_align", 450)
    name = page.locator(f"{PANEL}preset input")
    # every JavaScript object has a property of this name
    name.fill("constructor")
    name.press("Enter")
    page.locator(f"{PANEL}preset_save").click()
    page.wait_for_function("localStorage.getItem('rival-presets')?.includes('constructor')")
    page.locator(f"{PANEL}preset_delete").click()
    page.wait_for_function("localStorage.getItem('rival-presets') === '{}'")
    name.fill("constructor")
    name.press("Enter")
    # what is done after it comes to its end
    name.fill("after")
    name.press("Enter")
    page.locator(f"{PANEL}preset_save").click()
    page.wait_for_function("localStorage.getItem('rival-presets')?.includes('after')")
    playwright_api.expect(page.locator(f"{PANEL}t_align input[type=number]")).to_have_value("450")
    page.locator(f"{PANEL}preset_delete").click()
    page.wait_for_function("localStorage.getItem('rival-presets') === '{}'")
    assert broken == []


def test_every_control_has_a_name(page):
    switch_on(page)
    open_all(page)
    assert page.locator(f"{PANEL}enabled").evaluate(UNNAMED) == []


def test_the_keyboard_reaches_everything_from_the_top_to_the_bottom(page):
    open_all(page)
    page.locator(f"{PANEL}enabled-checkbox input").focus()
    seen = []
    while "release" not in seen and len(seen) < 200:
        name = page.evaluate(
            "() => document.activeElement.closest('[id^=img2img_rival_]')?.id.replace('img2img_rival_', '')"
        )
        seen.append(name)
        page.keyboard.press("Tab")
    reached = [name for name in dict.fromkeys(seen) if name in IN_ORDER]
    assert reached == [name for name in IN_ORDER if name in reached]
    assert set(IN_ORDER) - set(reached) == set()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 700, 420])
def test_the_panel_fits_its_page(page, address, theme, width):
    page.set_viewport_size({"width": width, "height": 1000})
    page.goto(f"{address}/?__theme={theme}")
    page.locator(f"{PANEL}mode").wait_for()
    switch_on(page)
    open_all(page)
    panel = page.locator(f"{PANEL}enabled")
    assert panel.evaluate("panel => panel.scrollWidth <= panel.clientWidth")
    folder = os.environ.get("RIVAL_SCREENSHOTS")
    if folder:
        panel.screenshot(path=str(Path(folder) / f"alone-{theme}-{width}.png"))


def test_installed_twice_the_page_has_the_script_twice_and_keeps_the_first(page):
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    page.evaluate("globalThis.first = rival; 0")
    page.add_script_tag(path=str(ROOT / "javascript" / "rival.js"))
    assert page.evaluate("rival === first")
    assert errors == []
