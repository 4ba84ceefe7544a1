"""What differs between gradio 3 and 4 for the panel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

IS_GRADIO_3 = hasattr(gr.components, "IOComponent")

JS = "_js" if IS_GRADIO_3 else "js"
"""What an event calls the function that the browser runs first."""


def on_any(events: Sequence[Any], **how: Any) -> None:
    """Has each of the controls' `events` do the same thing, without a sign that it is being done."""
    if IS_GRADIO_3:
        for event in events:
            event(show_progress=False, **how)
    else:
        # each control of a new page is one that changed: one request for all of them, not one each
        gr.on(list(events), show_progress="hidden", trigger_mode="always_last", **how)


def on_choice(control: Any, fn: Callable[[Any], list[Any]], outputs: Sequence[Any]) -> None:
    """Has what a person sets `control` to set `outputs`; what a pasted infotext or a preset sets it to does not."""
    how = {"inputs": [control], "outputs": list(outputs), "show_progress": False}
    if IS_GRADIO_3:
        control.input(fn=fn, **how)
    else:
        # there a radio's `input` is any change; and what came while a request is under way would be left out
        control.input(
            fn=lambda value: [gr.update() for _ in outputs] if value is None else fn(value),
            js=f"(value) => [rival.isByHand('{control.elem_id}') ? value : null]",
            trigger_mode="always_last",
            **how,
        )
