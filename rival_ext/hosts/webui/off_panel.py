"""The extension on a WebUI that lacks something it needs: a panel that says so, and nothing else.

This file imports only what every WebUI has had from the beginning, so it loads where `script.py` cannot.
"""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr
from modules import scripts

from rival_ext.errors import RivalError
from rival_ext.settings import is_switched_on


class RivalScript(scripts.Script):
    """Its panel shows the refusal. A request that switches RIVAL on is answered with it.

    The attribute `refusal` is set before the WebUI makes an instance.
    """

    refusal: RivalError

    def title(self) -> str:
        return "RIVAL"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        sentence = str(self.refusal)
        with gr.Accordion("RIVAL", open=False):
            gr.HTML(escape(sentence))
            # receives what a request sends, and shows the sentence where the API lists the scripts
            switch = gr.Checkbox(value=False, label=sentence, visible=False)
        switch.do_not_save_to_config = True
        return [switch]

    def process(self, p: Any, *args: Any) -> None:
        if is_switched_on(args):
            # the host swallows what a script raises, but answers with what the request's own `init` raises
            p.init = self._refuse

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise self.refusal.with_traceback(None)
