"""The extension's section on the WebUI's settings page."""

from __future__ import annotations

import gradio as gr
import psutil
from modules import shared


def add_options() -> None:
    """Adds the memory budget; as long as the user has not set it, it is a quarter of the RAM free at the start."""
    quarter = psutil.virtual_memory().available // 4 // 2**20
    budget = shared.OptionInfo(
        quarter, "Memory for inverted exemplars, in MB", gr.Number, {"precision": 0}, section=("rival", "RIVAL")
    )
    shared.opts.add_option(
        "rival_memory_mb",
        budget.info("more images of an exemplar then cost what plain img2img costs; 0 keeps nothing"),
    )
