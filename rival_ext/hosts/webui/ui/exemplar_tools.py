"""The exemplar's prompt out of the exemplar itself: its PNG info, or one of the WebUI's interrogators if it has any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import gradio as gr
from modules import extra_networks, images
from modules.call_queue import wrap_queued_call
from modules.infotext_utils import image_from_url_text, parse_generation_parameters
from PIL import Image

from rival_ext.errors import RivalError
from rival_ext.hosts.webui.backends import webui_name
from rival_ext.hosts.webui.ui.gradio_compat import JS

FAILED = "<error>"
"""What the WebUI's CLIP interrogator answers after an error of its own."""


def of_png_info(exemplar: Image.Image) -> str:
    """The prompt that the exemplar was made with. Raises RivalError if it carries none."""
    infotext, _ = images.read_info_from_image(exemplar)
    prompt = parse_generation_parameters(infotext or "").get("Prompt", "")
    if not prompt:
        raise RivalError("the exemplar carries no prompt of its own; describe it, or have CLIP or DeepBooru do it.")
    return prompt


Ways = dict[str, tuple[str, Callable[[Image.Image], str]]]
"""Label and function of each way, by name."""


def ways() -> Ways:
    """Those that there are here."""
    png_info: Ways = {"png_info": ("Prompt from PNG info", of_png_info)}
    if webui_name() == "Forge Neo":
        return png_info
    from rival_ext.hosts.webui.ui.interrogators import INTERROGATORS

    return {**png_info, **INTERROGATORS}


def prompt_buttons(prefix: str) -> dict[str, Any]:
    """A button for each way, here."""
    return {name: gr.Button(label, elem_id=f"{prefix}_prompt_{name}", size="sm") for name, (label, _) in ways().items()}


def connect(buttons: dict[str, Any], prompt: Any, message: Any, places: list[Any], pictures: list[Any]) -> None:
    """Has each button fill `prompt`, or say in `message` why not.

    places: for the open tabs. pictures: the first exemplar's control, then those of the image tabs.
    """
    file = gr.Textbox(value="", visible=False)
    for name, (_, read) in ways().items():
        buttons[name].click(
            fn=wrap_queued_call(_reader(read)),
            **{JS: "rival.withFile"},
            inputs=[file, *places, *pictures],
            outputs=[prompt, message],
        )


def _reader(read: Callable[[Image.Image], str]) -> Callable[..., tuple[Any, str]]:
    def prompt_of(file: str, image_tab: float, size_tab: float, uploaded: Any, *shown: Any) -> tuple[Any, str]:
        exemplar = exemplar_of(image_tab, uploaded, shown)
        if exemplar is None:
            return gr.update(), "There is no exemplar to read: upload one."
        try:
            prompt = read(of_file(file) or exemplar)
        except RivalError as error:
            return gr.update(), escape(str(error))
        except Exception as error:  # an interrogator downloads and runs models: nearly anything can go wrong
            return gr.update(), escape(f"The exemplar could not be described: {error}")
        if FAILED in prompt:
            return gr.update(), "The exemplar could not be described; the WebUI's log says why."
        # a LoRA has no meaning there, and the settings refuse its tag
        return extra_networks.parse_prompt(prompt)[0].strip(), ""

    return prompt_of


def of_file(data_url: str) -> Image.Image | None:
    """What a canvas of the page shows, with what its file says; none for an empty text."""
    image: Image.Image | None = image_from_url_text(data_url.partition(",")[2]) if data_url else None
    return image


def exemplar_of(image_tab: float, uploaded: Any, shown: Sequence[Any]) -> Image.Image | None:
    """The uploaded exemplar, or what the open one of the image tabs shows."""
    if uploaded is None and int(image_tab) < len(shown):
        return image_of(shown[int(image_tab)])
    return image_of(uploaded)


def image_of(picture: Any) -> Image.Image | None:
    """The image in an image control, painted on or not."""
    image: Image.Image | None = picture["image"] if isinstance(picture, dict) else picture
    return image
