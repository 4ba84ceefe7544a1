"""The panel in the img2img and the txt2img tab."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr
from modules.infotext_utils import PasteField
from modules.ui_components import FormRow, InputAccordion

from rival_ext.fields import EXEMPLAR_SUFFIXES, FIELDS, INFOTEXT_FIELDS, Field
from rival_ext.hosts.webui.infotext import PASTE_TARGETS
from rival_ext.hosts.webui.ui import exemplar_tools, presets
from rival_ext.hosts.webui.ui.brush import HEIGHT, Brush, brush
from rival_ext.hosts.webui.ui.check_button import Check, InversionCheck
from rival_ext.hosts.webui.ui.gradio_compat import on_choice
from rival_ext.hosts.webui.ui.host_controls import IMAGES, HostControls
from rival_ext.hosts.webui.ui.run_preview import IsStored, Outlook
from rival_ext.settings import preset_values

FIELD = {field.name: field for field in FIELDS}

CHOICES = ("mode", "similarity")
"""What stands for values of other fields."""

TABS_OF_SLOTS = ("First", "Second", "Third")

EMPTY = {
    "img2img": "Empty: the image above is the exemplar. Paint over what of an uploaded one shall be seen; "
    "unpainted, all of it is.",
    "txt2img": "A real image to take content and style from. Paint over what of it shall be seen; unpainted, all of "
    "it is.",
}


ReleaseMemory = Callable[[str | None], str]
"""Gives a user's stored inversions back, None's being theirs who have not logged in; returns a sentence to show."""


class Panel:
    """One tab's controls.

    tab: img2img or txt2img. host: the tab's own controls. release_memory: what the button for it does.
    is_stored: whether the inversions of a run are kept, as `Outlook` asks for it. check: inverts and leads back, as
    `InversionCheck` asks for it.
    """

    def __init__(self, tab: str, host: HostControls, release_memory: ReleaseMemory, is_stored: IsStored, check: Check):
        self.tab = tab
        self.prefix = f"{tab}_rival"
        self.of_field: dict[str, Any] = {}
        self.brushes: dict[str, Brush] = {}
        self._build(release_memory, check)
        self._connect()
        self.outlook = Outlook(
            self.of_field, self.brushes, host, self.plan, self.check.verdict, self.recommend, is_stored
        )
        self.check.connect(self.of_field, self.strokes, host, self.outlook.open_tabs)
        host.when_built(tuple(IMAGES), self._connect_prompt_buttons)

    @property
    def controls(self) -> list[Any]:
        """The script's arguments: in the order of `FIELDS`, then `strokes`."""
        return [*(self.of_field[field.name] for field in FIELDS), *self.strokes]

    @property
    def strokes(self) -> list[Any]:
        """What is painted on the exemplars, in their order, where it comes apart from these."""
        return [control for brush in self.brushes.values() for control in brush.strokes]

    @property
    def paste_fields(self) -> list[PasteField]:
        """What a pasted infotext sets the controls to."""
        return [PasteField(self.of_field[name], target) for name, target in PASTE_TARGETS.items()]

    def _place(self, *names: str) -> None:
        for name in names:
            self.of_field[name] = self._control(FIELD[name])

    def _place_brush(self, name: str) -> None:
        self.brushes[name] = brush(FIELD[name].label, f"{self.prefix}_{name}")
        self.of_field[name] = self.brushes[name].image

    def _build(self, release_memory: ReleaseMemory, check: Check) -> None:
        with InputAccordion(False, label=FIELD["enabled"].label, elem_id=f"{self.prefix}_enabled") as enabled:
            self.of_field["enabled"] = enabled
            self._place("mode", "similarity")
            self._build_exemplars()
            self._place("exemplar_prompt")
            with FormRow(elem_id=f"{self.prefix}_prompt_buttons"):
                self.prompt_buttons = exemplar_tools.prompt_buttons(self.prefix)
            self.message = gr.HTML(elem_id=f"{self.prefix}_message")
            with FormRow(elem_id=f"{self.prefix}_actions"):
                self.recommend = gr.Button("Recommended values", elem_id=f"{self.prefix}_recommend", size="sm")
                self.check = InversionCheck(self.prefix, check)
            self.plan = gr.HTML(elem_id=f"{self.prefix}_plan")
            self.check.build_result(self.prefix)
            with gr.Accordion("More", open=False, elem_id=f"{self.prefix}_more"):
                self._build_more(release_memory)

    def _build_exemplars(self) -> None:
        with gr.Accordion("Exemplar", open=self.tab == "txt2img", elem_id=f"{self.prefix}_exemplars"):
            gr.HTML(EMPTY[self.tab], elem_id=f"{self.prefix}_exemplar_hint")
            with gr.Tabs(elem_id=f"{self.prefix}_slots"):
                for title, ending in zip(TABS_OF_SLOTS, EXEMPLAR_SUFFIXES, strict=True):
                    with gr.TabItem(title, elem_id=f"{self.prefix}_slot{ending}"):
                        self._place_brush("exemplar" + ending)
                        self._place("weight" + ending)
                        with gr.Accordion("Region from a mask image", open=False):
                            self._place("exemplar_mask" + ending)

    def _build_more(self, release_memory: ReleaseMemory) -> None:
        rows = (
            ("t_align", "t_early", "early_steps"),
            ("start_mix", "inversion_iterations", "exemplar_tokens"),
            ("alignment", "features"),
            ("layers", "strength"),
            ("exact", "plain_inversion"),
        )
        for row in rows:
            with FormRow():
                self._place(*row)
        self.presets = presets.presets(self.prefix)
        release = gr.Button("Release the memory of stored inversions", elem_id=f"{self.prefix}_release", size="sm")
        released = gr.HTML(elem_id=f"{self.prefix}_released")

        # gradio gives the request for this annotation
        def release_own(request: gr.Request) -> str:
            return release_memory(request.username)

        release.click(fn=release_own, inputs=[], outputs=[released], show_progress=False)

    def _connect(self) -> None:
        of = self.of_field
        for name in CHOICES:
            set_by_it = preset_values({name: FIELD[name].default})
            on_choice(of[name], partial(_set_by, name), [of[other] for other in set_by_it])
        # `change`, so that what is pasted shows and hides as well
        shown = ("t_early", "exact")
        for name in ("alignment", "exemplar_prompt"):
            of[name].change(
                fn=_visible,
                inputs=[of["alignment"], of["exemplar_prompt"]],
                outputs=[of[name] for name in shown],
                show_progress=False,
            )
        presets.connect(self.presets, of["enabled"], [of[field.name] for field in INFOTEXT_FIELDS])

    def _connect_prompt_buttons(self, host: dict[str, Any]) -> None:
        pictures = [self.of_field["exemplar"], *host.values()]
        prompt, places = self.of_field["exemplar_prompt"], self.outlook.open_tabs
        exemplar_tools.connect(self.prompt_buttons, prompt, self.message, places, pictures)

    def _control(self, field: Field) -> Any:
        common = {"label": field.label, "elem_id": f"{self.prefix}_{field.name}"}
        if field.is_image:
            return gr.Image(type="pil", source="upload", image_mode="RGBA", height=HEIGHT, **common)
        common |= {"value": field.default, "tooltip": field.help}
        if field.choices:
            return gr.Radio(choices=self._choices(field), **common)
        if field.maximum is not None:
            return gr.Slider(field.minimum, field.maximum, step=field.step, **common)
        if field.name == "layers":
            return gr.Dropdown(choices=["all", "fine", "coarse"], allow_custom_value=True, **common)
        if field.default is False:
            # exact guidance is about the exemplar's prompt, which is empty at first
            return gr.Checkbox(visible=field.name != "exact", **common)
        return gr.Textbox(placeholder=field.help, **common)

    def _choices(self, field: Field) -> list[str]:
        # txt2img has no mask
        return [choice for choice in field.choices if (self.tab, choice) != ("txt2img", "inpaint")]


def _set_by(name: str, value: Any) -> list[Any]:
    return list(preset_values({name: value}).values())


def _visible(alignment: str, prompt: str) -> list[Any]:
    """t_early bounds the alignment, and exact guidance is about the exemplar's prompt."""
    return [gr.update(visible=alignment != "off"), gr.update(visible=bool(prompt.strip()))]
