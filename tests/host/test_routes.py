"""The routes under /rival/v1/, on the stand-in and on each real WebUI."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rival_ext import __version__
from rival_ext.fields import FIELDS
from rival_ext.settings import parse_settings
from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import STEPS, images_of, infotext, largest_difference, psnr_of, request
from tests.host.data_folder import LORA, ROOT
from tests.host.routes import over_http, started
from tests.host.servers import WEBUIS

pytestmark = pytest.mark.long

PIZZA = base64_of(exemplar("pizza-emojione-yellow"))
EXIF_ORIENTATION = 0x0112
ROUTES = {
    "/rival/v1/invert": {"post"},
    "/rival/v1/settings/schema": {"get"},
    "/rival/v1/store": {"get", "delete"},
    "/rival/v1/store/{chain_id}": {"delete"},
    "/rival/v1/version": {"get"},
}
EXAMPLE = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module", params=["stand-in", *WEBUIS])
def started_server(request, tmp_path_factory):
    """A server without passwords."""
    with started(request.param, tmp_path_factory.mktemp("webui")) as server:
        yield server


@pytest.fixture
def server(started_server):
    """The server, with nothing stored and nothing planned for its probe."""
    started_server.client.delete("/rival/v1/store").raise_for_status()
    started_server.plan()
    return started_server


def asked(settings=None, **fields):
    """Make the body of a request to invert."""
    sizes = {"steps": STEPS, "width": 128, "height": 128, "sampler_name": "Euler"}
    return {"image": PIZZA, "settings": settings or {}, **sizes, **fields}


def inverted(server, settings=None, **fields):
    """Send a request to invert that must succeed."""
    answer = server.client.post("/rival/v1/invert", json=asked(settings, **fields))
    assert answer.status_code == 200, answer.text
    return answer.json()


def image(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


# invert


def test_an_inversion_comes_with_figures_words_and_images(server):
    answer = inverted(server, steps=20)
    assert np.array_equal(np.asarray(image(answer["original"])), np.asarray(exemplar("pizza-emojione-yellow")))
    assert psnr_of(image(answer["original"]), image(answer["reconstruction"])) > 20
    assert round(psnr_of(image(answer["ceiling"]), image(answer["reconstruction"])), 2) == answer["psnr"] > 40
    assert answer["grade"] == "good"
    assert answer["verdict"] == f"Good: the exemplar comes back at {answer['psnr']:.1f} dB; nothing to change."
    assert answer["evaluations"] == 40 == server.calls()
    assert answer["report"]["inversion"]["psnr"] == answer["psnr"]
    assert answer["seconds"] > 0
    assert not answer["stored"]


@pytest.mark.slow
def test_no_image_of_it_tells_a_prompt(server):
    answer = inverted(server, prompt="a secret pizza")
    assert not any(image(answer[name]).info for name in ("original", "ceiling", "reconstruction"))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["DDIM", "Euler", "Euler a", "DPM++ 2M"])
@pytest.mark.parametrize("settings", [{}, {"exemplar_prompt": "a pizza", "inversion_iterations": 2}])
def test_a_run_with_the_same_image_and_settings_inverts_nothing(server, sampler, settings):
    inverted(server, settings, sampler_name=sampler)
    assert "stored inversion; 0 +" in infotext(server, settings, sampler_name=sampler)
    assert inverted(server, settings, sampler_name=sampler)["stored"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{"denoising_strength": 0.6}, {"resize_mode": 1, "width": 192}, {"scheduler": "Karras"}]
)
def test_so_it_is_with_other_fields_of_the_run(server, fields):
    inverted(server, **fields)
    assert "stored inversion" in infotext(server, {}, **fields)


@pytest.mark.slow
def test_so_it_is_with_a_photo_that_lies_on_its_side(server):
    buffer = io.BytesIO()
    lying = Image.Exif()
    lying[EXIF_ORIENTATION] = 6
    exemplar("house-emojione-blue").save(buffer, "JPEG", exif=lying)
    photo = base64.b64encode(buffer.getvalue()).decode()
    answer = inverted(server, image=photo)
    upright = np.rot90(np.asarray(Image.open(buffer)), -1)
    assert np.array_equal(np.asarray(image(answer["original"])), upright)
    payload = {**request({}), "init_images": [photo]}
    assert "stored inversion" in server.img2img(**payload).infotexts[0]


@pytest.mark.slow
def test_so_it_is_with_a_lora_of_the_prompt(server):
    if server.name == "stand-in":
        pytest.skip("stand-in: it has no LoRA")
    inverted(server, prompt=f"<lora:{LORA}:0.5>")
    assert "stored inversion" in infotext(server, {}, prompt=f"a pizza <lora:{LORA}:0.5>")
    assert "inverted in" in infotext(server, {}, prompt="a pizza")


@pytest.mark.slow
def test_so_it_is_with_an_exemplar_of_txt2img(server):
    settings = {"exemplar": PIZZA, "mode": "text"}
    answer = inverted(server, settings, image=None)
    assert image(answer["original"]).size == (128, 128)
    payload = request(settings)
    del payload["init_images"], payload["denoising_strength"]
    assert "stored inversion" in server.txt2img(**payload).infotexts[0]


@pytest.mark.slow
def test_an_inversion_changes_no_image_of_the_host(server):
    plain, varied = images_of(server), images_of(server, {})
    inverted(server)
    assert server.leftovers() == []
    assert largest_difference(images_of(server), plain) == 0
    assert largest_difference(images_of(server, {}), varied) == 0


def test_the_hosts_last_prompt_is_still_the_users(server):
    if server.name == "stand-in":
        pytest.skip("stand-in: it keeps no prompt")
    infotext(server, {}, prompt="a prompt to read again")
    kept = server.log.with_name("params.txt")
    before = kept.read_text()
    assert before.startswith("a prompt to read again")
    inverted(server, prompt="another")
    assert kept.read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("at_call", [3, STEPS + 3])
def test_an_interrupt_is_a_plain_sentence(server, at_call):
    server.plan(at_call, "interrupt")
    answer = server.client.post("/rival/v1/invert", json=asked())
    assert answer.status_code == 422
    assert answer.json()["detail"] == "RIVAL: the check was interrupted; start it again for a verdict."
    assert server.calls() == at_call
    assert server.leftovers() == []
    server.plan()
    assert inverted(server)["stored"] == (at_call > STEPS)


def bomb():
    """Make a small file with more pixels than allowed."""
    return base64_of(Image.new("1", (20000, 10000)))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"image": bomb()}, "RIVAL: image must be an image of at most 100 megapixels"),
        ({"image": "no image"}, "RIVAL: image must be an image"),
        ({"image": "/etc/passwd1"}, "RIVAL: image must be an image"),
        ({"image": "http://127.0.0.1/photo.png"}, "RIVAL: image must be an image"),
        ({"image": 5}, "RIVAL: image"),
        ({"image": None}, "RIVAL: exemplar is missing"),
        ({"picture": PIZZA}, "RIVAL: unknown field 'picture'; the fields are image, settings, prompt,"),
        ({"settings": {"force": 1}}, "RIVAL: unknown field 'force'; the fields are enabled, mode,"),
        ({"settings": {"t_align": 1001}}, "RIVAL: t_align must be a whole number from 0 to 1000, not 1001."),
        ({"settings": 5}, "RIVAL: settings: "),
        ({"steps": 0}, "RIVAL: steps: "),
        ({"width": 10**6}, "RIVAL: width: "),
        ({"denoising_strength": 10**400}, "RIVAL: denoising_strength: "),
        ({"sampler_name": "Oiler"}, "RIVAL: sampler_name must be the name of one of the WebUI's samplers"),
        ({"scheduler": "daily"}, "RIVAL: scheduler must be the name of one of the WebUI's schedules"),
        ({"override_settings": {"colour": 1}}, "RIVAL: override_settings must name options of the WebUI"),
    ],
)
def test_what_is_wrong_is_a_sentence_and_nothing_is_evaluated(server, fields, sentence):
    answer = server.client.post("/rival/v1/invert", json=asked(**fields))
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(sentence)
    assert server.calls() == 0


def test_a_size_between_two_positions_is_rounded_as_the_host_rounds_it(server):
    answer = server.client.post("/rival/v1/invert", json=asked(width=150, height=110))
    assert answer.status_code == 200, answer.text
    for name in ("ceiling", "reconstruction"):
        assert Image.open(io.BytesIO(base64.b64decode(answer.json()[name]))).size == (144, 104)


def test_a_body_that_is_no_json_is_a_sentence_too(server):
    answer = server.client.post("/rival/v1/invert", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("RIVAL: ")


# the store


def test_what_is_stored_is_listed_in_words(server):
    assert server.client.get("/rival/v1/store").json() == {"bytes": 0, "chains": []}
    answer = inverted(server)
    contents = server.client.get("/rival/v1/store").json()
    (chain,) = contents["chains"]
    assert chain["id"] == answer["chain_id"]
    assert chain["what"] == f"an exemplar of 128x128 pixels at {STEPS} noise levels, with features"
    assert re.fullmatch(r"made \d+ seconds? ago", chain["when"])
    assert chain["bytes"] == contents["bytes"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/rival/v1/store", "/rival/v1/store/{}"])
def test_what_is_deleted_is_inverted_anew(server, path):
    answer = inverted(server)
    size = server.client.get("/rival/v1/store").json()["bytes"]
    freed = server.client.delete(path.format(answer["chain_id"]))
    assert freed.json() == {"bytes": size, "chains": 1}
    assert "inverted in" in infotext(server, {})


@pytest.mark.slow
def test_one_of_two_is_deleted_and_the_other_stays(server):
    first, second = inverted(server), inverted(server, sampler_name="DDIM")
    server.client.delete(f"/rival/v1/store/{first['chain_id']}").raise_for_status()
    (left,) = server.client.get("/rival/v1/store").json()["chains"]
    assert left["id"] == second["chain_id"]


@pytest.mark.slow
def test_an_id_is_new_each_time_and_an_unknown_one_is_404(server):
    first = inverted(server)["chain_id"]
    server.client.delete("/rival/v1/store")
    assert inverted(server)["chain_id"] != first
    answer = server.client.delete(f"/rival/v1/store/{first}")
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith("RIVAL: no stored inversion has this id")


@pytest.mark.slow
def test_without_memory_there_is_no_id(server):
    assert inverted(server, override_settings={"rival_memory_mb": 0})["chain_id"] is None


# the descriptions of the routes


def test_the_version_is_the_extensions(server):
    assert server.client.get("/rival/v1/version").json() == {"version": __version__}


def test_the_schema_has_every_field_with_its_default(server):
    schema = server.client.get("/rival/v1/settings/schema").json()
    assert list(schema["properties"]) == [field.name for field in FIELDS]
    parse_settings({name: value["default"] for name, value in schema["properties"].items()})


def test_every_route_is_in_the_docs_with_its_models(server):
    described = server.client.get("/openapi.json").json()
    assert {path: set(methods) for path, methods in described["paths"].items() if path.startswith("/rival")} == ROUTES
    models = described["components"]["schemas"]
    assert set(models["InvertRequest"]["properties"]["settings"]["properties"]) == {field.name for field in FIELDS}
    assert models["InvertRequest"]["properties"]["steps"]["maximum"] == 1000
    assert {"psnr", "verdict", "reconstruction", "report", "chain_id"} <= set(models["InvertResponse"]["properties"])
    for path, methods in ROUTES.items():
        for method in methods:
            route = described["paths"][path][method]
            assert route["description"]
            answer = route["responses"]["200"]["content"]["application/json"]["schema"]
            assert answer.get("type") == "object" or answer["$ref"].startswith("#/components/schemas/")
    refused = described["paths"]["/rival/v1/invert"]["post"]["responses"]["422"]
    assert refused["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")


# the examples on the pages


def examples():
    """List every example of a request: page and number, language, code."""
    for page in ("README.md", "docs/api.md"):
        blocks = [block for block in EXAMPLE.findall((ROOT / page).read_text()) if "http://127.0.0.1:7860" in block[1]]
        for number, (language, code) in enumerate(blocks, 1):
            yield pytest.param(language, code, id=f"{page} {number} {language}")


def small(code, url):
    """Change an example's address, size and number of steps."""
    code = code.replace("http://127.0.0.1:7860", url).replace("512", "128")
    return re.sub(r'"steps": \d+', f'"steps": {STEPS}', code)


def fill(folder):
    """Write the files that the examples read. They are longer than a command's argument may be."""
    images = {"photo": "pizza-emojione-yellow", "other": "house-emojione-blue", "painting": "bus-emojione-pink"}
    for name, shown in images.items():
        exemplar(shown).resize((256, 256)).save(folder / f"{name}.png", compress_level=0)
    mask = Image.new("L", (256, 256))
    mask.paste(255, (128, 0, 256, 256))
    mask.save(folder / "mask.png")


def made(folder):
    """Return the images that an example has saved, or that are in its answer."""
    answer = folder / "answer.json"
    texts = json.loads(answer.read_text())["images"] if answer.exists() else []
    saved = sorted(folder.glob("[0-9][0-9][0-9].png"))
    assert not saved or not texts or len(saved) == len(texts)
    return [Image.open(path) for path in saved] or [image(text) for text in texts]


@pytest.mark.slow
@pytest.mark.parametrize(("language", "code"), examples())
def test_the_examples_of_the_pages_run(server, language, code, tmp_path):
    is_generation = "/sdapi/" in code
    if is_generation and server.name == "stand-in":
        pytest.skip("stand-in: it answers the extension's own routes only")
    inverted(server)
    fill(tmp_path)
    command = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
    with over_http(server) as url:
        command.append(small(code, url))
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ))
    assert run.returncode == 0, run.stderr
    if is_generation:
        assert made(tmp_path)
        for image in made(tmp_path):
            assert "RIVAL report: 10 layers" in image.info["parameters"]
    elif "/invert" in code:
        assert "the exemplar comes back at" in run.stdout
    else:
        assert f"an exemplar of 128x128 pixels at {STEPS} noise levels" in run.stdout
        assert server.client.get("/rival/v1/store").json()["chains"] == []
