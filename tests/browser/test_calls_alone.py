"""The panel's calls while others are under way, in a real browser under both gradios, without a WebUI."""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress

import pytest

from rival_ext.settings import similarity_values
from tests.browser.alone.serving import GRADIOS, open_all, open_browser, opened_page, served_address, switch_on  # noqa: F401
from tests.browser.pages import PANEL, playwright_api, preview, set_number, upload

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("address", GRADIOS, indirect=True)]

CALL = re.compile(r"/(run/predict|queue/join)")
"""The addresses of a function's call under gradio 3 and 4."""


@contextmanager
def held(page, call, change):
    """Make a change, and hold the call to which it leads until the block ends. `call` is in the call's data."""
    routes = []

    def hold(route):
        if call in (route.request.post_data or "") and not routes:
            routes.append(route)
        else:
            route.continue_()

    page.route(CALL, hold)
    with page.expect_request(lambda request: call in (request.post_data or "")):
        change()
    yield
    routes[0].continue_()


def test_a_control_that_changes_again_during_its_call_is_previewed(page):
    switch_on(page)
    open_all(page)
    with held(page, "450", lambda: set_number(page, f"{PANEL}t_align", 450)):
        set_number(page, f"{PANEL}t_align", 300)
    playwright_api.expect(preview(page)).to_contain_text("t_align 300")


def test_an_answer_that_comes_late_is_not_shown_in_place_of_a_newer_one(page):
    switch_on(page)
    open_all(page)
    page.evaluate(
        """id => {
        globalThis.shown = [];
        const note = () => shown.push(document.getElementById(id).innerText);
        new MutationObserver(note).observe(document.getElementById(id), {childList: true, subtree: true});
    }""",
        f"{PANEL}plan".removeprefix("#"),
    )
    with held(page, "450", lambda: set_number(page, f"{PANEL}t_align", 450)):
        set_number(page, f"{PANEL}t_early", 222)
        # if this is called for at once, its answer comes first
        with suppress(playwright_api.TimeoutError):
            page.wait_for_function("shown.some(text => text.includes('t_early 222'))", timeout=1000)
    page.wait_for_function("shown.some(text => text.includes('t_align 450') && !text.includes('t_early 222'))")
    playwright_api.expect(preview(page)).to_contain_text("t_early 222")


def test_a_similarity_that_is_chosen_during_the_call_of_another_sets_its_values(page):
    open_all(page)
    with held(page, "[0.2]", lambda: set_number(page, f"{PANEL}similarity", 0.2)):
        set_number(page, f"{PANEL}similarity", 0.75)
    for name, value in similarity_values(0.75).items():
        playwright_api.expect(page.locator(f"{PANEL}{name} input[type=number]")).to_have_value(f"{value:g}")


def is_at_rest(page):
    """Whether a second passes without a call."""
    with suppress(playwright_api.TimeoutError):
        page.wait_for_event("request", lambda request: CALL.search(request.url), timeout=1000)
        return False
    return True


def test_a_page_at_rest_calls_for_nothing(page):
    switch_on(page)
    upload(page, "#img2img_image")
    # a few calls follow the upload
    assert any(is_at_rest(page) for _ in range(9))
