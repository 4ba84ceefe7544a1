"""A picture with a brush for its region: gradio 3's own sketch tool, Forge's canvas under gradio 4, which has none."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from typing import Any, Protocol

import gradio as gr
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rival_ext.hosts.webui.ui.gradio_compat import IS_GRADIO_3, JS

HEIGHT = 320
"""In pixels of the page."""

WHITE = "#ffffff"


class Brush(Protocol):
    """image: the control that holds the picture. strokes: those that hold the strokes, if the picture's does not."""

    image: Any
    strokes: list[Any]

    def follow(self, show: Callable[[Any], str], shown: Any) -> None:
        """Has `shown` say of the picture what `show` does, whenever it is another one."""


class Sketch:
    """gradio 3: the control's value is `{"image": ..., "mask": ...}`."""

    def __init__(self, label: str, elem_id: str):
        picture = {"type": "pil", "source": "upload", "image_mode": "RGBA", "height": HEIGHT}
        self.image = gr.Image(label=label, elem_id=elem_id, tool="sketch", **picture)
        self.strokes: list[Any] = []

    def follow(self, show: Callable[[Any], str], shown: Any) -> None:
        # `upload` and `clear`, since every stroke of the brush is a `change`
        for event in (self.image.upload, self.image.clear):
            # a step of its own before, since these come while the control has its former value still
            settled = event(fn=lambda: None, inputs=[], outputs=[], show_progress=False)
            settled.then(**{JS: "rival.readable"}, fn=show, inputs=[self.image], outputs=[shown], show_progress=False)


class Canvas:
    """Forge's canvas: the picture and the strokes on it are controls of their own."""

    def __init__(self, label: str, elem_id: str):
        from modules_forge.forge_canvas.canvas import ForgeCanvas

        canvas = ForgeCanvas(elem_id=elem_id, height=HEIGHT, scribble_color=WHITE, scribble_width=8)
        self.image, self.strokes = canvas.background, [canvas.foreground]
        # Forge would keep what the picture says of itself on the server, for whoever comes next
        self.image.postprocess = as_file
        for control in (self.image, *self.strokes):
            control.do_not_save_to_config = True

    def follow(self, show: Callable[[Any], str], shown: Any) -> None:
        self.image.change(fn=show, inputs=[self.image], outputs=[shown], show_progress=False)


def as_file(picture: Image.Image | None) -> str | None:
    """A data URL with what the picture says of itself, as the canvas takes a file."""
    if picture is None:
        return None
    said = PngInfo()
    for name, text in picture.info.items():
        if isinstance(name, str) and isinstance(text, str):
            said.add_text(name, text)
    buffer = BytesIO()
    picture.convert("RGBA").save(buffer, format="PNG", pnginfo=said)
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode()


def brush(label: str, elem_id: str) -> Brush:
    """One of the two, here."""
    return Sketch(label, elem_id) if IS_GRADIO_3 else Canvas(label, elem_id)
