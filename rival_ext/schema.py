"""The settings as a JSON Schema, from the one table of their fields."""

from __future__ import annotations

from typing import Any

from rival_ext.settings import FIELDS, MODES, Field

TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def settings_schema() -> dict[str, Any]:
    """JSON Schema of the object that the always-on script and the route `invert` take; all fields may be left out."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "RIVAL settings",
        "type": "object",
        "properties": {field.name: property_schema(field) for field in FIELDS},
        "additionalProperties": False,
    }


def property_schema(field: Field) -> dict[str, Any]:
    """Of one field: type, bounds, choices, default, and what it does."""
    described = {"title": field.label, "description": _description(field), "default": field.default}
    if field.is_picture:
        image = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"}
        # no list of types: the OpenAPI 3.0 of the WebUI's fastapi has none
        return described | {"anyOf": [image, {"type": "null"}]}
    if field.name == "layers":
        sizes = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
        return described | {"anyOf": [{"type": "string"}, sizes]}
    described["type"] = TYPES[type(field.default)]
    if field.choices:
        described["enum"] = list(field.choices)
    if field.maximum is not None:
        described |= {"minimum": field.minimum, "maximum": field.maximum}
    return described


def _description(field: Field) -> str:
    presets = [f"{preset[field.name]:g} in mode {mode}" for mode, preset in MODES.items() if field.name in preset]
    return f"{field.help}. Must be {field.expects}." + (f" Default {', '.join(presets)}." if presets else "")
