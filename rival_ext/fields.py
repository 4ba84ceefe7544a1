"""The one list of the settings' fields, and their JSON Schema.

The validated model (`rival_ext.settings`), the JSON Schema, the command line's options, the panel's controls, the
infotext and the axes of the X/Y/Z plot are made from `FIELDS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Optional

from PIL import Image
from pydantic import StrictBool, StrictStr, confloat, conint

from rival_ext.images.decoding import AN_IMAGE

MODES: dict[str, dict[str, Any]] = {
    "variation": {},
    "text": {"early_steps": 960, "uncond_share": 0.75},
    "edit": {"early_steps": 900, "start_mix": 0.0},
    "inpaint": {},
}
"""The modes. Each names the fields whose default differs from the one in `FIELDS` (paper section 4 and the authors'
configurations)."""

EXEMPLAR_SUFFIXES = ("", "_2", "_3")
"""The names of the fields of the first, second and third exemplar end with these."""

FEWEST_NODES = {"inversion_nodes": 3, "feature_nodes": 1}
"""The fields that name a number of nodes of a chain, or all, each with the smallest number."""

MOST_NODES = 999
"""The most nodes of a chain that a setting can name."""

LONGEST_PROMPT = 10_000
"""The most characters of an exemplar prompt, a hundred times what a tokenizer reads at once."""


@dataclass(frozen=True)
class Field:
    """One field of `Settings`, as users meet it in the panel, the API, the infotext and the command line.

    Attributes:
        name: The name in the API.
        label: The label in the panel.
        help: What the field does, for the panel's tooltip and the command line's help. No full stop at its end.
        default: The value when the field is left out, in mode variation.
        expects: What the value must be. It completes the sentence "must be ...".
        annotation: The type that pydantic checks.
        minimum: The smallest number, or None if the field is no number.
        maximum: The largest number, or None if the field is no number.
        step: The step of the panel's slider.
        choices: The names to choose from, empty if the field is no choice.
    """

    name: str
    label: str
    help: str
    default: Any
    expects: str
    annotation: Any
    minimum: float | None = None
    maximum: float | None = None
    step: float = 1
    choices: tuple[str, ...] = ()

    @property
    def infotext(self) -> str:
        """The name of the field in an image's generation parameters."""
        return f"RIVAL {self.name}"

    @property
    def flag(self) -> str:
        """The option of the field on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_image(self) -> bool:
        """Whether the value is an image. An infotext and an axis cannot carry one."""
        return self.expects == AN_IMAGE


def _switch(name: str, label: str, help: str) -> Field:  # noqa: A002  the name of the attribute
    return Field(name, label, help, False, "true or false", StrictBool)


def _choice(name: str, label: str, help: str, *choices: str) -> Field:  # noqa: A002
    expects = "one of " + ", ".join(choices)
    return Field(name, label, help, choices[0], expects, Literal[choices], choices=choices)


def _whole_number(name: str, label: str, help: str, default: int, minimum: int, maximum: int) -> Field:  # noqa: A002
    annotation = conint(strict=True, ge=minimum, le=maximum)
    expects = f"a whole number from {minimum} to {maximum}"
    return Field(name, label, help, default, expects, annotation, minimum, maximum)


def _fraction(name: str, label: str, help: str, default: float, minimum: float = 0) -> Field:  # noqa: A002
    annotation = confloat(strict=True, ge=minimum, le=1)
    return Field(name, label, help, default, f"a number from {minimum} to 1", annotation, minimum, 1, step=0.05)


def _text(name: str, label: str, help: str, default: str, expects: str) -> Field:  # noqa: A002
    return Field(name, label, help, default, expects, StrictStr)


def _nodes(name: str, label: str, help: str, default: int) -> Field:  # noqa: A002
    return _text(name, label, help, str(default), f"all, or a whole number from {FEWEST_NODES[name]} to {MOST_NODES}")


def _image(name: str, label: str, help: str) -> Field:  # noqa: A002
    return Field(name, label, help, None, AN_IMAGE, Optional[Image.Image])  # noqa: UP045  pydantic 1 reads it at run time


def _exemplar_fields(suffix: str, ordinal: str, if_empty: str) -> tuple[Field, ...]:
    """Make the fields of one exemplar. `if_empty` ends the help of its image: what happens without one."""
    return (
        _image("exemplar" + suffix, f"{ordinal} exemplar", f"A real image to take content and style from; {if_empty}"),
        _image(
            "exemplar_mask" + suffix,
            f"Region of the {ordinal.lower()} exemplar",
            "White where this exemplar is seen, black where it is not; empty shows all of it",
        ),
        _fraction(
            "weight" + suffix, f"Weight of the {ordinal.lower()}", "The share of this exemplar; 0 leaves it out", 1.0
        ),
    )


FIELDS = (
    _switch("enabled", "RIVAL", "Take content and style from an exemplar"),
    _choice(
        "mode",
        "Mode",
        "variation keeps content and style; text draws the prompt in the exemplar's style; edit keeps the layout; "
        "inpaint fills the mask",
        *MODES,
    ),
    _fraction(
        "similarity",
        "Similarity",
        "How close images are to the exemplar, from 0 (inspired by it) over 0.5 (the defaults) to 1 (almost the same); "
        "sets t_align, t_early, start_mix, strength, and how often the negative prompt sees the exemplar",
        0.5,
    ),
    _whole_number(
        "t_align",
        "t_align",
        "Above this timestep attention sees only the exemplar, below it also the image itself; smaller values bring "
        "images closer to the exemplar",
        800,
        0,
        1000,
    ),
    _whole_number(
        "t_early",
        "t_early",
        "Above this timestep the image's statistics are aligned to the exemplar's; smaller values bring colours closer "
        "to the exemplar",
        600,
        0,
        1000,
    ),
    _choice(
        "start",
        "Start",
        "What images start from: matched is fresh noise by the seed with the exemplar's statistics; permuted is the "
        "exemplar's inverted noise in random order, the paper's form",
        "matched",
        "permuted",
    ),
    _fraction(
        "start_mix",
        "start_mix",
        "0 starts from the exemplar's inverted noise and keeps its layout; 1 starts from random noise",
        1.0,
    ),
    _fraction(
        "uncond_share",
        "Exemplar beside the negative prompt",
        "How often the evaluations with the negative prompt see the exemplar; 1 always, the paper's form; with less, "
        "guidance brings images closer to the exemplar too",
        0.5,
    ),
    *_exemplar_fields("", "First", "if empty, the img2img image is used"),
    *_exemplar_fields("_2", "Second", "may stay empty"),
    *_exemplar_fields("_3", "Third", "may stay empty"),
    _text(
        "exemplar_prompt",
        "Exemplar prompt",
        "What the exemplar shows, for its inversion; may stay empty",
        "",
        f"a text of at most {LONGEST_PROMPT} characters",
    ),
    _text(
        "layers",
        "Layers",
        "Which self-attention layers see the exemplar: all; fine, those with the smallest tokens, which have "
        "nearly all of the effect; coarse, the others, which bring some colour and leave the subject to the prompt; or "
        "token sizes in pixels such as 8, 16",
        "all",
        "all, fine, coarse, or sizes of a token in pixels such as 8, 16",
    ),
    _fraction(
        "strength", "Strength", "How much of the attention the exemplar may take; a value below 1 costs time", 1.0
    ),
    _whole_number(
        "early_steps",
        "early_steps",
        "Above this timestep attention does not see the exemplar; 1000 is off",
        1000,
        0,
        1000,
    ),
    _choice(
        "alignment",
        "Alignment",
        "What takes on the exemplar's statistics: the latent, the noise prediction (the authors' code), or nothing "
        "(off)",
        "latent",
        "noise",
        "off",
    ),
    _choice(
        "chain",
        "Chain",
        "How the exemplar is led to noise: inverted is the paper's form; noised adds one fixed noise, which takes a "
        "fraction of the time and does for modes variation and text",
        "inverted",
        "noised",
    ),
    _nodes(
        "inversion_nodes",
        "Inversion nodes",
        "At how many of the sampler's noise levels the exemplar is inverted where the start is random; fewer are "
        "faster; edits and inpainting always invert at each level",
        10,
    ),
    _nodes(
        "feature_nodes",
        "Feature nodes",
        "At how many noise levels the exemplar's features are kept; fewer take less memory; all is the paper's form",
        8,
    ),
    _whole_number(
        "inversion_iterations", "Inversion iterations", "UNet evaluations for each step of the inversion", 1, 1, 10
    ),
    _fraction(
        "exemplar_tokens",
        "Exemplar tokens",
        "The fraction of the exemplar's tokens that is seen below t_align; a smaller one is faster",
        1.0,
        minimum=0.25,
    ),
    _choice(
        "features",
        "Features",
        "recorded keeps the exemplar's features in memory from the inversion, if the memory budget has room for any; "
        "live evaluates the exemplar beside every step, which takes 1.5 times as long but no memory",
        "recorded",
        "live",
    ),
    _switch(
        "exact",
        "Exact guidance",
        "With an exemplar prompt: invert with the empty prompt too, and use that inversion in the evaluations "
        "with the negative prompt; the inversion takes twice as long",
    ),
    _switch(
        "plain_inversion",
        "Inversion without LoRAs",
        "Leaves the prompt's LoRAs out of the inversion; they act only on the generation",
    ),
)
"""The one list of the fields, in the panel's order."""

FIELD_BY_NAME = {field.name: field for field in FIELDS}

DEFAULTS = {field.name: field.default for field in FIELDS}
"""Each field's value when it is left out, in mode variation."""

INVERSION_FIELDS = frozenset(
    {"exemplar_prompt", "inversion_iterations", "features", "exact", "plain_inversion", "chain", *FEWEST_NODES}
)
"""A change of one of these fields needs another inversion of the same image."""

INFOTEXT_FIELDS = tuple(field for field in FIELDS if field.name != "enabled" and not field.is_image)
"""The fields that an infotext can carry. `RIVAL mode` in it stands for `enabled`."""

SCHEMA_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def settings_schema() -> dict[str, Any]:
    """Describe the settings as a JSON Schema. The always-on script and the route `invert` take such an object."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "RIVAL settings",
        "type": "object",
        "properties": {field.name: _property_schema(field) for field in FIELDS},
        "additionalProperties": False,
    }


def _property_schema(field: Field) -> dict[str, Any]:
    presets = [f"{preset[field.name]:g} in mode {mode}" for mode, preset in MODES.items() if field.name in preset]
    description = f"{field.help}. Must be {field.expects}." + (f" Default {', '.join(presets)}." if presets else "")
    schema = {"title": field.label, "description": description, "default": field.default}
    if field.is_image:
        image = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"}
        # no list of types: the OpenAPI 3.0 of the WebUI's fastapi has none
        return schema | {"anyOf": [image, {"type": "null"}]}
    if field.name == "layers":
        sizes = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
        return schema | {"anyOf": [{"type": "string"}, sizes]}
    if field.name in FEWEST_NODES:
        number = {"type": "integer", "minimum": FEWEST_NODES[field.name], "maximum": MOST_NODES}
        return schema | {"anyOf": [{"type": "string"}, number]}
    schema["type"] = SCHEMA_TYPES[type(field.default)]
    if field.choices:
        schema["enum"] = list(field.choices)
    if field.maximum is not None:
        schema |= {"minimum": field.minimum, "maximum": field.maximum}
    return schema
