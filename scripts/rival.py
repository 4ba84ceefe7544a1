"""The file that the WebUI loads: it hands over one copy of RIVAL, or a switched-off one that says what is missing."""

import sys
from pathlib import Path

from modules import script_callbacks, scripts

HERE = Path(__file__).parents[1]
LOADED = [Path(data.basedir) for data in scripts.scripts_data if data.script_class.__name__ == "RivalScript"]
"""The folders from which the WebUI has loaded RIVAL, since it started or since "Reload UI"."""

COPIES = [folder for folder in LOADED if folder != HERE]


def forget():
    """Remove the package from the process, so that the next load reads the files as they are then."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "rival_ext"]:
        del sys.modules[name]


if COPIES:
    print(f"RIVAL: installed twice; {COPIES[0]} is in use, delete {HERE} or disable one of the two.")
else:
    if "rival_ext" in sys.modules and not (HERE / "rival_ext").samefile(sys.modules["rival_ext"].__path__[0]):
        # left by a copy in another folder that could not be loaded
        forget()
    # registered first, because the WebUI calls these callbacks in reverse order: the package is forgotten last
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
