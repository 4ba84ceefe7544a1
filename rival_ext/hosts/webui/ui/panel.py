"""The panel in the img2img and the txt2img tab."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gradio as gr
from modules.infotext_utils import PasteField
from modules.ui_components import FormRow, InputAccordion

from rival_ext.fields import EXEMPLAR_SUFFIXES, FIELD_BY_NAME, FIELDS, Field
from rival_ext.hosts.webui.infotext import PASTE_TARGETS
from rival_ext.hosts.webui.ui import check_button, exemplar_tools, presets, run_preview
from rival_ext.hosts.webui.ui.check_button import Check
from rival_ext.hosts.webui.ui.gradio_compat import IMAGE_HEIGHT, Brush, build_brush, on_any, on_choice
from rival_ext.hosts.webui.ui.host_controls import HostControls, build_open_tabs
from rival_ext.hosts.webui.ui.run_preview import IsStored
from rival_ext.settings import preset_values

FIELDS_THAT_SET_OTHERS = ("mode", "similarity")
"""A user who changes one of these fields sets other fields with it (`preset_values`)."""

EXEMPLAR_TABS = ("First", "Second", "Third")
"""The titles of the exemplars' tabs."""

EXEMPLAR_HINTS = {
    "img2img": "If this is empty, the img2img image above is the exemplar. Paint over the part of an uploaded exemplar "
    "that is to be seen; without paint all of it is seen.",
    "txt2img": "A real image to take content and style from. Paint over the part of it that is to be seen; without "
    "paint all of it is seen.",
}
"""For each tab the text above the exemplars."""

ROWS_OF_MORE = (
    ("t_align", "t_early", "early_steps"),
    ("start", "alignment", "features"),
    ("start_mix", "uncond_share", "strength"),
    ("layers", "exemplar_tokens", "feature_nodes"),
    ("chain", "inversion_nodes", "inversion_iterations"),
    ("exact", "plain_inversion"),
)
"""The fields under "More", row by row."""

SUGGESTIONS = {
    "layers": ("all", "fine", "coarse"),
    "inversion_nodes": ("all", "20", "10", "6"),
    "feature_nodes": ("all", "10", "8", "6"),
}
"""For the fields that take a name or numbers, what their lists offer. A user can also write another value."""

HIDDEN_BY: Mapping[str, Callable[[Mapping[str, str]], bool]] = {
    "t_early": lambda values: values["alignment"] == "off",
    "exact": lambda values: not values["exemplar_prompt"].strip(),
    "inversion_nodes": lambda values: values["chain"] == "noised",
    "inversion_iterations": lambda values: values["chain"] == "noised",
    "feature_nodes": lambda values: values["features"] == "live",
}
"""The fields that have no effect beside some values of others, and when that is so."""

HIDING = ("alignment", "exemplar_prompt", "chain", "features")
"""The fields whose values `HIDDEN_BY` reads."""

ReleaseMemory = Callable[[str | None], str]
"""Releases the memory of a user's stored inversions. None stands for everybody who has not logged in. Returns a
sentence to show."""


class Panel:
    """The panel of one tab, made from the list of fields. It has no controls before `build`.

    Args:
        tab: img2img or txt2img.
        host: The WebUI's controls in this tab.
        release_memory: Called by the button that releases memory.
        is_stored: Tells whether the inversions of a run are known to be stored.
        check: Checks an inversion.

    Attributes:
        fields: The control of each field, by the field's name.
        brushes: The exemplars' controls, by the name of their field.
        digests: Hidden texts with a digest of each image's pixels, see `run_preview.build_digests`.
        surplus: A hidden control behind all others. The host drops what a request gives beyond the last control, and
            so it gives here the first value too many.
    """

    def __init__(self, tab: str, host: HostControls, release_memory: ReleaseMemory, is_stored: IsStored, check: Check):
        self.tab = tab
        self.host = host
        self.release_memory = release_memory
        self.is_stored = is_stored
        self.check = check
        self.prefix = f"{tab}_rival"
        self.fields: dict[str, Any] = {}
        self.brushes: dict[str, Brush] = {}
        self.digests: dict[str, Any] = {}
        self.surplus: Any = None

    @property
    def controls(self) -> list[Any]:
        """The controls whose values the WebUI passes to the script: in the order of `FIELDS`, `strokes`, `surplus`."""
        return [*(self.fields[field.name] for field in FIELDS), *self.strokes, self.surplus]

    @property
    def strokes(self) -> list[Any]:
        """The controls that hold what was painted on the exemplars. Empty if the exemplars' own controls hold it."""
        return [control for brush in self.brushes.values() for control in brush.strokes]

    @property
    def paste_fields(self) -> list[PasteField]:
        """The controls that a pasted infotext sets."""
        return [PasteField(self.fields[name], target) for name, target in PASTE_TARGETS.items()]

    def build(self) -> None:
        """Build the controls inside gradio's current block, and connect their events."""
        label = FIELD_BY_NAME["enabled"].label
        with InputAccordion(False, label=label, elem_id=f"{self.prefix}_enabled") as enabled:
            self.fields["enabled"] = enabled
            self._build_fields("mode", "similarity")
            self._build_exemplars()
            self._build_fields("exemplar_prompt")
            with FormRow(elem_id=f"{self.prefix}_prompt_buttons"):
                prompt_buttons = exemplar_tools.build_prompt_buttons(self.prefix)
            message = gr.HTML(elem_id=f"{self.prefix}_message")
            with FormRow(elem_id=f"{self.prefix}_actions"):
                recommend = gr.Button("Recommended values", elem_id=f"{self.prefix}_recommend", size="sm")
                start_check = check_button.build_button(self.prefix)
            preview = gr.HTML(elem_id=f"{self.prefix}_plan")
            result = check_button.build_result(self.prefix)
            with gr.Accordion("More", open=False, elem_id=f"{self.prefix}_more"):
                for row in ROWS_OF_MORE:
                    with FormRow():
                        self._build_fields(*row)
                preset_controls = presets.build(self.prefix)
                self._build_release()
        self.digests = run_preview.build_digests()
        self.surplus = gr.Textbox(visible=False, elem_id=f"{self.prefix}_surplus")
        self.surplus.do_not_save_to_config = True
        open_tabs = build_open_tabs()

        self._connect_fields_that_set_others()
        self._connect_visibility()
        presets.connect(preset_controls, enabled, self.fields)
        run_preview.connect_digests(self.digests, self.brushes, self.host)
        run_preview.connect_preview(
            preview, self.fields, self.digests, open_tabs, self.host, result.task, self.is_stored
        )
        run_preview.connect_recommended(recommend, self.fields["mode"], self.digests, self.host)
        check_button.connect(start_check, result, self.check, self.fields, self.strokes, self.host, open_tabs)
        exemplar_tools.connect_prompt_buttons(prompt_buttons, message, self.fields, self.host, open_tabs)

    def _build_exemplars(self) -> None:
        with gr.Accordion("Exemplar", open=self.tab == "txt2img", elem_id=f"{self.prefix}_exemplars"):
            gr.HTML(EXEMPLAR_HINTS[self.tab], elem_id=f"{self.prefix}_exemplar_hint")
            with gr.Tabs(elem_id=f"{self.prefix}_slots"):
                for title, suffix in zip(EXEMPLAR_TABS, EXEMPLAR_SUFFIXES, strict=True):
                    with gr.TabItem(title, elem_id=f"{self.prefix}_slot{suffix}"):
                        self._build_brush("exemplar" + suffix)
                        self._build_fields("weight" + suffix)
                        with gr.Accordion("Region from a mask image", open=False):
                            self._build_fields("exemplar_mask" + suffix)

    def _build_release(self) -> None:
        release = gr.Button("Release the memory of stored inversions", elem_id=f"{self.prefix}_release", size="sm")
        released = gr.HTML(elem_id=f"{self.prefix}_released")

        # gradio passes the request because of its annotation
        def release_memory(request: gr.Request) -> str:
            return self.release_memory(request.username)

        release.click(fn=release_memory, inputs=[], outputs=[released], show_progress=False)

    def _build_fields(self, *names: str) -> None:
        for name in names:
            self.fields[name] = self._build_control(FIELD_BY_NAME[name])

    def _build_brush(self, name: str) -> None:
        self.brushes[name] = build_brush(FIELD_BY_NAME[name].label, f"{self.prefix}_{name}")
        self.fields[name] = self.brushes[name].image

    def _build_control(self, field: Field) -> Any:
        """Build the kind of control that suits a field's values."""
        common = {"label": field.label, "elem_id": f"{self.prefix}_{field.name}"}
        if field.is_image:
            return gr.Image(type="pil", source="upload", image_mode="RGBA", height=IMAGE_HEIGHT, **common)
        common |= {"value": field.default, "tooltip": field.help}
        if field.choices:
            return gr.Radio(choices=self._choices(field), **common)
        if field.maximum is not None:
            return gr.Slider(field.minimum, field.maximum, step=field.step, **common)
        if field.name in SUGGESTIONS:
            return gr.Dropdown(choices=[*SUGGESTIONS[field.name]], allow_custom_value=True, **common)
        if field.default is False:
            # exact guidance needs an exemplar prompt, which is empty at first
            return gr.Checkbox(visible=field.name != "exact", **common)
        return gr.Textbox(placeholder=field.help, **common)

    def _choices(self, field: Field) -> list[str]:
        # txt2img has no mask
        return [choice for choice in field.choices if (self.tab, choice) != ("txt2img", "inpaint")]

    def _connect_fields_that_set_others(self) -> None:
        """Have the choice of a mode or of a similarity set the fields for which it stands."""
        for name in FIELDS_THAT_SET_OTHERS:
            others = preset_values({name: FIELD_BY_NAME[name].default})
            on_choice(self.fields[name], partial(_values_set_by, name), [self.fields[other] for other in others])

    def _connect_visibility(self) -> None:
        """Hide the controls that have no effect with the present values."""
        inputs = [self.fields[name] for name in HIDING]
        outputs = [self.fields[name] for name in HIDDEN_BY]
        # not `input`: pasted values show and hide controls as well
        on_any([control.change for control in inputs], _visibility, inputs, outputs)


def _values_set_by(name: str, value: Any) -> list[Any]:
    """List the values that the choice of a mode or of a similarity sets, in the order of `preset_values`."""
    return list(preset_values({name: value}).values())


def _visibility(*values_of_hiding: str) -> list[Any]:
    """Say of each field in `HIDDEN_BY` whether it is visible."""
    values = dict(zip(HIDING, values_of_hiding, strict=True))
    return [gr.update(visible=not has_no_effect(values)) for has_no_effect in HIDDEN_BY.values()]
