"""Generated requests, run to the end: each gives an image or a sentence, and the host is unchanged afterwards."""

from __future__ import annotations

import json
import select
import socket
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rival_ext.fields import FIELDS
from tests.bad_input import (
    TRIED,
    WHOLE,
    base64_text,
    damaged_files,
    file_of,
    long_cases,
    objects,
    plain,
    texts,
    two_colours,
    values,
)
from tests.host.answers import Answer, base64_of
from tests.host.routes import started
from tests.host.servers import WEBUIS, WebuiServer

pytestmark = pytest.mark.long

INVERT = "/rival/v1/invert"
SMALL = {"steps": 2, "width": 64, "height": 64, "sampler_name": "Euler"}
PHOTO = base64_of(two_colours(size=(64, 64)))
NAMED = [field.name for field in FIELDS] + ["mask", "width", "prompt", "image", "styles"]


def region(size, *box):
    """Make a mask that is white in a box, or nowhere."""
    mask = Image.new("L", size)
    if box:
        mask.paste(255, box)
    return base64_of(mask)


masks = st.sampled_from(
    [
        *(
            region((64, 64)),
            region((64, 64), 0, 0, 64, 64),
            region((64, 64), 0, 0, 32, 64),
            region((64, 64), 3, 3, 4, 4),
        ),
        *(region((1, 1)), region((1, 1), 0, 0, 1, 1), region((200, 10), 0, 0, 100, 10), region((3, 900), 0, 0, 3, 9)),
    ]
)
sides = st.sampled_from([1, 2, 7, 64, 300, 3000])
shapes = st.builds(lambda width, height: base64_text(file_of(Image.new("L", (width, height), 90), "PNG")), sides, sides)
images = st.sampled_from([base64_text(file) for file in WHOLE.values()]) | damaged_files().map(base64_text) | shapes
NEAR = {
    **{field.name: images for field in FIELDS if field.name.startswith("exemplar") and field.is_image},
    **{field.name: masks | images for field in FIELDS if field.name.startswith("exemplar_mask")},
    **{field.name: st.sampled_from(field.choices) for field in FIELDS if field.choices},
    **{field.name: st.booleans() for field in FIELDS if field.default is False and field.name != "enabled"},
    **{
        field.name: (st.integers if type(field.default) is int else st.floats)(field.minimum, field.maximum)
        for field in FIELDS
        if field.maximum is not None
    },
    "exemplar_prompt": texts.filter(lambda text: len(text) < 1000),
    "layers": st.sampled_from(["all", "fine", "coarse", "8", "8, 16", [16], "0", "9999"]),
}
usable = st.fixed_dictionaries({}, optional=NEAR)
settings = st.one_of(usable, usable, st.builds(lambda one, other: {**one, **other}, usable, objects))
runs = st.fixed_dictionaries(
    {},
    optional={
        "init_images": st.lists(
            st.sampled_from([PHOTO, *(base64_text(WHOLE[name]) for name in WHOLE)]) | shapes, max_size=2
        ),
        "mask": masks,
        "inpaint_full_res": st.booleans(),
        "inpainting_fill": st.integers(0, 3),
        "resize_mode": st.integers(0, 3),
        "denoising_strength": st.floats(0, 1),
        "prompt": texts.filter(lambda text: len(text) < 1000),
        "cfg_scale": st.sampled_from([1, 7]),
        "batch_size": st.integers(1, 2),
    },
)


@pytest.fixture(scope="module", params=["stand-in", *WEBUIS])
def server(request, tmp_path_factory):
    """A server without passwords. After all cases it must be as before the first one."""
    with started(request.param, tmp_path_factory.mktemp("webui")) as server:
        before, varied = made(server), made(server, {"enabled": True})
        yield server
        assert server.leftovers() == []
        assert np.array_equal(made(server), before)
        server.client.delete("/rival/v1/store").raise_for_status()
        assert np.array_equal(made(server, {"enabled": True}), varied)


def made(server, settings=None):
    """Make one image. The global generator is seeded before."""
    server.plan()
    answer = generated(server, {}, settings)
    assert answer.status == 200, answer.sentence
    return answer.images[0]


def generated(server, run, settings=None):
    """Send an img2img request. What the stand-in cannot read counts as the real host's HTTP 500."""
    payload = {"init_images": [PHOTO], "prompt": "", "seed": 3, "denoising_strength": 1, **SMALL, **run}
    if settings is not None:
        payload["alwayson_scripts"] = {"RIVAL": {"args": [settings]}}
    if isinstance(server, WebuiServer):
        return answered(server.client.post("/sdapi/v1/img2img", content=json.dumps(payload).encode(), headers=JSON))
    try:
        return server.img2img(**payload)
    except Exception as error:
        return Answer(500, sentence=str(error))


JSON = {"content-type": "application/json"}


def answered(response):
    """Return an answer with only its first image."""
    body = response.json()
    if response.status_code != 200:
        detail = body.get("detail") or body.get("errors") or str(body)
        return Answer(response.status_code, sentence=detail if isinstance(detail, str) else str(detail))
    return Answer(200, [np.frombuffer(body["images"][-1].encode(), np.uint8)] if body.get("images") else [])


def names_a_field(sentence):
    return any(name in plain(sentence) for name in NAMED)


# to the end


@pytest.mark.slow
@given(runs, settings)
@long_cases(100)
def test_a_run_is_an_image_or_a_sentence(server, run, asked):
    TRIED["cases"] += 1
    if server.name == "stand-in":
        # the stand-in resizes in one way only
        run.pop("resize_mode", None)
    answer = generated(server, run, {"enabled": True, **asked})
    if answer.status == 200:
        return
    if answer.status == 422 and answer.sentence.startswith("RIVAL: "):
        assert names_a_field(answer.sentence), answer.sentence
        return
    without = generated(server, run)
    assert (without.status, without.sentence) == (answer.status, answer.sentence), "the host itself takes this request"


@pytest.mark.slow
@given(images, usable, texts.filter(lambda text: len(text) < 1000), st.integers(0, 3) | st.integers(0, 3) | values)
@long_cases(30)
def test_an_inversion_is_an_answer_or_a_sentence(server, image, asked, prompt, other):
    TRIED["cases"] += 1
    body = {"image": image, "settings": asked, "prompt": prompt, "resize_mode": other, **SMALL}
    response = server.client.post(INVERT, content=json.dumps(body).encode(), headers=JSON)
    assert response.status_code in (200, 422), response.text[:2000]
    if response.status_code == 422:
        assert names_a_field(response.json()["detail"])


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from([field.infotext for field in FIELDS]), texts, max_size=5), st.booleans())
@long_cases(60)
def test_an_infotext_in_a_request_is_an_image(server, parameters, is_of_rival):
    if server.name == "stand-in":
        pytest.skip("stand-in: it reads no infotext")
    TRIED["cases"] += 1
    parameters |= {"RIVAL mode": "edit"} if is_of_rival else {}
    written = [f"{name}: {json.dumps(value)}" for name, value in parameters.items()]
    infotext = "a pizza\nSteps: 2, Sampler: Euler, CFG scale: 5, " + ", ".join(written)
    answer = generated(server, {"infotext": infotext})
    if answer.status == 422 and answer.sentence.startswith("RIVAL: "):
        assert names_a_field(answer.sentence)
        return
    assert answer.status == 200, answer.sentence


# long bodies


def over_a_socket(server, head, pieces=()):
    """Send a request by hand until the server answers.

    Returns:
        The seconds, the bytes that were sent, and the answer.
    """
    begun, sent = time.monotonic(), 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head.encode())
        for piece in pieces:
            if select.select([connection], [], [], 0)[0]:
                break
            connection.sendall(piece)
            sent += len(piece)
        answer = connection.recv(65536)
        while b"}" not in answer and (part := connection.recv(65536)):
            answer += part
    return time.monotonic() - begun, sent, answer.decode()


HEAD = f"POST {INVERT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_a_body_of_four_gigabytes_is_refused_without_reading(server):
    if server.name == "stand-in":
        pytest.skip("stand-in: no bytes are sent to it")
    seconds, _, answer = over_a_socket(server, HEAD + "Content-Length: 4000000000\r\n\r\n")
    assert answer.startswith("HTTP/1.1 413")
    assert "RIVAL: the body must have at most 256 MB; send smaller images." in answer
    assert seconds < 5


def test_a_body_without_a_length_is_cut_off(server):
    if server.name == "stand-in":
        pytest.skip("stand-in: no bytes are sent to it")
    pieces = (b"100000\r\n" + b" " * 2**20 + b"\r\n" for _ in range(1000))
    _, sent, answer = over_a_socket(server, HEAD + "Transfer-Encoding: chunked\r\n\r\n", pieces)
    assert answer.startswith("HTTP/1.1 413")
    # the system throws away what arrives after the answer
    assert 256 * 2**20 <= sent < 400 * 2**20


@pytest.mark.slow
def test_an_image_of_two_hundred_megabytes_is_a_sentence(server):
    answer = generated(server, {}, {"enabled": True, "exemplar": "data:image/png;base64," + "A" * 200_000_000})
    assert answer.status == 422
    assert answer.sentence == "RIVAL: exemplar must be an image of at most 128 MB, not 143.1 MB."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "mode", "named"),
    [
        ((9, 6), 3, "image must have 64 to 4096"),
        ((5000, 64), 3, "image must have 64 to 4096"),
        ((1, 3000), 2, "image must be at most 64 times"),
        ((30000, 1), 1, "image must be at most 64 times"),
    ],
)
def test_a_shape_that_the_host_cannot_resize_is_named(server, size, mode, named):
    """The host itself answers such an image with a traceback, or takes all memory for it."""
    body = {"image": base64_text(file_of(Image.new("L", size), "PNG")), "resize_mode": mode, **SMALL}
    response = server.client.post(INVERT, json=body)
    assert response.status_code == 422
    assert plain(response.json()["detail"]).startswith(f"RIVAL: {named}")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_any_shape_can_be_stretched(server, size):
    body = {"image": base64_text(file_of(Image.new("L", size), "PNG")), **SMALL}
    assert server.client.post(INVERT, json=body).status_code == 200
