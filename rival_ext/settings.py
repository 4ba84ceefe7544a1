"""Every choice of the user: one typed, validated model, and one table of its fields.

Runs on pydantic 1.10 (AUTOMATIC1111) and 2.x (Forge, the command line).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Optional

from PIL import Image
from pydantic import BaseModel, StrictBool, StrictStr, ValidationError, confloat, conint

from rival_ext.errors import RivalError

if TYPE_CHECKING:
    Timestep = int
    Iterations = int
    Fraction = float
else:
    Timestep = conint(strict=True, ge=0, le=1000)
    Iterations = conint(strict=True, ge=1, le=10)
    Fraction = confloat(strict=True, ge=0.25, le=1)


class Settings(BaseModel, extra="forbid", frozen=True, arbitrary_types_allowed=True):
    """What the user asks for. Timesteps run from 1000 (noise) to 0 (clean); the defaults are the authors'.

    exemplar: the image to vary; None is the host's own input, the img2img image.
    """

    enabled: StrictBool = False
    mode: Literal["variation"] = "variation"
    exemplar: Optional[Image.Image] = None  # noqa: UP045  pydantic 1 reads the annotation at run time
    exemplar_prompt: StrictStr = ""
    t_align: Timestep = 600
    t_early: Timestep = 600
    early_steps: Timestep = 1000
    alignment: Literal["noise", "latent", "off"] = "noise"
    start: Literal["permuted", "inverted"] = "permuted"
    inversion_iterations: Iterations = 1
    exemplar_tokens: Fraction = 1.0
    exact: StrictBool = False


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
        """Its value when left out."""
        return dict(Settings())[self.name]


def _choice(name: str, label: str, explanation: str, *choices: str) -> Field:
    return Field(name, label, "one of " + ", ".join(choices), explanation, choices=choices)


def _whole_number(name: str, label: str, explanation: str, minimum: int, maximum: int) -> Field:
    return Field(name, label, f"a whole number from {minimum} to {maximum}", explanation, minimum, maximum)


FIELDS = (
    Field("enabled", "RIVAL", "true or false", "Vary the exemplar"),
    _choice("mode", "Mode", "What is made: variation keeps content and style", "variation"),
    Field(
        "exemplar",
        "Exemplar",
        "an image, or the base64 text of one",
        "The real image to vary; empty takes the img2img image",
    ),
    Field(
        "exemplar_prompt",
        "Exemplar prompt",
        "a text",
        "What the exemplar shows, for its inversion; may stay empty",
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
    _whole_number("early_steps", "early_steps", "Above this timestep attention is untouched; 1000 is off", 0, 1000),
    _choice("alignment", "Alignment", "What takes the exemplar's statistics", "noise", "latent", "off"),
    _choice("start", "Start", "Permuted forgets the exemplar's layout, inverted keeps it", "permuted", "inverted"),
    _whole_number(
        "inversion_iterations", "Inversion iterations", "UNet evaluations for each step of the inversion", 1, 10
    ),
    Field(
        "exemplar_tokens",
        "Exemplar tokens",
        "a number from 0.25 to 1",
        "Fraction of the exemplar's tokens seen below t_align; less is faster",
        minimum=0.25,
        maximum=1,
        step=0.05,
    ),
    Field(
        "exact",
        "Exact guidance",
        "true or false",
        "With an exemplar prompt: invert with the empty prompt too, for the unguided half; twice the work",
    ),
)
"""Field <-> label <-> infotext <-> API <-> command line: the only list of them, in the panel's order."""

PASTED = tuple(field for field in FIELDS if field.name not in ("enabled", "exemplar"))
"""The fields that the infotext carries; an image cannot, and `RIVAL mode` stands for `enabled`."""


def parse_settings(values: Mapping[str, Any]) -> Settings:
    """`Settings` of a JSON-like object; what is left out takes its default.

    Raises RivalError, which names the field, for an unknown field, a wrong type or a value out of range.
    """
    for name in values:
        if name not in Settings.__annotations__:
            raise RivalError(f"unknown field {name!r}; the fields are {', '.join(field.name for field in FIELDS)}.")
    try:
        return Settings(**{**values, **_normalised(values)})
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise RivalError(_wrong_value(name, values[name])) from None


def _normalised(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that JSON can write in more ways than one: an image as text, a fraction as a whole number."""
    normalised: dict[str, Any] = {"exemplar": _decoded(values.get("exemplar"))}
    if type(values.get("exemplar_tokens")) is int and values["exemplar_tokens"] == 1:
        normalised["exemplar_tokens"] = 1.0
    return normalised


def _decoded(exemplar: Any) -> Image.Image | None:
    """An image from what a request can carry: nothing, an image, or base64 text, with or without a data URL's head."""
    if exemplar is None or isinstance(exemplar, Image.Image):
        return exemplar
    if not isinstance(exemplar, str):
        raise RivalError(_wrong_value("exemplar", exemplar))
    try:
        image = Image.open(io.BytesIO(base64.b64decode(exemplar.rpartition(",")[2], validate=True)))
        image.load()
    except Exception:  # a damaged file makes Pillow raise nearly anything
        raise RivalError(_wrong_value("exemplar", exemplar)) from None
    return image


def _wrong_value(name: str, value: Any) -> str:
    expects = next(field.expects for field in FIELDS if field.name == name)
    shown = repr(value)
    return f"{name} must be {expects}, not {shown if len(shown) <= 60 else shown[:57] + '...'}."
