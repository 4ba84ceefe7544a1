"""Two users of a real WebUI that asks for passwords, each with a browser; and the files that their work leaves."""

from __future__ import annotations

import re
from contextlib import contextmanager

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.browser.pages import (
    CHROMIUM,
    PANEL,
    WIDE,
    chromium,
    enable,
    expect_preview,
    expect_report,
    generate,
    open_img2img,
    playwright_api,
    set_number,
    set_up,
    show_img2img,
    upload,
)
from tests.host.asking import request
from tests.host.data_folder import ROOT
from tests.host.servers import RealServer, real_folder
from tests.host.test_routes import asked

pytestmark = pytest.mark.long

PASSWORDS = {"ann": "secret", "bob": "other"}
MARK = '<img src=x onerror="window.taken=1">'
"""Text that runs a script if a page takes it for HTML."""

WRITTEN = re.compile(
    r"data/(outputs|cache|config_states|tmp)/|data/(params\.txt|config\.json|ui-config\.json|cache\.json|log\.txt)$"
    r"|temporary/gradio/"
)
"""The places where the WebUI writes, and where gradio keeps the files that a page shows or uploads."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The WebUI's data, the home and the temporary folder of its process."""
    base = tmp_path_factory.mktemp("webui")
    for name in ("home", "temporary"):
        (base / name).mkdir()
    return {name: base / name for name in ("data", "home", "temporary")}


@pytest.fixture(scope="module")
def server(folders):
    """A real WebUI with two users, whose images are saved."""
    if real_folder() is None:
        pytest.skip("real WebUI: none found; set RIVAL_WEBUI to its folder")
    if CHROMIUM is None:
        pytest.skip("browser: no Chromium found")
    users = ",".join(map(":".join, PASSWORDS.items()))
    server = RealServer(
        *(real_folder(), folders["data"]),
        options={"samples_save": True, "grid_save": True},
        flags=("--gradio-auth", users),
        environment={"HOME": str(folders["home"]), "TMPDIR": str(folders["temporary"])},
    )
    yield server
    server.stop()


@pytest.fixture
def log_in(server):
    """(user) -> the img2img tab in a browser that this user has logged in with."""
    with chromium() as browser:

        def log_in(user):
            context = browser.new_context(viewport=WIDE)
            context.request.post(f"{server.url}/login", form={"username": user, "password": PASSWORDS[user]})
            page = context.new_page()
            open_img2img(page, server)
            return page

        yield log_in


def vary(page, seed):
    """Make one variation and return its infotext."""
    set_number(page, "#img2img_seed", seed)
    generate(page)
    expect_report(page, f"Seed: {seed},")
    return page.locator("#html_info_img2img").last.inner_text()


def check(page, says="dB"):
    """Check the inversion and expect a text in the verdict or in the line below it."""
    page.locator(f"{PANEL}check").click()
    playwright_api.expect(page.locator(f"{PANEL}verdict").last).to_contain_text(says)


def release(page, says):
    """Release the stored inversions with the button and expect a sentence."""
    if not page.locator(f"{PANEL}release").is_visible():
        page.locator(f"{PANEL}more > .label-wrap").click()
    page.locator(f"{PANEL}release").click()
    playwright_api.expect(page.locator(f"{PANEL}released").last).to_have_text(re.compile(says))


def test_one_of_two_users_sees_nothing_of_the_others_inversions(server, log_in):
    ann, bob = log_in("ann"), log_in("bob")
    for page in (ann, bob):
        set_up(page)
        enable(page)
    assert "inverted in 10 evaluations" in vary(ann, 1)
    assert "stored inversion" in vary(ann, 2)
    expect_preview(ann, "Uses the stored inversion")

    set_number(bob, "#img2img_seed", 3)
    expect_preview(bob, "Inverts the img2img image in 10 evaluations")
    release(bob, "No inversion of yours is stored")
    assert "inverted in 10 evaluations" in vary(bob, 4)
    expect_preview(bob, "Uses the stored inversion")
    check(bob, "the stored inversion")

    assert server.client.get("/rival/v1/store").json() == {"bytes": 0, "chains": []}
    assert server.client.delete("/rival/v1/store").json() == {"bytes": 0, "chains": 0}
    same = request({}, image=Image.open(ROOT / "demo" / "pizza.png"), steps=20, user="ann")
    assert "inverted in" in server.img2img(**same).infotexts[0]
    assert len(server.client.get("/rival/v1/store").json()["chains"]) == 1

    release(bob, r"Released (?!0\.0)\d+\.\d MB")
    assert "stored inversion" in vary(ann, 5)
    check(ann, "the stored inversion")
    check(bob, "UNet rows")


def test_the_images_of_a_check_are_not_served_without_a_login(server, log_in):
    page = log_in("ann")
    set_up(page)
    enable(page)
    check(page)
    shown = page.locator(f"{PANEL}checked .thumbnail-item img")
    playwright_api.expect(shown).to_have_count(3)
    for image in shown.all():
        address = image.get_attribute("src")
        assert "/file=" in address
        assert page.request.get(address).status == 200
        assert httpx.get(address).status_code == 401


@contextmanager
def unmarked(page):
    """Expect that nothing in the block makes the page take `MARK` for HTML."""
    yield
    assert page.evaluate("window.taken") is None
    assert page.locator("img[src=x]").count() == 0


def test_what_a_user_writes_is_never_part_of_the_page(log_in, tmp_path):
    page = log_in("ann")
    set_up(page)
    enable(page)
    page.locator(f"{PANEL}more > .label-wrap").click()
    log = page.locator("#html_log_img2img").last
    with unmarked(page):
        # a prompt, and the name of a LoRA
        page.locator("#img2img_prompt textarea").fill(f"{MARK} <lora:{MARK}:1> <lora:{MARK[1:-1]}:1>")
        vary(page, 1)
        playwright_api.expect(page.locator("#html_info_img2img").last).to_contain_text("onerror")
        page.locator("#img2img_prompt textarea").fill("")

    with unmarked(page):
        # a refusal that names the value
        layers = page.locator(f"{PANEL}layers input")
        layers.fill(MARK)
        layers.press("Enter")
        generate(page)
        playwright_api.expect(log).to_contain_text("layers must be")
        playwright_api.expect(log).to_contain_text("onerror")
        page.locator(f"{PANEL}check").click()
        playwright_api.expect(page.locator(f"{PANEL}verdict .error")).to_contain_text("onerror")

    with unmarked(page):
        name = page.locator(f"{PANEL}preset input")
        name.fill(MARK)
        name.press("Enter")
        page.locator(f"{PANEL}preset_save").click()
        page.wait_for_function("localStorage.getItem('rival-presets')?.includes('onerror')")
        page.reload()
        show_img2img(page)
        enable(page)
        page.locator(f"{PANEL}more > .label-wrap").click()
        name.click()
        playwright_api.expect(page.locator(f"{PANEL}preset li")).to_contain_text([MARK])

    with unmarked(page):
        # generation parameters from a stranger
        pasted = ", ".join(f'RIVAL {name}: "{MARK[:-1]}"' for name in ("mode", "t_align", "layers", "exemplar_prompt"))
        page.locator("#img2img_prompt textarea").fill(f"{MARK}\nSteps: 20, Sampler: {MARK[:-1]}, {pasted}")
        page.locator("#img2img_tools #paste, #tab_img2img #paste").first.click()
        playwright_api.expect(page.locator(f"{PANEL}exemplar_prompt textarea")).to_have_value(re.compile("onerror"))
        expect_preview(page, "t_align")
    with unmarked(page):
        info = PngInfo()
        info.add_text("parameters", f"{MARK}\nSteps: 20, Sampler: Euler, Seed: 1")
        Image.open(ROOT / "demo" / "pizza.png").save(tmp_path / "made.png", pnginfo=info)
        upload(page, "#img2img_image", tmp_path / "made.png")
        page.locator(f"{PANEL}prompt_png_info").click()
        playwright_api.expect(page.locator(f"{PANEL}exemplar_prompt textarea")).to_have_value(MARK)


def files(folders):
    """List the time of change of every file in these folders, without the files of Python and of the tests."""
    found = {}
    for name, folder in folders.items():
        for path in folder.rglob("*"):
            parts = path.relative_to(folder).parts
            if path.is_file() and not any(part.startswith(".") or part in ("__pycache__", "venv") for part in parts):
                found[f"{name}/{'/'.join(parts)}"] = path.stat().st_mtime_ns
    return found


def test_nothing_is_written_but_where_the_webui_writes(server, log_in, folders):
    watched = {**folders, "extension": ROOT, "webui": real_folder()}
    before = files(watched)
    page = log_in("ann")
    set_up(page)
    enable(page)
    vary(page, 1)
    check(page)
    page.locator(f"{PANEL}more > .label-wrap").click()
    page.locator(f"{PANEL}preset input").fill("mine")
    page.locator(f"{PANEL}preset input").press("Enter")
    page.locator(f"{PANEL}preset_save").click()
    page.wait_for_function("localStorage.getItem('rival-presets')?.includes('mine')")
    page.locator("#img2img_rival_use").click()
    expect_preview(page, "the uploaded exemplar")
    vary(page, 2)
    plotted = server.img2img(**request({}), plot=[("[RIVAL] Similarity", "0.25, 0.75"), ("Seed", "1")])
    assert len(plotted.images) == 2
    assert server.client.post("/rival/v1/invert", json=asked()).status_code == 200
    server.set(rival_memory_mb=1024)

    changed = {name for name, when in files(watched).items() if before.get(name) != when}
    assert [name for name in changed if not WRITTEN.match(name)] == []
    assert any(name.startswith("data/outputs/") for name in changed)
    # two runs with four images and a grid each, and the plot's grid: a check and the routes save nothing
    assert sum(name.endswith(".png") and name.startswith("data/outputs/") for name in changed) == 2 * 5 + 1
