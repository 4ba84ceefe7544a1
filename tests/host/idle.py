"""Which modules of the extension a host's process has imported, before and after the extension is switched on.

`python -m tests.host.idle` observes the stand-in in another process, because the tests' process has imported
everything.
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
    """Send the requests in order.

    Returns:
        By request: the extension's modules imported by then, and the hooks during its sampling.
    """
    seen = {}
    for name, settings in (SWITCHED_OFF | SWITCHED_ON).items():
        server.plan()
        answer = server.img2img(**request(settings))
        assert answer.status == 200, answer.sentence
        assert server.calls() >= STEPS
        seen[name] = {"imported": server.imported(), "hooked": server.hooked()}
    return seen


def main():
    """Write the observations of the stand-in as JSON."""
    checkpoint = Checkpoint(load_pipeline(DEMO_CHECKPOINT))
    # the command line's loader has loaded the stand-in's checkpoint; a WebUI has its own loader
    for name in [name for name in sys.modules if name.partition(".")[0] == "rival_ext"]:
        del sys.modules[name]
    modules.install(checkpoint)
    json.dump(observe(StandInServer(checkpoint)), sys.stdout)


if __name__ == "__main__":
    main()
