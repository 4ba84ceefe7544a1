"""The routes under /rival/v1/ of a server that asks for passwords, and of one that serves no API."""

from __future__ import annotations

import secrets

import pytest

from tests.host.conftest import SKIPPED
from tests.host.quick import quick_first
from tests.host.routes import client_of_routes, started
from tests.host.servers import WEBUIS, RealServer, real_folder
from tests.host.test_routes import ROUTES, asked

pytestmark = pytest.mark.long

USERS = "ann:secret,bob:other"


@pytest.fixture(scope="module", params=["stand-in", *WEBUIS])
def server(request, tmp_path_factory):
    """A server started with --api-auth."""
    folder = tmp_path_factory.mktemp("webui")
    with started(request.param, folder, flags=("--api-auth", USERS), api_auth=USERS) as server:
        yield server


@pytest.mark.parametrize(("path", "methods"), ROUTES.items())
@pytest.mark.parametrize("auth", [None, ("ann", "other"), ("eve", "secret"), ("ann", ""), ("ann", "sécret")])
def test_nobody_gets_in_without_a_password(server, path, methods, auth):
    for method in methods:
        body = asked() if method == "post" else None
        assert server.client.request(method, path, json=body, auth=auth).status_code == 401


@pytest.mark.parametrize("auth", [("ann", "secret"), ("bob", "other")])
def test_each_user_gets_in_with_the_own_password(server, auth):
    get = server.client.get
    assert get("/rival/v1/version", auth=auth).status_code == 200
    assert get("/rival/v1/store", auth=auth).status_code == 200
    assert server.client.post("/rival/v1/invert", json=asked(), auth=auth).status_code == 200


def test_without_the_api_there_are_no_routes(monkeypatch):
    with started("stand-in", None, api=False):
        assert client_of_routes().get("/rival/v1/version").status_code == 404


def statuses(api_auth, *auths):
    """Start the stand-in with this --api-auth, and return the statuses of its answers."""
    with started("stand-in", None, api_auth=api_auth):
        client = client_of_routes()
        return [client.get("/rival/v1/version", auth=auth).status_code for auth in auths]


@pytest.mark.parametrize(
    ("api_auth", "auth"),
    quick_first(
        [
            ("ann:secret", ("ann", "secret")),
            (" ann: secret", (" ann", " secret")),
            ("ann:", ("ann", "")),
            (":", ("", "")),
            ("ann:first,ann:last", ("ann", "last")),
        ]
    ),
)
def test_the_command_line_is_read_as_the_host_reads_it(api_auth, auth):
    assert statuses(api_auth, auth, ("ann", "first"), ("secret", "ann"), None) == [200, 401, 401, 401]


@pytest.mark.parametrize("api_auth", quick_first(["ann", "ann:se:cret", "ann:secret,", ",", "ann:se,cret"]))
def test_what_the_host_cannot_read_opens_nothing(api_auth):
    with pytest.raises(ValueError, match="length"):
        statuses(api_auth)


@pytest.mark.parametrize("api_auth", [None, ""])
def test_without_passwords_the_routes_are_as_open_as_the_hosts(api_auth):
    assert statuses(api_auth, None) == [200]


def test_who_is_refused_learns_nothing_from_the_time_it_takes(monkeypatch):
    compared, compare_digest = [], secrets.compare_digest

    def compare(one, other):
        compared.append((len(one), len(other)))
        return compare_digest(one, other)

    monkeypatch.setattr(secrets, "compare_digest", compare)
    asking = [("ann", "wrong"), ("eve", "wrong"), ("bob", "x" * 1000), ("ann", "secret"), ("bob", "other")]
    assert statuses(USERS, *asking) == [401, 401, 401, 200, 200]
    assert compared == [(32, 32)] * 2 * len(asking)


@pytest.fixture(scope="module", params=[("--nowebui",), ("--subpath", "images")], ids=["real nowebui", "real subpath"])
def elsewhere(request, tmp_path_factory):
    """A real WebUI without its page, or behind a path of another server. Pages of one other address may ask it."""
    if real_folder() is None:
        pytest.skip(SKIPPED)
    flags = (*request.param, "--api-auth", USERS, "--cors-allow-origins", "https://good.example")
    server = RealServer(real_folder(), tmp_path_factory.mktemp("webui"), flags=flags)
    yield server
    server.stop()


def test_a_password_is_asked_for_however_the_host_is_served(elsewhere):
    for method in ROUTES["/rival/v1/store"]:
        assert elsewhere.client.request(method, "/rival/v1/store").status_code == 401
        assert elsewhere.client.request(method, "/rival/v1/store", auth=("ann", "secret")).status_code == 200
    inverted = elsewhere.client.post("/rival/v1/invert", json=asked(), auth=("bob", "other"))
    assert inverted.status_code == 200


@pytest.mark.parametrize(("origin", "is_let"), [("https://good.example", True), ("https://evil.example", False)])
def test_pages_of_other_addresses_are_let_as_the_host_lets_them(elsewhere, origin, is_let):
    asks = {"origin": origin, "access-control-request-method": "DELETE"}
    for path in ("/rival/v1/store", "/sdapi/v1/options"):
        answer = elsewhere.client.options(path, headers=asks)
        assert (answer.status_code == 200) == is_let
        assert (answer.headers.get("access-control-allow-origin") == origin) == is_let
