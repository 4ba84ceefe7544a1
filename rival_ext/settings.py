"""The validated settings of a run, made from the one list of fields.

Runs on pydantic 1.10 (AUTOMATIC1111) and 2.x (Forge, the command line).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image
from pydantic import BaseModel, ValidationError, create_model

from rival_ext.errors import RivalError, short_repr
from rival_ext.fields import (
    DEFAULTS,
    EXEMPLAR_SUFFIXES,
    FIELD_BY_NAME,
    FIELDS,
    INFOTEXT_FIELDS,
    LONGEST_PROMPT,
    MODES,
)
from rival_ext.images.decoding import decoded_image
from rival_ext.written import ALL, EXACT_MODES, NOISED, WRITTEN

PIXELS_PER_POSITION = 8
"""Each position of a latent stands for 8x8 pixels."""

GUIDANCE = {"variation": 5.0, "text": 7.0, "edit": 7.0, "inpaint": 7.0}
"""The guidance scale that the authors use in each mode."""

WITHOUT_PROMPT = 0.65
"""The denoising strength of a variation without a prompt. From noise alone, the content is mostly lost then."""

HALF = 0.5
"""The one rule of all masks: a mask counts in a latent position of 8x8 pixels that it covers by half or more."""

MASK_RULE = "a mask counts in a position of 8x8 pixels that it covers by half or more"
"""The rule in words, as a part of an error sentence."""

PAPER = {
    "start": "permuted",
    "uncond_share": 1.0,
    "alignment": "noise",
    "t_align": 600,
    "inversion_nodes": ALL,
    "feature_nodes": ALL,
}
"""The authors' form, where the defaults differ from it."""

SIMILARITY = {
    "t_align": (1000, 400),
    "t_early": (900, 200),
    "start_mix": (1.0, 0.05),
    "uncond_share": (1.0, 0.25),
    "strength": (0.15, 1.0),
}
"""The fields that a similarity sets, with their values at 0 and at 1. At 0.5 they have their defaults.

Below 0.5 less of the exemplar is seen. Above 0.5 the start brings its layout, more and more."""

MASK_MISSING = "mode inpaint needs a mask: paint one in an inpaint tab, or give one in the request's field mask."
"""The error sentence for mode inpaint without a mask."""

LEAST_WEIGHT = 1e-4
"""An exemplar with a smaller weight is left out: it would give no token and no position."""


class ExemplarInput(NamedTuple):
    """One exemplar that a request names.

    Attributes:
        image: The image, or None for the host's own input (the img2img image).
        mask: White where the exemplar is seen. None shows all of it.
        weight: Its share among the exemplars, from 0.0001 to 1.
        suffix: The names of its fields end with this.
    """

    image: Image.Image | None
    mask: Image.Image | None = None
    weight: float = 1.0
    suffix: str = ""


class SettingsBase(BaseModel, extra="forbid", frozen=True, arbitrary_types_allowed=True):
    """What is computed from the fields of `Settings`."""

    @property
    def exemplar_inputs(self) -> list[ExemplarInput]:
        """The exemplars with a weight. The first one may have no image; the others are there if an image is given."""
        values = dict(self)
        inputs = [
            ExemplarInput(
                values["exemplar" + suffix], values["exemplar_mask" + suffix], values["weight" + suffix], suffix
            )
            for suffix in EXEMPLAR_SUFFIXES
        ]
        present = inputs[:1] + [one for one in inputs[1:] if one.image]
        return [one for one in present if one.weight >= LEAST_WEIGHT]

    def token_pixels(self, available: Set[int]) -> set[int]:
        """Choose the token sizes whose layers see the exemplar.

        Args:
            available: The side of a token in pixels, for each self-attention layer of the UNet.

        Returns:
            Those of `available` that the field `layers` names, at least one.

        Raises:
            RivalError: The field `layers` names none of them.
        """
        layers: str = dict(self)["layers"]
        finest = min(available)
        presets = {"all": set(available), "fine": {finest}, "coarse": set(available) - {finest}}
        chosen = presets.get(layers)
        if chosen is None:
            chosen = {int(size) for size in layers.split(",")} & set(available)
        if not chosen:
            sizes = ", ".join(map(str, sorted(available)))
            raise RivalError(f"layers must name at least one of this checkpoint's token sizes: {sizes} pixels.")
        return chosen


if TYPE_CHECKING:

    class Settings(SettingsBase, frozen=True):
        """The model that `create_model` makes below; mypy cannot see its fields."""

        def __init__(self, **values: Any): ...

        def __getattr__(self, name: str) -> Any: ...

else:
    Settings = create_model(
        "Settings", __base__=SettingsBase, **{field.name: (field.annotation, field.default) for field in FIELDS}
    )
    Settings.__doc__ = "The validated, frozen values of all fields. Timesteps run from 1000 (noise) to 0 (clean)."


def parse_settings(values: Mapping[str, Any]) -> Settings:
    """Make `Settings` from a JSON-like object.

    A field that is left out takes the value that a given `similarity` stands for, else its mode's default.

    Args:
        values: Values by field name. Images may be PIL images or base64 text.

    Returns:
        The validated settings.

    Raises:
        RivalError: A field is unknown, has a wrong type or is out of range. The sentence names the field.
    """
    for name in values:
        if name not in FIELD_BY_NAME:
            raise RivalError(f"unknown field {short_repr(name)}; the fields are {', '.join(FIELD_BY_NAME)}.")
    given = {**values, **_painted_regions(values)}
    given |= _normalised(given)
    try:
        settings = Settings(**{**implied_values(given), **given})
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise RivalError(_wrong_value(name, values[name])) from None
    refuse_noised(settings)
    return settings


def refuse_noised(settings: Settings) -> None:
    """Refuse a chain without inversion where the exemplar has to come back from its chain.

    Args:
        settings: The validated settings.

    Raises:
        RivalError: The settings need the inversion.
    """
    if settings.chain != NOISED:
        return
    needs = {
        f"in mode {settings.mode}": settings.mode in EXACT_MODES,
        f"with start_mix {settings.start_mix:g}": settings.start_mix < 1,
        "with exact guidance": settings.exact,
    }
    for need, is_asked in needs.items():
        if is_asked:
            raise RivalError(f"chain must be inverted {need}, not {settings.chain}.")


def settings_of_check(settings: Settings) -> Settings:
    """Make the settings with which a check inverts: at each level, so that the exemplar can be led back by them.

    Args:
        settings: The validated settings of the run.

    Returns:
        Settings whose inversion serves the run as well.

    Raises:
        RivalError: The run has no inversion to check.
    """
    if settings.chain == NOISED:
        raise RivalError(f"chain must be inverted for a check, not {settings.chain}.")
    return Settings(**{**dict(settings), "inversion_nodes": ALL})


def mode_defaults(mode: str) -> dict[str, Any]:
    """Look up the default of every field in one mode.

    Args:
        mode: The name of a mode. Any other text counts as variation.

    Returns:
        The defaults by field name.
    """
    return {**DEFAULTS, **MODES.get(mode, {}), "mode": mode}


def mode_fields() -> set[str]:
    """List the fields that have another default in some mode."""
    return {name for preset in MODES.values() for name in preset}


def implied_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Look up the values of the fields that a given mode and a given similarity set.

    Args:
        given: May hold "mode" and "similarity". A wrong one sets nothing.

    Returns:
        Values by field name. The similarity's come after the mode's.
    """
    mode, similarity = given.get("mode"), given.get("similarity")
    values = dict(MODES.get(mode, {})) if isinstance(mode, str) else {}
    if isinstance(similarity, float) and 0 <= similarity <= 1:
        values |= similarity_values(similarity)
    return values


def changed_values(settings: Settings) -> dict[str, Any]:
    """List the values that differ from the defaults of the settings' mode.

    Args:
        settings: The validated settings.

    Returns:
        The values by field name, without images and without the mode itself.
    """
    values, defaults = dict(settings), mode_defaults(settings.mode)
    return {field.name: values[field.name] for field in INFOTEXT_FIELDS if values[field.name] != defaults[field.name]}


def similarity_values(similarity: float) -> dict[str, Any]:
    """Look up which values a similarity stands for.

    Args:
        similarity: From 0 (inspired by the exemplar) over 0.5 (the defaults) to 1 (almost the same).

    Returns:
        The values of the fields in `SIMILARITY`.
    """
    values: dict[str, Any] = {}
    for name, ends in SIMILARITY.items():
        middle = DEFAULTS[name]
        value = middle + (ends[similarity > 0.5] - middle) * abs(2 * similarity - 1)
        values[name] = round(value) if type(middle) is int else round(value, 6)
    return values


def preset_values(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Look up which other fields the choice of a mode and of a similarity sets in the panel.

    Args:
        chosen: May hold "mode" and "similarity". The similarity is applied after the mode.

    Returns:
        Values by field name. A mode sets each field that any mode sets, to this mode's default.
    """
    values: dict[str, Any] = {}
    if "mode" in chosen:
        values = {name: DEFAULTS[name] for name in mode_fields()} | MODES.get(chosen["mode"], {})
    if "similarity" in chosen:
        values |= similarity_values(chosen["similarity"])
    return values


def best_denoising_strength(mode: str, prompt: str, varies_input: bool) -> float:
    """Look up the denoising strength that suits a run best.

    Args:
        mode: The mode.
        prompt: The prompt.
        varies_input: Whether a lower strength keeps the very exemplar, and not another image or one with a mask.

    Returns:
        Above 0 up to 1.
    """
    return WITHOUT_PROMPT if mode == "variation" and varies_input and not prompt.strip() else 1.0


def steps_made(steps: int, denoise: float) -> int:
    """Count the steps that the command line makes.

    Args:
        steps: The steps of the whole schedule.
        denoise: Above 0 up to 1, the share of the steps to make.

    Returns:
        The nearest whole number below.

    Raises:
        RivalError: No step is left.
    """
    # 0.29 of 100 is a little less than 29
    made = int(steps * denoise + 1e-9)
    if made == 0:
        raise RivalError(f"--denoise {denoise:g} leaves none of {steps} steps; raise one of the two.")
    return made


def is_switched_on(args: Sequence[Any]) -> bool:
    """Tell whether a request's arguments switch RIVAL on.

    Args:
        args: One object with the fields' names, or the panel's values with the switch first.

    Returns:
        True unless the switch is False. A switch that is no truth value counts as on, so that parsing names the error.
    """
    switch = args[0].get("enabled", False) if isinstance(args[0], Mapping) else args[0]
    return switch is not False


def is_encodable(text: str) -> bool:
    """Tell whether UTF-8 can hold all characters of a text. JSON and a command line can bring others."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _painted_regions(values: Mapping[str, Any]) -> dict[str, Any]:
    """Split each exemplar that was painted on, `{"image": ..., "mask": ...}`, into its two fields."""
    split: dict[str, Any] = {}
    for suffix in EXEMPLAR_SUFFIXES:
        exemplar, region = "exemplar" + suffix, "exemplar_mask" + suffix
        painted = values.get(exemplar)
        if not isinstance(painted, Mapping):
            continue
        if set(painted) != {"image", "mask"}:
            raise RivalError(_wrong_value(exemplar, painted))
        split[exemplar] = painted["image"]
        strokes = decoded_image(region, painted["mask"])
        if values.get(region) is None and strokes is not None and strokes.convert("L").getbbox():
            split[region] = strokes
    return split


def _normalised(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert what JSON can write in several ways: an image as text, a list of sizes, 1 for 1.0."""
    normalised: dict[str, Any] = {}
    for name, value in values.items():
        field = FIELD_BY_NAME[name]
        if field.is_image:
            normalised[name] = decoded_image(name, value)
        elif type(field.default) is float and type(value) is int and value in (0, 1):
            normalised[name] = float(value)
        elif name in WRITTEN:
            normalised[name] = WRITTEN[name](value)
            if not normalised[name]:
                raise RivalError(_wrong_value(name, value))
        elif name == "exemplar_prompt":
            _refuse_unreadable_prompt(value)
    return normalised


def _refuse_unreadable_prompt(text: Any) -> None:
    if not isinstance(text, str) or len(text) > LONGEST_PROMPT:
        raise RivalError(_wrong_value("exemplar_prompt", text))
    if not is_encodable(text):
        raise RivalError(f"exemplar_prompt must be text that UTF-8 can encode, not {short_repr(text)}.")


def _wrong_value(name: str, value: Any) -> str:
    return f"{name} must be {FIELD_BY_NAME[name].expects}, not {short_repr(value)}."
