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


def on_any(
    events: Sequence[Any],
    fn: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    js: str | None = None,
    condition: str = "true",
) -> None:
    """Have several events call the same function, one call at a time. The page does not show that a call is under way.

    Events that come during a call lead to one more call together, which begins when the call has ended. gradio alone
    does otherwise: gradio 3 drops an event while its own last call is under way, and calls of different events end in
    any order, so that an older answer can be shown last. gradio 4 makes one call for each event if there is a `js`.

    Args:
        events: Events of gradio's controls, such as `control.change`.
        fn: The function.
        inputs: The controls whose values `fn` takes. They are read when the call begins.
        outputs: The controls that `fn` sets.
        js: A JavaScript function that gets the inputs first and returns what `fn` takes.
        condition: A JavaScript expression. An event at which it is false leads to no call.
    """
    # the number of calls so far: the page raises it to make a call
    count = gr.Number(visible=False)
    for event in events:
        event(**{JS: f"() => rival.ask({id(count)}, {condition})"}, fn=None, inputs=[], outputs=[count])
    call = count.change(**{JS: js}, fn=fn, inputs=list(inputs), outputs=list(outputs), show_progress="hidden")
    # `then` comes after an error too
    call.then(**{JS: f"() => rival.askAgain({id(count)})"}, fn=None, inputs=[], outputs=[count])


def on_choice(control: Any, fn: Callable[[Any], list[Any]], outputs: Sequence[Any]) -> None:
    """Have a user's choice set other controls. A pasted infotext or a preset that sets `control` does not set them.

    Args:
        control: The control that the user changes.
        fn: Takes the value of `control` and returns one value for each output.
        outputs: The controls that are set.
    """
    # gradio 4 sends a radio's `input` for any change
    on_any([control.input], fn, [control], outputs, condition=f"rival.isByHand('{control.elem_id}')")


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
    if IS_GRADIO_3:
        # not `change`, since each stroke is one
        on_any([brush.image.upload, brush.image.clear], fn, [brush.image], [output], js="rival.withMask")
    else:
        on_any([brush.image.change], fn, [brush.image], [output])


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
