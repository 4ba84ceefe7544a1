"""The extension's one option on the WebUI's settings page, and the function that reads it."""

from __future__ import annotations

import math

import gradio as gr
import psutil
from modules import shared

from rival_ext.errors import RivalError, short_repr

MEMORY = "rival_memory_mb"
"""The name of the option. A request may give it in `override_settings`, with a value of any type."""


def add_option() -> None:
    """Add the memory budget to the settings page. Until the user sets it, it is a quarter of the RAM free at start."""
    quarter = psutil.virtual_memory().available // 4 // 2**20
    budget = shared.OptionInfo(
        quarter, "Memory for inverted exemplars, in MB", gr.Number, {"precision": 0}, section=("rival", "RIVAL")
    )
    shared.opts.add_option(
        MEMORY, budget.info("with a stored inversion, an image costs as much as plain img2img; 0 stores nothing")
    )


def memory_budget() -> float:
    """Read how much memory the stored inversions may take.

    Returns:
        Bytes.

    Raises:
        RivalError: The option is no number of megabytes.
    """
    megabytes = getattr(shared.opts, MEMORY)
    if type(megabytes) not in (int, float) or not 0 <= megabytes < math.inf:
        raise RivalError(
            f"{MEMORY} must be a number of megabytes, 0 or more, not {short_repr(megabytes)}; correct it in "
            "override_settings, or on the settings page under RIVAL."
        )
    return float(megabytes * 2**20)
