"""Packages that the other extensions import and that the WebUI's environment lacks, from a folder beside it."""

import os
import sys


def preload(parser):
    """Extend the import path. The WebUI calls this before it loads a script; its own packages are found first."""
    if "RIVAL_ADETAILER_PACKAGES" in os.environ:
        sys.path.append(os.environ["RIVAL_ADETAILER_PACKAGES"])
