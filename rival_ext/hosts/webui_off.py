"""The extension on a WebUI that lacks something it relies on: a panel that says so, and nothing else.

It relies on what WebUIs have had from the beginning: a script's `process`, which comes before the request's `init`.
"""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr
from modules import scripts

from rival_ext.errors import RivalError
from rival_ext.settings import is_switched_on


class RivalScript(scripts.Script):
    """Its panel says the refusal; a request that switches RIVAL on is answered with it."""

    refusal: RivalError

    def title(self) -> str:
        return "RIVAL"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        sentence = str(self.refusal)
        with gr.Accordion("RIVAL", open=False):
            gr.HTML(escape(sentence))
            # takes what a request sends, and says the same where the API lists the scripts
            switch = gr.Checkbox(value=False, label=sentence, visible=False)
        switch.do_not_save_to_config = True
        return [switch]

    def process(self, p: Any, *args: Any) -> None:
        if is_switched_on(args):
            # the host swallows what a script raises; what the request itself raises it answers with
            p.init = self._refuse

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise self.refusal.with_traceback(None)
