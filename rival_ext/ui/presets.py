"""Presets of the panel, remembered by the browser: the server neither sees nor keeps them."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules.ui_components import FormRow


def presets(prefix: str) -> tuple[Any, Any, Any]:
    """The list with a field for a new name, the button that saves and the one that deletes, here."""
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
    return name, save, delete


def connect(controls: tuple[Any, Any, Any], values: list[Any]) -> None:
    """values: the controls that a preset holds."""
    name, save, delete = controls
    save.click(fn=None, _js="rival.savePreset", inputs=[name, *values], outputs=[name])
    delete.click(fn=None, _js="rival.deletePreset", inputs=[name], outputs=[name])
    name.focus(fn=None, _js="rival.listPresets", inputs=[name], outputs=[name])
    name.input(fn=None, _js="rival.applyPreset", inputs=[name, *values], outputs=values)
