"""Presets of the panel's values: built-in ones, and a user's own.

The browser stores a user's own presets; the server neither sees nor stores them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import gradio as gr
from modules.ui_components import FormRow

from rival_ext.fields import DEFAULTS, FEWEST_NODES, INFOTEXT_FIELDS, MODES
from rival_ext.hosts.webui.ui.gradio_compat import JS
from rival_ext.settings import PAPER, mode_defaults, similarity_values

POINTS_OF_SIMILARITY = {"inspired": 0.2, "default": 0.5, "close": 0.8}
"""The built-in presets that are a similarity."""

KEPT_BY_BUILT_IN = ("mode", "exemplar_prompt", "weight", "weight_2", "weight_3")
"""The fields that no built-in preset sets: they say what is made of which exemplars."""

ADDED = ("start", "uncond_share", "chain", *FEWEST_NODES)
"""The fields that the presets of before did not have. Their images were made with the values of `PAPER`."""


class PresetControls(NamedTuple):
    """The controls for presets.

    Attributes:
        name: The list of presets, into which a user can also write a new name.
        save: The button that saves the present values under the name.
        delete: The button that deletes the preset of that name.
        message: Says why a preset was not saved or not deleted.
    """

    name: Any
    save: Any
    delete: Any
    message: Any


def built_in_presets(mode: str) -> dict[str, dict[str, Any]]:
    """Make the built-in presets. They leave the fields of `KEPT_BY_BUILT_IN` as they are.

    Args:
        mode: The mode in which one is applied. The defaults differ by mode.

    Returns:
        Values by field name, for each preset by its name.
    """
    defaults = mode_defaults(mode)
    usual = {field.name: defaults[field.name] for field in INFOTEXT_FIELDS if field.name not in KEPT_BY_BUILT_IN}
    points = {
        name: usual | {"similarity": similarity} | (similarity_values(similarity) if name != "default" else {})
        for name, similarity in POINTS_OF_SIMILARITY.items()
    }
    return points | {"paper": usual | PAPER}


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
        tooltip="Choose a preset to apply it, or write a new name and save the present values under it. inspired, "
        "default, close and paper are built in",
    )
    with FormRow(elem_id=f"{prefix}_preset_buttons"):
        save = gr.Button("Save preset", elem_id=f"{prefix}_preset_save", size="sm")
        delete = gr.Button("Delete preset", elem_id=f"{prefix}_preset_delete", size="sm")
    message = gr.HTML(elem_id=f"{prefix}_preset_message")
    # the browser fills the list, so ui-config.json needs no value for it
    name.do_not_save_to_config = True
    return PresetControls(name, save, delete, message)


def connect(controls: PresetControls, enabled: Any, fields: Mapping[str, Any]) -> None:
    """Have the browser list, apply, save and delete presets.

    Args:
        controls: The controls for presets.
        enabled: The panel's switch, which also opens the panel.
        fields: The panel's controls by the name of their field.
    """
    name = controls.name
    values = [fields[field.name] for field in INFOTEXT_FIELDS]
    shown = [name, controls.message]
    facts = {
        "fields": [field.name for field in INFOTEXT_FIELDS],
        "builtIn": {mode: built_in_presets(mode) for mode in MODES},
        "added": {name: (DEFAULTS | PAPER)[name] for name in ADDED},
    }
    presets = f"rival.presets({json.dumps(facts)})"
    # fill the list when the panel opens: gradio does not show choices that come after the list is open
    enabled.change(**{JS: f"{presets}.list"}, fn=None, inputs=[name], outputs=shown)
    controls.save.click(**{JS: f"{presets}.save"}, fn=None, inputs=[name, *values], outputs=shown)
    controls.delete.click(**{JS: f"{presets}.remove"}, fn=None, inputs=[name], outputs=shown)
    name.input(**{JS: f"{presets}.apply"}, fn=None, inputs=[name, *values], outputs=values)
