"""The panel in the img2img tab."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from modules.infotext_utils import PasteField
from modules.ui_components import FormRow, InputAccordion

from rival_ext.settings import FIELDS
from rival_ext.ui.infotext import paste_targets

FIELD = {field.name: field for field in FIELDS}

HINT = (
    "Makes variations of the image above with the loaded checkpoint. Set <b>Denoising strength</b> to 1; "
    "a <b>CFG scale</b> of 5 to 7 works best. Leave the prompt empty, or say in it what the image shows."
)


def panel(prefix: str, release_memory: Callable[[], str]) -> tuple[list[Any], list[PasteField]]:
    """The controls in the order of `FIELDS`, and what a pasted infotext sets them to; ids begin with `prefix`.

    release_memory: what the button for it does; returns a sentence to show.
    """
    controls: dict[str, Any] = {}
    with InputAccordion(False, label=FIELD["enabled"].label, elem_id=f"{prefix}_enabled") as controls["enabled"]:
        gr.HTML(HINT, elem_id=f"{prefix}_hint")
        # one mode so far: nothing to choose, but a value that the API's positional form and the infotext carry
        controls["mode"] = _choice(prefix, "mode", visible=False)
        with FormRow():
            controls["t_align"] = _slider(prefix, "t_align")
            controls["t_early"] = _slider(prefix, "t_early")
        controls["exemplar_prompt"] = gr.Textbox(
            **_common(prefix, "exemplar_prompt"), placeholder=FIELD["exemplar_prompt"].help
        )
        with gr.Accordion("More", open=False, elem_id=f"{prefix}_more"):
            with FormRow():
                controls["early_steps"] = _slider(prefix, "early_steps")
                controls["inversion_iterations"] = _slider(prefix, "inversion_iterations")
            with FormRow():
                controls["exemplar_tokens"] = _slider(prefix, "exemplar_tokens")
                controls["exact"] = gr.Checkbox(**_common(prefix, "exact"))
            with FormRow():
                controls["alignment"] = _choice(prefix, "alignment")
                controls["start"] = _choice(prefix, "start")
            controls["exemplar"] = gr.Image(
                label="Another exemplar than the img2img image",
                type="pil",
                source="upload",
                height=240,
                elem_id=f"{prefix}_exemplar",
            )
            release = gr.Button("Release the memory of stored inversions", elem_id=f"{prefix}_release")
            released = gr.HTML(elem_id=f"{prefix}_released")
            release.click(fn=release_memory, inputs=[], outputs=[released], show_progress=False)
    targets = paste_targets()
    pasted = [PasteField(controls[name], target) for name, target in targets.items()]
    return [controls[field.name] for field in FIELDS], pasted


def _slider(prefix: str, name: str) -> gr.Slider:
    field = FIELD[name]
    return gr.Slider(field.minimum, field.maximum, step=field.step, **_common(prefix, name))


def _choice(prefix: str, name: str, visible: bool = True) -> gr.Radio:
    return gr.Radio(choices=list(FIELD[name].choices), visible=visible, **_common(prefix, name))


def _common(prefix: str, name: str) -> dict[str, Any]:
    field = FIELD[name]
    return {"label": field.label, "value": field.default, "elem_id": f"{prefix}_{name}", "tooltip": field.help}
