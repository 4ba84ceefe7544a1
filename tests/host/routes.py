"""A server with the routes under /rival/v1/: the stand-in's in this process, or a real WebUI's."""

from __future__ import annotations

from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline
from tests.host.servers import WEBUIS, WebuiServer
from tests.host.standin import modules
from tests.host.standin.model import Checkpoint
from tests.host.standin.state import cmd_opts
from tests.host.standin_server import StandInServer

PASSED_ON = ("content-type", "authorization")


@contextmanager
def started(kind, folder, flags=(), **command_line):
    """Start a server, or skip the test if there is no such WebUI.

    Args:
        kind: "stand-in", or a key of `WEBUIS`.
        folder: The data folder of a WebUI.
        flags: Further flags of a WebUI's command line.
        command_line: The same for the stand-in, as the host parses them.

    Yields:
        The server. Its `client` answers as httpx does.
    """
    if kind in WEBUIS:
        webui = WEBUIS[kind]
        if webui.folder() is None:
            pytest.skip(webui.skipped())
        server = webui(webui.folder(), folder, flags=flags)
        try:
            yield server
        finally:
            server.stop()
        return
    checkpoint = Checkpoint(load_pipeline(DEMO_CHECKPOINT))
    before = dict(vars(cmd_opts))
    vars(cmd_opts).update(command_line)
    try:
        with modules.uninstalled():
            modules.install(checkpoint)
            server = StandInServer(checkpoint)
            server.client = client_of_routes()
            yield server
    finally:
        vars(cmd_opts).update(before)


def client_of_routes():
    """Make a client of the routes that the extension adds to an app, as the stand-in's command line says."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from rival_ext.hosts.webui.api import add_routes
    from rival_ext.hosts.webui.script import SESSION

    app = FastAPI()
    add_routes(app, cmd_opts, SESSION.open)
    return TestClient(app)


@contextmanager
def over_http(server):
    """Yield the address of a server. The stand-in's routes have one while the context manager is open."""
    if isinstance(server, WebuiServer):
        yield server.url
        return

    class PassedOn(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
            answer = server.client.request(self.command, self.path, content=body, headers=headers)
            self.send_response(answer.status_code)
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_):
            """Write no log."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), PassedOn)
    Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()
