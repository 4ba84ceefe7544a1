"""Presets of the panel, remembered by the browser: the server neither sees nor keeps them."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr
from modules.ui_components import FormRow

from rival_ext.hosts.webui.ui.gradio_compat import JS


class Presets(NamedTuple):
    """The list with a field for a new name, and the buttons that save and delete."""

    name: Any
    save: Any
    delete: Any


def presets(prefix: str) -> Presets:
    """The controls, here."""
    name = gr.Dropdown(
        choices=[],
        value="",
        label="Preset",
        allow_custom_value=True,
        elem_id=f"{prefix}_preset",
        tooltip="Choose one to apply it, or write a new name and save the present values under it",
    )
    with FormRow(elem_id=f"{prefix}_preset_buttons"):
        save = gr.Button("Save preset", elem_id=f"{prefix}_preset_save", size="sm")
        delete = gr.Button("Delete preset", elem_id=f"{prefix}_preset_delete", size="sm")
    # a list that the browser fills has no value to keep in ui-config.json
    name.do_not_save_to_config = True
    return Presets(name, save, delete)


def connect(controls: Presets, enabled: Any, values: list[Any]) -> None:
    """enabled: the panel's switch, which opens it. values: the controls that a preset holds."""
    name = controls.name
    # before the list is open: it would not show what came later
    enabled.change(**{JS: "rival.listPresets"}, fn=None, inputs=[name], outputs=[name])
    controls.save.click(**{JS: "rival.savePreset"}, fn=None, inputs=[name, *values], outputs=[name])
    controls.delete.click(**{JS: "rival.deletePreset"}, fn=None, inputs=[name], outputs=[name])
    name.input(**{JS: "rival.applyPreset"}, fn=None, inputs=[name, *values], outputs=values)
