"""What a host's process holds of the extension after requests that leave it switched off, and after one that does not.

`python -m tests.host.idle` observes the stand-in, in a process of its own: in that of the tests everything is imported.
"""

from __future__ import annotations

import json
import sys

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline
from tests.host.asking import STEPS, request
from tests.host.standin import modules
from tests.host.standin.model import Checkpoint
from tests.host.standin_server import StandInServer

SWITCHED_OFF = {"left out": None, "the panel's": [False]}
SWITCHED_ON = {"switched on": [True]}


def observe(server):
    """By request, in order: modules of the extension imported by then, what was hooked during its sampling."""
    seen = {}
    for name, settings in (SWITCHED_OFF | SWITCHED_ON).items():
        server.plan()
        answer = server.img2img(**request(settings))
        assert answer.status == 200, answer.sentence
        assert server.calls() >= STEPS
        seen[name] = {"imported": server.imported(), "hooked": server.hooked()}
    return seen


def main():
    """Writes the stand-in's as JSON."""
    checkpoint = Checkpoint(load_pipeline(DEMO_CHECKPOINT))
    # the stand-in's checkpoint came through the command line's host; the WebUI has a loader of its own
    for name in [name for name in sys.modules if name.partition(".")[0] == "rival_ext"]:
        del sys.modules[name]
    modules.install(checkpoint)
    json.dump(observe(StandInServer(checkpoint)), sys.stdout)


if __name__ == "__main__":
    main()
