"""Two users of one WebUI, on the stand-in. In tests/browser/test_users.py two users log in."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from rival_ext.fields import FIELDS
from rival_ext.images.decoding import pixel_digest
from rival_ext.settings import parse_settings
from tests.conftest import exemplar, quick
from tests.host.asking import infotext
from tests.host.routes import client_of_routes
from tests.host.standin_server import StandInServer
from tests.host.test_routes import asked

pytestmark = pytest.mark.long

PIZZA = exemplar("pizza-emojione-yellow")
SMALL = {"steps": 2, "width": 64, "height": 64, "sampler_name": "Euler"}


@pytest.fixture
def check(server, monkeypatch):
    """A function (user) -> the result of this user's check."""
    if not isinstance(server, StandInServer):
        pytest.skip("real WebUI: tests/browser/test_users.py logs in there")
    from modules import shared

    from rival_ext.hosts.webui.check import CheckRequest, check_in_queue

    monkeypatch.setattr(shared, "sd_model", server.checkpoint)
    server.session().store.clear_for_all()

    def check(user):
        return check_in_queue(CheckRequest(parse_settings({}), PIZZA, **SMALL, user=user), server.session())

    return check


@pytest.fixture
def script(check, server):
    """The names in hosts/webui/script.py, as the server has loaded it."""
    return SimpleNamespace(**type(server.scripts.alwayson_scripts[0]).ui.__globals__)


def test_the_image_that_another_user_has_inverted_is_inverted_anew(check):
    assert [check(user).is_stored for user in ("ann", "bob", "ann", None)] == [False, False, True, False]


@pytest.mark.slow
def test_each_check_names_a_chain_of_the_users_own(check):
    assert len({check(user).chain for user in ("ann", "bob", "ann", None)}) == 3


@pytest.mark.slow
def test_the_report_of_a_run_does_not_tell_of_anothers(check, server):
    check("ann")
    assert "inverted in" in infotext(server, {}, **SMALL)
    assert "stored inversion" in infotext(server, {}, **SMALL, user=None)
    assert "inverted in" in infotext(server, {}, **SMALL, user="bob")
    assert "stored inversion" in infotext(server, {}, **SMALL, user="ann")


@pytest.mark.slow
def test_the_preview_of_a_run_does_not_tell_of_anothers(check, script, server):
    infotext(server, {}, **SMALL, user="ann")
    of = {field.name: field.default for field in FIELDS}
    request = {**SMALL, "scheduler": "Automatic", "denoising_strength": 1, "resize_mode": 0}
    known = [
        script.SESSION.is_stored(user, request, "a pizza", of, [pixel_digest(PIZZA)]) for user in ("ann", "bob", None)
    ]
    assert known == [True, False, False]


@pytest.mark.slow
def test_the_button_releases_the_users_own(check, script):
    check("ann")
    assert script.SESSION.release("bob") == "No inversion of yours is stored."
    assert check("ann").is_stored
    assert re.fullmatch(r"Released (?!0\.0)\d+\.\d MB for other runs\.", script.SESSION.release("ann"))
    assert not check("ann").is_stored


@pytest.mark.parametrize("way", quick(["button", "route of all", "route of one"], "button", "route of one"))
def test_with_the_inversions_goes_the_memory_that_torch_keeps_of_them(check, script, monkeypatch, way):
    """Otherwise the megabytes that are said to be released would stay in torch's cache."""
    from modules import devices, shared

    monkeypatch.setattr(shared.cmd_opts, "api", True)
    chain = check(None).chain
    stored = []
    monkeypatch.setattr(devices, "torch_gc", lambda: stored.append(len(script.SESSION.current.store.entries)))
    if way == "button":
        script.SESSION.release(None)
    else:
        path = "/rival/v1/store" + f"/{chain}" * (way == "route of one")
        assert client_of_routes().delete(path).json()["bytes"] > 0
    # after they are gone, and once
    assert stored == [0]


@pytest.mark.slow
def test_another_checkpoint_takes_everybodys(check, script):
    check("ann")
    check(None)
    script.SESSION.release_all()
    assert not check("ann").is_stored
    assert not check(None).is_stored


@pytest.mark.slow
def test_the_routes_are_of_those_who_have_not_logged_in(check, monkeypatch):
    from modules import shared

    monkeypatch.setattr(shared.cmd_opts, "api", True)
    client = client_of_routes()
    anns = check("ann").chain
    assert client.get("/rival/v1/store").json() == {"bytes": 0, "chains": []}
    assert client.delete(f"/rival/v1/store/{anns}").status_code == 404
    assert client.delete("/rival/v1/store").json() == {"bytes": 0, "chains": 0}
    assert not client.post("/rival/v1/invert", json=asked(**SMALL)).json()["stored"]
    assert client.post("/rival/v1/invert", json=asked(user="ann")).status_code == 422
    assert check("ann").chain == anns
