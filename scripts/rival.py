"""The WebUI's door to RIVAL: one copy of it, whole, or with a word on what it lacks in this WebUI; no other logic."""

import sys
from pathlib import Path

from modules import script_callbacks, scripts

HERE = Path(__file__).parents[1]
LOADED = [Path(data.basedir) for data in scripts.scripts_data if data.script_class.__name__ == "RivalScript"]
"""Where the WebUI has loaded RIVAL from, since it started or since "Reload UI"."""

COPIES = [folder for folder in LOADED if folder != HERE]


def forget():
    """Takes the package out of the process: the next load gets the files as they are then."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "rival_ext"]:
        del sys.modules[name]


if COPIES:
    print(f"RIVAL: installed twice; {COPIES[0]} is in use, delete {HERE} or disable one of the two.")
else:
    if "rival_ext" in sys.modules and not (HERE / "rival_ext").samefile(sys.modules["rival_ext"].__path__[0]):
        # of a copy that could not be loaded
        forget()
    # first, since the WebUI calls the last one first
    script_callbacks.on_script_unloaded(forget)

    from rival_ext.errors import RivalError
    from rival_ext.hosts.webui.requirements import require_all

    try:
        require_all()
    except RivalError as refusal:
        from rival_ext.hosts.webui import off_panel

        print(refusal)
        RivalScript = off_panel.RivalScript
        RivalScript.refusal = refusal
    else:
        from rival_ext.hosts.webui import script

        RivalScript = script.RivalScript
        script.register()
