"""Presets of the panel's values. The browser stores them; the server neither sees nor stores them."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr
from modules.ui_components import FormRow

from rival_ext.hosts.webui.ui.gradio_compat import JS


class PresetControls(NamedTuple):
    """The controls for presets.

    Attributes:
        name: The list of presets, into which a user can also write a new name.
        save: The button that saves the present values under the name.
        delete: The button that deletes the preset of that name.
    """

    name: Any
    save: Any
    delete: Any


def build(prefix: str) -> PresetControls:
    """Build the controls for presets.

    Args:
        prefix: The beginning of the controls' ids on the page.
    """
    name = gr.Dropdown(
        choices=[],
        value="",
        label="Preset",
        allow_custom_value=True,
        elem_id=f"{prefix}_preset",
        tooltip="Choose a preset to apply it, or write a new name and save the present values under it",
    )
    with FormRow(elem_id=f"{prefix}_preset_buttons"):
        save = gr.Button("Save preset", elem_id=f"{prefix}_preset_save", size="sm")
        delete = gr.Button("Delete preset", elem_id=f"{prefix}_preset_delete", size="sm")
    # the browser fills the list, so ui-config.json needs no value for it
    name.do_not_save_to_config = True
    return PresetControls(name, save, delete)


def connect(controls: PresetControls, enabled: Any, values: list[Any]) -> None:
    """Have the browser list, apply, save and delete presets.

    Args:
        controls: The controls for presets.
        enabled: The panel's switch, which also opens the panel.
        values: The controls whose values a preset holds.
    """
    name = controls.name
    # fill the list when the panel opens: gradio does not show choices that come after the list is open
    enabled.change(**{JS: "rival.listPresets"}, fn=None, inputs=[name], outputs=[name])
    controls.save.click(**{JS: "rival.savePreset"}, fn=None, inputs=[name, *values], outputs=[name])
    controls.delete.click(**{JS: "rival.deletePreset"}, fn=None, inputs=[name], outputs=[name])
    name.input(**{JS: "rival.applyPreset"}, fn=None, inputs=[name, *values], outputs=values)
