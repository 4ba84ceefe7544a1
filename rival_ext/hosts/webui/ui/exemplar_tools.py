"""The exemplar in the panel: which image it is, and buttons that read its prompt from it.

A prompt comes from the image's PNG info, or from the WebUI's interrogators. Forge Neo has no interrogators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.util import find_spec
from typing import Any, NamedTuple

import gradio as gr
from modules import extra_networks, images
from modules.call_queue import wrap_queued_call
from modules.infotext_utils import image_from_url_text, parse_generation_parameters
from PIL import Image

from rival_ext.errors import RivalError
from rival_ext.hosts.webui.ui.gradio_compat import JS
from rival_ext.hosts.webui.ui.host_controls import IMAGES, HostControls

INTERROGATOR_FAILED = "<error>"
"""The WebUI's CLIP interrogator returns this in its text when it has failed."""

ReadPrompt = Callable[[Image.Image], str]
"""Takes an image and returns a prompt for it. May raise RivalError."""


class PromptButton(NamedTuple):
    """A button that fills in the exemplar's prompt, and the function that reads the prompt from the image."""

    button: Any
    read_prompt: ReadPrompt


def build_prompt_buttons(prefix: str) -> list[PromptButton]:
    """Build a button for each source of a prompt that this WebUI has.

    Args:
        prefix: The beginning of the buttons' ids on the page.
    """
    sources: list[tuple[str, str, ReadPrompt]] = [("png_info", "Prompt from PNG info", prompt_from_png_info)]
    if find_spec("modules.deepbooru") is not None:
        sources.append(("clip", "Interrogate CLIP", prompt_from_clip))
        sources.append(("deepbooru", "Interrogate DeepBooru", prompt_from_deepbooru))
    return [
        PromptButton(gr.Button(label, elem_id=f"{prefix}_prompt_{name}", size="sm"), read_prompt)
        for name, label, read_prompt in sources
    ]


def connect_prompt_buttons(
    buttons: Sequence[PromptButton],
    message: Any,
    fields: Mapping[str, Any],
    host: HostControls,
    open_tabs: Sequence[Any],
) -> None:
    """Have each button fill in the exemplar's prompt, or show a message that says why it cannot.

    Args:
        buttons: The buttons.
        message: The control that shows the message.
        fields: The panel's controls by the name of their field.
        host: The WebUI's controls in the panel's tab.
        open_tabs: See `build_open_tabs`.
    """

    def connect_clicks(tab_images: dict[str, Any]) -> None:
        file = gr.Textbox(value="", visible=False)
        for button, read_prompt in buttons:
            button.click(
                fn=wrap_queued_call(_answer_click(read_prompt)),
                **{JS: "rival.withFile"},
                inputs=[file, *open_tabs, fields["exemplar"], *tab_images.values()],
                outputs=[fields["exemplar_prompt"], message],
            )

    host.when_built(tuple(IMAGES), connect_clicks)


def prompt_from_png_info(exemplar: Image.Image) -> str:
    """Return the prompt that an image was made with, from its generation parameters.

    Raises:
        RivalError: The image holds no prompt.
    """
    infotext, _ = images.read_info_from_image(exemplar)
    prompt = parse_generation_parameters(infotext or "").get("Prompt", "")
    if not prompt:
        raise RivalError(
            "the exemplar's file contains no prompt; write one, or press Interrogate CLIP or Interrogate DeepBooru."
        )
    return prompt


def prompt_from_clip(exemplar: Image.Image) -> str:
    """Have the WebUI's CLIP interrogator describe an image."""
    # imported late: Forge Neo has no interrogator
    from modules import shared

    return str(shared.interrogator.interrogate(exemplar.convert("RGB")))


def prompt_from_deepbooru(exemplar: Image.Image) -> str:
    """Have the WebUI's DeepBooru describe an image."""
    # imported late: Forge Neo does not have this module
    from modules import deepbooru

    return str(deepbooru.model.tag(exemplar.convert("RGB")))


def image_from_data_url(data_url: str) -> Image.Image | None:
    """Read the file that Forge's canvas shows, with its generation parameters.

    Args:
        data_url: The file as a data URL. Empty if the page has no such canvas.

    Returns:
        The image, or None for an empty text.
    """
    image: Image.Image | None = image_from_url_text(data_url.partition(",")[2]) if data_url else None
    return image


def exemplar_of(image_tab: float, uploaded: Any, tab_images: Sequence[Any]) -> Image.Image | None:
    """Find the image that is the first exemplar.

    Args:
        image_tab: The open image tab of img2img, from 0.
        uploaded: The value of the panel's control for the first exemplar.
        tab_images: The values of the image controls in img2img's image tabs. Empty in txt2img.

    Returns:
        The uploaded image, else the image in the open image tab, else None.
    """
    if uploaded is None and int(image_tab) < len(tab_images):
        return image_of(tab_images[int(image_tab)])
    return image_of(uploaded)


def image_of(value: Any) -> Image.Image | None:
    """Return the image in an image control's value, which is `{"image": ..., "mask": ...}` if it can be painted on."""
    image: Image.Image | None = value["image"] if isinstance(value, dict) else value
    return image


def _answer_click(read_prompt: ReadPrompt) -> Callable[..., tuple[Any, str]]:
    """Make the function that a prompt button calls. It returns the new prompt and the message."""

    def prompt_and_message(
        file: str, image_tab: float, size_tab: float, uploaded: Any, *tab_images: Any
    ) -> tuple[Any, str]:
        exemplar = exemplar_of(image_tab, uploaded, tab_images)
        if exemplar is None:
            return gr.update(), "There is no exemplar to read: upload one."
        try:
            # Forge's canvas gives pixels only: the file itself has the generation parameters
            prompt = read_prompt(image_from_data_url(file) or exemplar)
        except RivalError as error:
            return gr.update(), escape(str(error))
        except Exception as error:  # an interrogator downloads and runs models: nearly anything can go wrong
            return gr.update(), escape(f"The exemplar could not be described: {error}")
        if INTERROGATOR_FAILED in prompt:
            return gr.update(), "The exemplar could not be described; the WebUI's log says why."
        # the settings refuse <...> tags in the exemplar's prompt
        return extra_networks.parse_prompt(prompt)[0].strip(), ""

    return prompt_and_message
