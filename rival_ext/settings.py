"""Every choice of the user: one typed, validated model, and one table of its fields.

Runs on pydantic 1.10 (AUTOMATIC1111) and 2.x (Forge, the command line).
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Optional

from PIL import Image
from pydantic import BaseModel, StrictBool, StrictStr, ValidationError, confloat, conint

from rival_ext.decoding import in_eight_bits, picture_of_text, refuse_pixels
from rival_ext.errors import RivalError

if TYPE_CHECKING:
    Timestep = int
    Iterations = int
    Fraction = float
    Share = float
else:
    Timestep = conint(strict=True, ge=0, le=1000)
    Iterations = conint(strict=True, ge=1, le=10)
    Fraction = confloat(strict=True, ge=0.25, le=1)
    Share = confloat(strict=True, ge=0, le=1)

Picture = Optional[Image.Image]  # noqa: UP045  pydantic 1 reads the annotation at run time

MODES: dict[str, dict[str, Any]] = {
    "variation": {},
    "text": {"early_steps": 960},
    "edit": {"early_steps": 900, "start_mix": 0.0},
    "inpaint": {},
}
"""The modes, each with the defaults in which it differs (METHOD: paper section 4 and the authors' configurations)."""

MASK_MISSING = "mode inpaint needs a mask: paint one in an inpaint tab, or send one."
"""What is said of a mode that has nothing to fill."""

GUIDANCE = {"variation": 5.0, "text": 7.0, "edit": 7.0, "inpaint": 7.0}
"""The guidance scale that the authors use for each mode."""

PIXELS_PER_POSITION = 8
"""A latent's position stands for so many pixels in each direction."""

SLOTS = ("", "_2", "_3")
"""What the names of the first, second and third exemplar's fields end with."""


LEAST_WEIGHT = 1e-4
"""A lighter exemplar has neither a token nor a position to give, and its share vanishes in 32 bits: it is left out."""


class Slot(NamedTuple):
    """One exemplar as it was asked for; no image is the host's own, no mask is all of it."""

    image: Image.Image | None
    mask: Image.Image | None
    weight: float


class Settings(BaseModel, extra="forbid", frozen=True, arbitrary_types_allowed=True):
    """What the user asks for. Timesteps run from 1000 (noise) to 0 (clean); the defaults are those of `variation`.

    exemplar: the image to vary; None is the host's own input, the img2img image.
    """

    enabled: StrictBool = False
    mode: Literal["variation", "text", "edit", "inpaint"] = "variation"
    similarity: Share = 0.5
    t_align: Timestep = 600
    t_early: Timestep = 600
    start_mix: Share = 1.0
    exemplar: Picture = None
    exemplar_mask: Picture = None
    weight: Share = 1.0
    exemplar_2: Picture = None
    exemplar_mask_2: Picture = None
    weight_2: Share = 1.0
    exemplar_3: Picture = None
    exemplar_mask_3: Picture = None
    weight_3: Share = 1.0
    exemplar_prompt: StrictStr = ""
    layers: StrictStr = "all"
    strength: Share = 1.0
    early_steps: Timestep = 1000
    alignment: Literal["noise", "latent", "off"] = "noise"
    inversion_iterations: Iterations = 1
    exemplar_tokens: Fraction = 1.0
    features: Literal["recorded", "live"] = "recorded"
    exact: StrictBool = False
    plain_inversion: StrictBool = False

    @property
    def slots(self) -> list[Slot]:
        """The exemplars that have a share: the first always has its place, the others where an image is given."""
        values = dict(self)
        slots = [Slot(*(values[name + ending] for name in ("exemplar", "exemplar_mask", "weight"))) for ending in SLOTS]
        return [slot for slot in slots[:1] + [slot for slot in slots[1:] if slot.image] if slot.weight >= LEAST_WEIGHT]

    def token_pixels(self, available: Set[int]) -> set[int]:
        """Of the sizes of a token in pixels that the UNet's layers have, those which `layers` names.

        Raises RivalError if none is left.
        """
        finest = min(available)
        presets = {"all": set(available), "fine": {finest}, "coarse": set(available) - {finest}}
        if self.layers in presets:
            wanted = presets[self.layers]
        else:
            wanted = {int(size) for size in self.layers.split(",")} & set(available)
        if not wanted:
            sizes = ", ".join(map(str, sorted(available)))
            raise RivalError(f"layers names none of this checkpoint's token sizes, {sizes} pixels; choose among them.")
        return wanted


@dataclass(frozen=True)
class Field:
    """One field of `Settings` as people meet it.

    label: in the panel. expects: completes "must be ...". help: the panel's tooltip and the command line's help.
    minimum, maximum: of a number. choices: of a name.
    """

    name: str
    label: str
    expects: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    step: float = 1
    choices: tuple[str, ...] = ()

    @property
    def infotext(self) -> str:
        """Its name in the image's generation parameters."""
        return f"RIVAL {self.name}"

    @property
    def flag(self) -> str:
        """Its option on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def default(self) -> Any:
        """Its value when left out, in mode `variation`."""
        return dict(Settings())[self.name]

    @property
    def is_picture(self) -> bool:
        """Whether it is an image, which no infotext can carry."""
        return self.expects == A_PICTURE


LONGEST_SHOWN = 60
"""Characters of a wrong value that a sentence shows."""

MOST_BITS_SHOWN = 128

MOST_SIZES = 16
"""No checkpoint has as many token sizes."""

LARGEST_SIZE = 9999

LONGEST_PROMPT = 10_000
"""Characters: a hundred times what a tokenizer reads at once."""

A_PICTURE = "an image, or the base64 text of one"


def _choice(name: str, label: str, explanation: str, *choices: str) -> Field:
    return Field(name, label, "one of " + ", ".join(choices), explanation, choices=choices)


def _whole_number(name: str, label: str, explanation: str, minimum: int, maximum: int) -> Field:
    return Field(name, label, f"a whole number from {minimum} to {maximum}", explanation, minimum, maximum)


def _fraction(name: str, label: str, explanation: str, minimum: float = 0) -> Field:
    return Field(name, label, f"a number from {minimum} to 1", explanation, minimum, maximum=1, step=0.05)


def _exemplar_fields(ending: str, ordinal: str, empty: str) -> tuple[Field, ...]:
    return (
        Field(
            "exemplar" + ending,
            f"{ordinal} exemplar",
            A_PICTURE,
            f"A real image to take content and style from; {empty}",
        ),
        Field(
            "exemplar_mask" + ending,
            f"Region of the {ordinal.lower()} exemplar",
            A_PICTURE,
            "White where this exemplar is seen, black where not; empty shows all of it",
        ),
        _fraction(
            "weight" + ending, f"Weight of the {ordinal.lower()}", "Its share among the exemplars; 0 leaves it out"
        ),
    )


FIELDS = (
    Field("enabled", "RIVAL", "true or false", "Vary the exemplar"),
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
        "From inspired by the exemplar to almost the same: sets t_align, t_early and start_mix",
    ),
    _whole_number(
        "t_align", "t_align", "Above this timestep attention sees the exemplar only; smaller is closer", 0, 1000
    ),
    _whole_number(
        "t_early",
        "t_early",
        "Above this timestep statistics are aligned; smaller is closer in colour",
        0,
        1000,
    ),
    _fraction("start_mix", "start_mix", "0 starts as the exemplar was inverted, in its layout; 1 forgets its layout"),
    *_exemplar_fields("", "First", "empty takes the img2img image"),
    *_exemplar_fields("_2", "Second", "may stay empty"),
    *_exemplar_fields("_3", "Third", "may stay empty"),
    Field(
        "exemplar_prompt",
        "Exemplar prompt",
        f"a text of at most {LONGEST_PROMPT} characters",
        "What the exemplar shows, for its inversion; may stay empty",
    ),
    Field(
        "layers",
        "Layers",
        "all, fine, coarse, or sizes of a token in pixels such as 8, 16",
        "Which self-attention layers see the exemplar: fine (the smallest tokens) do nearly all, coarse (the others) "
        "bring some of the colours and leave the prompt's thing alone; or token sizes in pixels such as 8, 16",
    ),
    _fraction("strength", "Strength", "How much of the attention the exemplar may take; below 1 costs time"),
    _whole_number("early_steps", "early_steps", "Above this timestep attention is untouched; 1000 is off", 0, 1000),
    _choice("alignment", "Alignment", "What takes the exemplar's statistics", "noise", "latent", "off"),
    _whole_number(
        "inversion_iterations", "Inversion iterations", "UNet evaluations for each step of the inversion", 1, 10
    ),
    _fraction(
        "exemplar_tokens",
        "Exemplar tokens",
        "Fraction of the exemplar's tokens seen below t_align; less is faster",
        minimum=0.25,
    ),
    _choice(
        "features",
        "Features",
        "recorded in the inversion, in memory, where the sampler and the budget allow it; live evaluates the exemplar "
        "beside every step, which takes half as long again and no memory",
        "recorded",
        "live",
    ),
    Field(
        "exact",
        "Exact guidance",
        "true or false",
        "With an exemplar prompt: invert with the empty prompt too, for the unguided half; twice the work",
    ),
    Field(
        "plain_inversion",
        "Inversion without LoRAs",
        "true or false",
        "Leaves the prompt's LoRAs out of the inversion; they act on the generation only",
    ),
)
"""Field <-> label <-> infotext <-> API <-> command line: the only list of them, in the panel's order."""

INVERTED_ANEW = frozenset({"exemplar_prompt", "inversion_iterations", "features", "exact", "plain_inversion"})
"""The fields of which another value needs another inversion of the same picture."""

PASTED = tuple(field for field in FIELDS if field.name != "enabled" and not field.is_picture)
"""The fields that the infotext carries; `RIVAL mode` stands for `enabled`."""


def similar(similarity: float) -> dict[str, Any]:
    """What `similarity` (0 inspired by the exemplar, 0.5 as the authors, 1 almost the same) stands for."""
    timestep = round(1000 - 800 * similarity)
    return {"t_align": timestep, "t_early": timestep, "start_mix": min(1.0, round(2 - 2 * similarity, 6))}


def stood_for(choices: Mapping[str, Any]) -> dict[str, Any]:
    """What a choice of the mode, then one of the similarity, sets in the panel; `choices` holds neither, one or both.

    A mode sets whatever any mode sets, each to its own default.
    """
    stands_for: dict[str, Any] = {}
    if "mode" in choices:
        defaults = dict(Settings())
        stands_for = {name: defaults[name] for preset in MODES.values() for name in preset} | MODES[choices["mode"]]
    if "similarity" in choices:
        stands_for |= similar(choices["similarity"])
    return stands_for


def is_switched_on(args: Sequence[Any]) -> bool:
    """Whether the switch in a request's arguments, an object or the panel's values, is anything but off.

    What is wrong with it is said where the settings are read.
    """
    switch = args[0].get("enabled", False) if isinstance(args[0], Mapping) else args[0]
    return switch is not False


def parse_settings(values: Mapping[str, Any]) -> Settings:
    """`Settings` of a JSON-like object; what is left out takes its mode's default, or what a given `similarity` says.

    Raises RivalError, which names the field, for an unknown field, a wrong type or a value out of range.
    """
    for name in values:
        if name not in Settings.__annotations__:
            raise RivalError(
                f"unknown field {shown(name)}; the fields are {', '.join(field.name for field in FIELDS)}."
            )
    values = {**values, **_drawn_regions(values)}
    given = {**values, **_normalised(values)}
    try:
        preset = dict(Settings(**given))
        similarity = similar(preset["similarity"]) if "similarity" in values else {}
        return Settings(**{**MODES[preset["mode"]], **similarity, **given})
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise RivalError(_wrong_value(name, values[name])) from None


def _drawn_regions(values: Mapping[str, Any]) -> dict[str, Any]:
    """An exemplar that somebody painted on, `{"image": ..., "mask": ...}`, as the two fields that it stands for."""
    apart: dict[str, Any] = {}
    for ending in SLOTS:
        exemplar, region = "exemplar" + ending, "exemplar_mask" + ending
        painted = values.get(exemplar)
        if not isinstance(painted, Mapping):
            continue
        if set(painted) != {"image", "mask"}:
            raise RivalError(_wrong_value(exemplar, painted))
        apart[exemplar] = painted["image"]
        strokes = decoded_picture(region, painted["mask"])
        if values.get(region) is None and strokes is not None and strokes.convert("L").getbbox():
            apart[region] = strokes
    return apart


def _normalised(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that JSON can write in more ways than one: an image as text, a list of sizes, 1 for 1.0."""
    normalised: dict[str, Any] = {}
    for field in FIELDS:
        value = values.get(field.name)
        if field.is_picture:
            normalised[field.name] = decoded_picture(field.name, value)
        elif type(field.default) is float and type(value) is int and value in (0, 1):
            normalised[field.name] = float(value)
    if "layers" in values:
        normalised["layers"] = _layers(values["layers"])
    if "exemplar_prompt" in values:
        _refuse_unreadable(values["exemplar_prompt"])
    return normalised


def _layers(value: Any) -> str:
    """`all`, `fine`, `coarse` or sizes, whichever way they are written, as `Settings` keeps them."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not 0 < len(parts) <= MOST_SIZES:
        raise RivalError(_wrong_value("layers", value))
    written = [_size(part) for part in parts]
    if written not in (["all"], ["fine"], ["coarse"]) and not all(part.isdecimal() for part in written):
        raise RivalError(_wrong_value("layers", value))
    return ",".join(written)


def _size(part: Any) -> str:
    """A size or a name as it was written, empty where it can be neither."""
    if type(part) is int and 0 <= part <= LARGEST_SIZE:
        return str(part)
    text = part.strip() if isinstance(part, str) else ""
    return text if len(text) <= len(str(LARGEST_SIZE)) or not text.isdecimal() else ""


def _refuse_unreadable(text: Any) -> None:
    """Raises RivalError for an exemplar prompt that no tokenizer could read, or not in a useful time."""
    if not isinstance(text, str) or len(text) > LONGEST_PROMPT:
        raise RivalError(_wrong_value("exemplar_prompt", text))
    if not is_writable(text):
        raise RivalError(f"exemplar_prompt must be text without broken characters, not {shown(text)}.")


def is_writable(text: str) -> bool:
    """Whether UTF-8 has all of its characters; JSON and a command line can bring others."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def decoded_picture(name: str, value: Any) -> Image.Image | None:
    """An image from what a request can carry: nothing, an image, or base64 text, with or without a data URL's head.

    It is upright, and grey, RGB or RGBA. Raises RivalError, which names the field, for anything else and for more bytes
    or pixels than are taken.
    """
    image = host_picture(name, value)
    if image is None:
        return None
    converted = in_eight_bits(image)
    if converted is None:
        raise RivalError(_must_be(name, A_PICTURE, value))
    return converted


def host_picture(name: str, value: Any) -> Image.Image | None:
    """As `decoded_picture`, but in its file's own colours: for a host that makes of these what it likes."""
    if value is None:
        return None
    image = value
    if isinstance(value, str):
        image = picture_of_text(name, value)
    if not isinstance(image, Image.Image):
        raise RivalError(_must_be(name, A_PICTURE, value))
    refuse_pixels(name, image.size)
    return image


def _wrong_value(name: str, value: Any) -> str:
    return _must_be(name, next(field.expects for field in FIELDS if field.name == name), value)


def _must_be(name: str, expects: str, value: Any) -> str:
    return f"{name} must be {expects}, not {shown(value)}."


class _Shown(reprlib.Repr):
    """Never long and never deep, whatever was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxlong = self.maxother = LONGEST_SHOWN

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write out very long ones."""
        if x.bit_length() <= MOST_BITS_SHOWN:
            return super().repr_int(x, level)
        return f"a number of some {int(x.bit_length() * math.log10(2)) + 1} digits"


def shown(value: Any) -> str:
    """A value that was sent, short enough for a sentence."""
    text = _Shown().repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."
