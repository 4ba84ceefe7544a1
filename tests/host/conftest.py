"""The hosts that the contract cases run on."""

from __future__ import annotations

import pytest

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline
from tests.host.servers import WEBUIS, RealServer
from tests.host.standin import modules
from tests.host.standin.model import Checkpoint
from tests.host.standin_server import StandInServer

SKIPPED = RealServer.skipped()


@pytest.fixture(scope="session", params=["stand-in", *WEBUIS])
def hosts(request, tmp_path_factory):
    """(a server with the extension, one that never had it), on the stand-in and on each real WebUI."""
    if request.param == "stand-in":
        with modules.uninstalled():
            modules.install(new_checkpoint())
            yield tuple(
                StandInServer(Checkpoint(load_pipeline(DEMO_CHECKPOINT)), extended) for extended in (True, False)
            )
        return
    webui = WEBUIS[request.param]
    folder = webui.folder()
    if folder is None:
        pytest.skip(webui.skipped())
    servers = []
    try:
        for extended in (True, False):
            servers.append(webui(folder, tmp_path_factory.mktemp("webui"), extended))
        yield tuple(servers)
    finally:
        for server in servers:
            server.stop()


def new_checkpoint():
    """A model of its own for each server, so that a hook on one is not on the other."""
    return Checkpoint(load_pipeline(DEMO_CHECKPOINT))


@pytest.fixture
def server(hosts):
    """The server with the extension, its probe fresh."""
    hosts[0].plan()
    return hosts[0]
