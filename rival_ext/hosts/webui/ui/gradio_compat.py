"""What the panel does differently under gradio 3 (AUTOMATIC1111, reForge) and gradio 4 (Forge, Forge Neo)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image
from PIL.PngImagePlugin import PngInfo

IS_GRADIO_3 = hasattr(gr.components, "IOComponent")

JS = "_js" if IS_GRADIO_3 else "js"
"""The name of the argument with which an event gets a JavaScript function. The browser runs it before `fn`."""

IMAGE_HEIGHT = 320
"""The height of the panel's image controls in pixels of the page."""

WHITE = "#ffffff"


class Brush(NamedTuple):
    """An image control that a user can paint on.

    Attributes:
        image: The control that holds the image.
        strokes: The controls that hold what was painted. Empty if `image` holds it too.
    """

    image: Any
    strokes: list[Any]


def on_any(events: Sequence[Any], **how: Any) -> None:
    """Have several events call the same function. The page does not show that the call is under way.

    Under gradio 4, events that come during a call lead to one more call together, not to one each.

    Args:
        events: Events of gradio's controls, such as `control.change`.
        how: Arguments that an event takes: `fn`, `inputs`, `outputs`, and the one that `JS` names.
    """
    if IS_GRADIO_3:
        for event in events:
            event(show_progress=False, **how)
    else:
        # when a page opens, each of its controls counts as changed: one request for all of them, not one for each
        gr.on(list(events), show_progress="hidden", trigger_mode="always_last", **how)


def on_choice(control: Any, fn: Callable[[Any], list[Any]], outputs: Sequence[Any]) -> None:
    """Have a user's choice set other controls. A pasted infotext or a preset that sets `control` does not set them.

    Args:
        control: The control that the user changes.
        fn: Takes the value of `control` and returns one value for each output.
        outputs: The controls that are set.
    """
    how = {"inputs": [control], "outputs": list(outputs), "show_progress": False}
    if IS_GRADIO_3:
        control.input(fn=fn, **how)
    else:
        # gradio 4 sends a radio's `input` for any change. It drops an event that comes during a request, by default.
        control.input(
            fn=lambda value: [gr.update() for _ in outputs] if value is None else fn(value),
            js=f"(value) => [rival.isByHand('{control.elem_id}') ? value : null]",
            trigger_mode="always_last",
            **how,
        )


def build_brush(label: str, elem_id: str) -> Brush:
    """Build an image control that a user can paint on.

    Args:
        label: The control's label. Forge's canvas shows none.
        elem_id: The control's id on the page.

    Returns:
        gradio 3's image control with its sketch tool, whose value is `{"image": ..., "mask": ...}`. Under gradio 4,
        which has no such tool, Forge's own canvas with separate controls for the image and the strokes.
    """
    return _build_sketch(label, elem_id) if IS_GRADIO_3 else _build_forge_canvas(elem_id)


def on_new_image(brush: Brush, fn: Callable[[Any], str], output: Any) -> None:
    """Have a new image in a brush, or its removal, set another control. Painting does not set it.

    Args:
        brush: The image control.
        fn: Takes the value of `brush.image` and returns the value for `output`.
        output: The control that is set.
    """
    if not IS_GRADIO_3:
        brush.image.change(fn=fn, inputs=[brush.image], outputs=[output], show_progress=False)
        return
    # not `change`, since each stroke is one
    for event in (brush.image.upload, brush.image.clear):
        # at the event itself the control still has its former value: read it one step later
        settled = event(fn=lambda: None, inputs=[], outputs=[], show_progress=False)
        settled.then(**{JS: "rival.withMask"}, fn=fn, inputs=[brush.image], outputs=[output], show_progress=False)


def _build_sketch(label: str, elem_id: str) -> Brush:
    image = gr.Image(
        label=label,
        elem_id=elem_id,
        tool="sketch",
        type="pil",
        source="upload",
        image_mode="RGBA",
        height=IMAGE_HEIGHT,
    )
    return Brush(image, [])


def _build_forge_canvas(elem_id: str) -> Brush:
    from modules_forge.forge_canvas.canvas import ForgeCanvas

    canvas = ForgeCanvas(elem_id=elem_id, height=IMAGE_HEIGHT, scribble_color=WHITE, scribble_width=8)
    # Forge's own function keeps the image's text chunks in the control and gives them to the next image, anybody's
    canvas.background.postprocess = png_data_url
    for control in (canvas.background, canvas.foreground):
        control.do_not_save_to_config = True
    return Brush(canvas.background, [canvas.foreground])


def png_data_url(image: Image.Image | None) -> str | None:
    """Write an image as Forge's canvas takes it: a PNG file in a data URL.

    Args:
        image: The image, with its text chunks (its generation parameters) in `info`.

    Returns:
        The data URL, or None for no image. The PNG holds the text chunks too.
    """
    if image is None:
        return None
    texts = PngInfo()
    for name, text in image.info.items():
        if isinstance(name, str) and isinstance(text, str):
            texts.add_text(name, text)
    buffer = BytesIO()
    image.convert("RGBA").save(buffer, format="PNG", pnginfo=texts)
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode()
