"""A server whose routes under /rival/v1/ are asked: the stand-in's in this process, or a real WebUI's."""

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
    """A server of one kind, the stand-in's or a WebUI's, with a `client` that answers as httpx does.

    Skipped without such a WebUI. flags: of a real one's command line. command_line: the same for the stand-in, as
    the host parses it.
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
    """Asks the routes that the stand-in's command line makes the extension add to an app."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from rival_ext.hosts.webui.api import add_routes
    from rival_ext.hosts.webui.script import SESSION

    app = FastAPI()
    add_routes(app, cmd_opts, SESSION.open)
    return TestClient(app)


@contextmanager
def over_http(server):
    """The address of a server; the stand-in's routes get one for as long as this runs."""
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
            """Nobody reads it."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), PassedOn)
    Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()
