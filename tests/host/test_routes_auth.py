"""The routes under /rival/v1/ of a server that asks for passwords, and of one that serves no API."""

from __future__ import annotations

import pytest

from tests.host.conftest import SKIPPED
from tests.host.routes import client_of_routes, started
from tests.host.test_routes import ROUTES, asked

USERS = "ann:secret,bob:other"


@pytest.fixture(scope="module", params=["stand-in", "real"])
def server(request, tmp_path_factory):
    """A server started with --api-auth."""
    folder = tmp_path_factory.mktemp("webui")
    with started(request.param, folder, flags=("--api-auth", USERS), api_auth=USERS) as server:
        if server is None:
            pytest.skip(SKIPPED)
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
