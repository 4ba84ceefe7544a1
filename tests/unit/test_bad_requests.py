"""Requests of every kind, to the routes and as the script's arguments: a wrong one is refused before anything runs."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from fastapi import HTTPException, Request
from hypothesis import given
from hypothesis import strategies as st

from rival_ext.errors import RivalError
from rival_ext.fields import FIELDS
from rival_ext.hosts.webui.api import InvertRequest
from rival_ext.hosts.webui.http import BODY_MEGABYTES
from tests.bad_input import TRIED, WHOLE, base64_text, cases, names, objects, plain, said, texts, values
from tests.host.routes import started

FIELDS_OF_REQUEST = list(InvertRequest.__annotations__)
SMALL = {"image": base64_text(WHOLE["PNG RGB"]), "steps": 2, "width": 64, "height": 64}
JSON = {"content-type": "application/json"}
INVERT = "/rival/v1/invert"


@pytest.fixture(scope="module")
def server():
    """The stand-in with the extension's routes."""
    with started("stand-in", None) as server:
        yield server


@pytest.fixture(scope="module")
def reached(server):
    """A valid request is answered with the sentence that its run would begin. No request is run."""
    from rival_ext.hosts.webui import check as webui_check

    def run(request, session):
        webui_check._refuse_unknown_names(request)
        raise RivalError("the run would begin.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(webui_check, "check_in_queue", run)
        yield


def refused(server, **how):
    """Return the sentence with which a request to invert is refused."""
    TRIED["cases"] += 1
    answer = server.client.post(INVERT, **how)
    assert answer.status_code in (413, 422), answer.text
    return plain(answer.json()["detail"])


def body_of(fields):
    """Write JSON as a careless client does, with NaN, infinities and surrogates."""
    return json.dumps(fields).encode()


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from([*FIELDS_OF_REQUEST, "", "picture", "a\0"]), values, min_size=1, max_size=3))
@cases(350)
def test_any_fields_of_a_body_are_answered_in_a_sentence(server, reached, fields):
    sentence = refused(server, content=body_of({**SMALL, **fields}), headers=JSON)
    known = [*FIELDS_OF_REQUEST, *(field.name for field in FIELDS), "prompt and styles", "the run", "unknown field"]
    assert sentence.startswith(tuple(f"RIVAL: {name}" for name in known)), sentence


@pytest.mark.slow
@given(objects)
@cases(250)
def test_any_settings_of_a_body_are_answered_in_a_sentence(server, reached, settings):
    sentence = refused(server, content=body_of({**SMALL, "settings": settings}), headers=JSON)
    regions = [field.name for field in FIELDS if field.is_image]
    assert names(sentence, [*settings, *regions]) or sentence == "RIVAL: the run would begin."


@pytest.mark.slow
@given(values.filter(lambda value: not isinstance(value, dict)))
@cases(200)
def test_a_body_that_is_no_object_is_refused_in_a_sentence(server, reached, value):
    sentence = refused(server, content=body_of(value), headers=JSON)
    assert sentence.startswith(("RIVAL: the body: ", "RIVAL: unknown field "))


@pytest.mark.slow
@given(st.binary(max_size=40), st.sampled_from([None, "application/json", "text/plain", "application/x+json", "\x7f"]))
@cases(200)
def test_a_body_that_is_no_json_is_refused_in_a_sentence(server, reached, body, kind):
    headers = {} if kind is None else {"content-type": kind}
    assert refused(server, content=body, headers=headers).startswith("RIVAL: the body: ")


@pytest.mark.parametrize("depth", [900, 10**5])
def test_a_body_nested_too_deeply_is_a_sentence(server, reached, depth):
    body = b'{"settings": {"t_align": ' + b"[" * depth + b"]" * depth + b"}}"
    assert refused(server, content=body, headers=JSON).startswith(("RIVAL: the body: ", "RIVAL: t_align must be "))


# the length of a body


@pytest.mark.parametrize("length", [str(4 * 10**9), str(BODY_MEGABYTES * 2**20 + 1), "9" * 5000, "-1", "1e3", "a", ""])
def test_a_length_that_is_too_long_or_none_is_refused(server, reached, length):
    headers = {**JSON, "content-length": length}
    sentence = refused(server, content=b"{}", headers=headers)
    assert sentence == f"RIVAL: the body must have at most {BODY_MEGABYTES} MB; send smaller images."


def test_a_body_without_a_length_is_cut_off_at_the_bound(monkeypatch):
    """The body is received in pieces, as from a server. The client of these tests would send it in one piece."""
    from rival_ext.hosts.webui import http

    monkeypatch.setattr(http, "BODY_MEGABYTES", 1)
    pieces = iter([{"type": "http.request", "body": bytes(2**18), "more_body": True}] * 9)

    async def handed_over():
        return next(pieces)

    async def read():
        receive = http.bounded(Request({"type": "http", "headers": []}, handed_over))
        for _ in range(4):
            await receive()
        with pytest.raises(HTTPException, match="RIVAL: the body must have at most 1 MB"):
            await receive()

    asyncio.run(read())
    assert len(list(pieces)) == 4


@pytest.mark.slow
@given(texts)
@cases(150)
def test_any_unknown_id_is_not_found(server, text):
    from urllib.parse import quote

    TRIED["cases"] += 1
    name = quote(text.encode("utf-8", "replace"), safe="")
    answer = server.client.delete(f"/rival/v1/store/{name}")
    assert answer.status_code in (200, 404, 405)
    assert name or answer.json() == {"bytes": 0, "chains": 0}


# the script's arguments


def settings_of(arguments):
    """Return the settings of a request, or raise the error that its sampling would raise."""
    from rival_ext.hosts.webui.request import parsed_request

    outcome = parsed_request(SimpleNamespace(), arguments).outcome
    if isinstance(outcome, RivalError):
        raise outcome
    return outcome


@pytest.mark.slow
@given(st.lists(values, max_size=len(FIELDS) + 4))
@cases(400)
def test_any_values_in_the_order_of_the_panel_give_settings_or_a_sentence(server, arguments):
    settings, sentence = said(settings_of, arguments)
    assert settings is not None or names(sentence, ["args", *(field.name for field in FIELDS)])


@pytest.mark.slow
@given(objects, st.lists(values, max_size=2))
@cases(300)
def test_an_object_followed_by_other_values_gives_settings_or_a_sentence(server, asked, others):
    regions = [field.name for field in FIELDS if field.is_image]
    settings, sentence = said(settings_of, [asked, *others])
    assert settings is not None or names(sentence, ["args", *asked, *regions])


DEFAULTS_BESIDE = [field.default for field in FIELDS[1:]]
"""What the host puts beside an object that a request gives alone."""


@pytest.mark.parametrize("beside", [{}, {"mode": "edit"}, {"enabled": True}, 5, "sketch", [1], True])
def test_nothing_of_the_requests_own_stands_beside_an_object(server, beside):
    settings, sentence = said(settings_of, [{"enabled": True}, beside, *DEFAULTS_BESIDE[1:]])
    assert settings is None
    assert sentence.startswith("RIVAL: args must be one object with all settings and nothing after it, not ")


def test_behind_the_last_control_stands_nothing(server):
    for first in ({"enabled": True}, True):
        settings, sentence = said(settings_of, [first, *DEFAULTS_BESIDE, 5])
        assert settings is None
        assert sentence.startswith("RIVAL: args must be ")
        # what a page gives there: no strokes, and the empty text of the last control
        for nothing in ([], [""], [None, None, None, ""]):
            assert settings_of([first, *DEFAULTS_BESIDE, *nothing]).enabled


def test_an_infotext_fills_what_an_object_leaves_out(server):
    """The host puts the values of a request's infotext where the panel's controls stand."""
    pasted = dict(zip((field.name for field in FIELDS[1:]), DEFAULTS_BESIDE, strict=True))
    pasted |= {"mode": "edit", "early_steps": 900, "start_mix": 0.5, "t_align": 300}
    settings = settings_of([{"enabled": True, "t_align": 400}, *pasted.values()])
    assert (settings.mode, settings.early_steps, settings.start_mix, settings.t_align) == ("edit", 900, 0.5, 400)


@pytest.mark.slow
@given(st.lists(values, min_size=1, max_size=3))
@cases(200)
def test_any_arguments_are_announced_and_armed_without_an_error(server, arguments):
    """The host swallows errors of a script's callbacks, so the sampling raises them."""
    from rival_ext.hosts.webui.request import parsed_request
    from rival_ext.hosts.webui.sampling import SamplingReplacement, announce, arm
    from rival_ext.hosts.webui.session import Session

    said(lambda: None)
    sampler = SimpleNamespace(sample=lambda *_: None)
    p = SimpleNamespace(sampler=sampler, sample=lambda: None, script_args=(0,), extra_generation_params={})
    announce(p, arguments)
    arm(p, arguments, Session())
    outcome = parsed_request(p, arguments).outcome
    if isinstance(outcome, RivalError):
        plain(outcome.detail)
        assert p.extra_generation_params == {}
        with pytest.raises(RivalError) as raised:
            sampler.sample(p, None, None, None, steps=1)
        assert raised.value is outcome
    else:
        assert p.extra_generation_params.get("RIVAL mode") == (outcome.mode if outcome.enabled else None)
        assert isinstance(sampler.sample, SamplingReplacement) == outcome.enabled
