"""The servers on which the contract cases run."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import pytest

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline
from tests.host.servers import WEBUIS, RealServer
from tests.host.standin import modules
from tests.host.standin.model import Checkpoint
from tests.host.standin_server import StandInServer

SKIPPED = RealServer.skipped()


@pytest.fixture(scope="session", params=["stand-in", *WEBUIS])
def hosts(request, tmp_path_factory):
    """Two servers, one with the extension and one that never had it: on the stand-in and on each real WebUI."""
    if request.param == "stand-in":
        with modules.uninstalled():
            modules.install(new_checkpoint())
            yield tuple(StandInServer(new_checkpoint(), extended) for extended in (True, False))
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


@cache
def loaded_pipeline():
    """The small model, loaded once for all files."""
    return load_pipeline(DEMO_CHECKPOINT)


def new_checkpoint():
    """Copy the small model, so that no two servers share one with its hooks."""
    pipeline = loaded_pipeline()
    return Checkpoint(deepcopy(pipeline, {id(pipeline.tokenizer): pipeline.tokenizer}))


@pytest.fixture
def server(hosts):
    """The server with the extension, with nothing planned for its probe."""
    hosts[0].plan()
    return hosts[0]
