"""The panel's line about the chosen sampler, where there is something to know before sampling."""

from __future__ import annotations

from typing import Any

import gradio as gr

NOTES = {
    "DPM adaptive": "<b>DPM adaptive</b> finds its own steps: the exemplar is evaluated beside every one of them, "
    "which takes half as long again and stores no features.",
}


class SamplerNote:
    """The line and the host's control for the sampler, whichever of the two is built first."""

    def __init__(self) -> None:
        self._line: Any = None
        self._sampler: Any = None

    def place(self, elem_id: str) -> None:
        """Builds the line here."""
        self._line = gr.HTML(elem_id=elem_id)
        self._connect()

    def follow(self, sampler: Any) -> None:
        """Takes the host's control, by whose value the line is chosen."""
        self._sampler = sampler
        self._connect()

    def _connect(self) -> None:
        if self._line is None or self._sampler is None:
            return
        self._line.value = note_on(self._sampler.value)
        self._sampler.change(fn=note_on, inputs=[self._sampler], outputs=[self._line], show_progress=False)


def note_on(sampler: str) -> str:
    """What there is to know of a sampler, as HTML; empty if nothing."""
    return NOTES.get(sampler, "")
