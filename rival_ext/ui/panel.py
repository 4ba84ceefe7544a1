"""The panel in the img2img and the txt2img tab."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from modules.infotext_utils import PasteField
from modules.ui_components import FormRow, InputAccordion

from rival_ext.settings import FIELDS, MODES, SLOTS, Field, similar
from rival_ext.ui.infotext import paste_targets
from rival_ext.ui.sampler_note import SamplerNote

FIELD = {field.name: field for field in FIELDS}

HINTS = {
    "img2img": "Makes variations of the image above with the loaded checkpoint. Set <b>Denoising strength</b> to 1; "
    "a <b>CFG scale</b> of 5 to 7 works best. Leave the prompt empty, or say in it what the image shows.",
    "txt2img": "Draws the prompt in the style of an <b>exemplar</b>, at any size, with the loaded checkpoint. "
    "Mode <b>text</b> and a <b>CFG scale</b> of 7 work best.",
}
PRESET = ("early_steps", "start_mix")
"""What a mode sets."""

SIMILAR = tuple(similar(0.5))
"""What the similarity sets."""


def panel(tab: str, release_memory: Callable[[], str], sampler_note: SamplerNote) -> tuple[list[Any], list[PasteField]]:
    """The controls in the order of `FIELDS`, and what a pasted infotext sets them to.

    tab: img2img or txt2img. release_memory: what the button for it does; returns a sentence to show.
    sampler_note: placed here, below the hint.
    """
    prefix = f"{tab}_rival"
    controls: dict[str, Any] = {}

    def place(*names: str) -> None:
        for name in names:
            controls[name] = _control(prefix, FIELD[name])

    with InputAccordion(False, label=FIELD["enabled"].label, elem_id=f"{prefix}_enabled") as controls["enabled"]:
        gr.HTML(HINTS[tab], elem_id=f"{prefix}_hint")
        sampler_note.place(f"{prefix}_sampler")
        place("mode", "similarity")
        with FormRow():
            place("t_align", "t_early", "start_mix")
        place("exemplar_prompt")
        with gr.Accordion("Exemplars", open=tab == "txt2img", elem_id=f"{prefix}_exemplars"):
            for ending in SLOTS:
                with FormRow():
                    place("exemplar" + ending, "exemplar_mask" + ending)
                place("weight" + ending)
        with gr.Accordion("More", open=False, elem_id=f"{prefix}_more"):
            with FormRow():
                place("layers", "strength")
            with FormRow():
                place("early_steps", "inversion_iterations")
            with FormRow():
                place("exemplar_tokens", "alignment")
            with FormRow():
                place("exact", "plain_inversion")
            release = gr.Button("Release the memory of stored inversions", elem_id=f"{prefix}_release")
            released = gr.HTML(elem_id=f"{prefix}_released")
            release.click(fn=release_memory, inputs=[], outputs=[released], show_progress=False)
    # `input`, not `change`: a pasted infotext must not be overwritten
    controls["mode"].input(fn=_of_mode, inputs=[controls["mode"]], outputs=[controls[name] for name in PRESET])
    controls["similarity"].input(
        fn=_of_similarity, inputs=[controls["similarity"]], outputs=[controls[name] for name in SIMILAR]
    )
    pasted = [PasteField(controls[name], target) for name, target in paste_targets().items()]
    return [controls[field.name] for field in FIELDS], pasted


def _of_mode(mode: str) -> list[Any]:
    return [MODES[mode].get(name, FIELD[name].default) for name in PRESET]


def _of_similarity(similarity: float) -> list[Any]:
    return list(similar(similarity).values())


def _control(prefix: str, field: Field) -> Any:
    common = {"label": field.label, "elem_id": f"{prefix}_{field.name}"}
    if field.is_picture:
        return gr.Image(type="pil", source="upload", image_mode="RGBA", height=240, **common)
    common |= {"value": field.default, "tooltip": field.help}
    if field.choices:
        return gr.Radio(choices=list(field.choices), **common)
    if field.maximum is not None:
        return gr.Slider(field.minimum, field.maximum, step=field.step, **common)
    if field.name == "layers":
        return gr.Dropdown(choices=["all", "fine", "coarse"], allow_custom_value=True, **common)
    if field.default is False:
        return gr.Checkbox(**common)
    return gr.Textbox(placeholder=field.help, **common)
