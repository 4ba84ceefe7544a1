"""The HTTP routes beside the WebUI's own API: check an inversion, list and release stored ones, the settings' schema.

Nothing of the method is loaded before a route needs it.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Optional

import pydantic
from fastapi import APIRouter, Depends, HTTPException
from PIL import Image
from pydantic import BaseModel

from rival_ext import __version__
from rival_ext.errors import RivalError, short_repr
from rival_ext.fields import settings_schema
from rival_ext.hosts.webui.http import admission, credentials_of, plain_route
from rival_ext.images.decoding import decoded_image, host_image
from rival_ext.settings import PIXELS_PER_POSITION, is_encodable, parse_settings

if TYPE_CHECKING:
    from rival_ext.hosts.webui.check import CheckRequest
    from rival_ext.hosts.webui.session import Session
    from rival_ext.storage.store import StoreEntry

PREFIX = "/rival/v1"

UNITS = {"hour": 3600, "minute": 60}
"""Units of time, in seconds."""

READ_BY_HOST = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F")
"""The image modes that Pillow converts to RGB in one step, as the host does."""


def _settings_field() -> Any:
    """A field that takes any object: `parse_settings` says in a sentence what is wrong. Its schema lists the fields."""
    schema = settings_schema()
    described = {name: schema[name] for name in ("properties", "additionalProperties")}
    # pydantic 2 has a keyword for additions to a schema, pydantic 1 takes them directly
    added = {"json_schema_extra": described} if pydantic.VERSION >= "2" else described
    return pydantic.Field(default_factory=dict, description="As the always-on script takes them", **added)


class InvertRequest(BaseModel, extra="forbid"):
    """An exemplar, and the settings of the run for which it is inverted."""

    image: Optional[str] = pydantic.Field(  # noqa: UP045  pydantic 1 reads the annotation at run time
        None,
        description="The img2img image, base64 or a data URL. Without it the run is one of txt2img, whose exemplar is "
        "in the settings",
    )
    settings: dict[str, Any] = _settings_field()
    prompt: str = pydantic.Field("", description="Its LoRA tags count; its words make no difference to an inversion")
    styles: list[str] = pydantic.Field(default_factory=list, description="The WebUI's styles, by name")
    sampler_name: str = pydantic.Field("DDIM", description="One of /sdapi/v1/samplers")
    scheduler: str = pydantic.Field("", description="One of /sdapi/v1/schedulers; empty is the sampler's own")
    steps: int = pydantic.Field(50, ge=1, le=1000, description="Sampling steps")
    width: int = pydantic.Field(512, ge=64, le=4096, description="In pixels, rounded down to a multiple of 8")
    height: int = pydantic.Field(512, ge=64, le=4096, description="In pixels, rounded down to a multiple of 8")
    denoising_strength: float = pydantic.Field(1.0, ge=0, le=1, description="For img2img; RIVAL is meant for 1")
    resize_mode: int = pydantic.Field(
        0, ge=0, le=3, description="For img2img: 0 stretch, 1 crop, 2 fill, 3 stretch the latent"
    )
    override_settings: dict[str, Any] = pydantic.Field(
        default_factory=dict, description="The WebUI's options for this request alone: checkpoint, VAE, clip skip"
    )

    # reuse is allowed, because "Reload UI" loads this file again in the same process
    @pydantic.validator("denoising_strength", pre=True, allow_reuse=True)
    def _within_all_floats(cls, value: Any) -> Any:  # noqa: N805
        """Refuse a whole number that no float can hold. Pydantic 1 has no sentence for it."""
        if isinstance(value, int) and abs(value) > 1:
            raise ValueError("must be a number from 0 to 1")
        return value


class InvertResponse(BaseModel):
    """How exact the inversion is. It stays stored: a run with the same image and settings inverts nothing."""

    chain_id: Optional[str] = pydantic.Field(  # noqa: UP045
        description="The inversion's id in the store; null if the memory budget has no room for it"
    )
    psnr: float = pydantic.Field(description="dB of the reconstruction against what the VAE alone makes of the image")
    grade: Literal["good", "fair", "poor"]
    verdict: str = pydantic.Field(description="The grade in words, and what to change")
    original: str = pydantic.Field(description="The exemplar as the model saw it, PNG in base64")
    ceiling: str = pydantic.Field(description="The exemplar as the VAE alone gives it back, PNG in base64")
    reconstruction: str = pydantic.Field(description="The exemplar led back from its inversion, PNG in base64")
    seconds: float = pydantic.Field(description="Wall-clock seconds of the inversion and the way back")
    evaluations: int = pydantic.Field(description="UNet rows of both")
    stored: bool = pydantic.Field(description="Whether the inversion had been stored before")
    report: dict[str, Any] = pydantic.Field(
        description="As report.json of the command line; the way back counts as generation"
    )


class StoredChain(BaseModel):
    """An inversion in memory. Its image and its prompt are not told."""

    id: str
    bytes: int
    what: str = pydantic.Field(description="Its size and its noise levels")
    when: str = pydantic.Field(description="How long ago it was made")


class Store(BaseModel):
    """The stored inversions, the least recently used first."""

    bytes: int = pydantic.Field(description="The memory that all of them hold")
    chains: list[StoredChain]


class Freed(BaseModel):
    """The memory that was released."""

    bytes: int
    chains: int


class Version(BaseModel):
    """The version of the extension."""

    version: str


class Problem(BaseModel):
    """What is wrong, in one sentence."""

    detail: str


def add_routes(app: Any, command_line: Any, open_session: Callable[[], Session]) -> None:
    """Add the routes to the WebUI's app, if the WebUI was started with its API.

    Args:
        app: The WebUI's fastapi app.
        command_line: The options with which the WebUI was started.
        open_session: Returns what is kept between runs.
    """
    if command_line.api or command_line.nowebui:
        app.include_router(router(open_session, command_line.api_auth))


def router(open_session: Callable[[], Session], api_auth: str | None) -> APIRouter:
    """Make the routes.

    Args:
        open_session: Returns what is kept between runs. All clients of the API are one user.
        api_auth: The host's option. If it is given, only those who know a password are let in.

    Returns:
        The router.
    """
    credentials = credentials_of(api_auth)
    routes = APIRouter(
        prefix=PREFIX,
        tags=["RIVAL"],
        route_class=plain_route(list(InvertRequest.__annotations__)),
        dependencies=[Depends(admission(credentials))] if credentials else [],
    )

    @routes.post("/invert", responses={422: {"model": Problem}})
    def invert(asked: InvertRequest) -> InvertResponse:
        """Invert an exemplar, lead it back and say how exact the result is. The inversion stays stored."""
        return _invert(asked, open_session())

    @routes.get("/settings/schema", response_model=dict[str, Any])
    def schema() -> dict[str, Any]:
        """Return the JSON Schema of the settings: types, bounds, choices, defaults, what each does."""
        return settings_schema()

    @routes.get("/store", response_model=Store)
    def contents() -> Store:
        """List the stored inversions, the least recently used first."""
        entries = open_session().store.entries
        return Store(bytes=sum(entry.chain.bytes for entry in entries), chains=[_stored_chain(one) for one in entries])

    @routes.delete("/store", response_model=Freed)
    def clear() -> Freed:
        """Release the memory of all stored inversions."""
        session = open_session()
        chains = len(session.store.entries)
        return Freed(bytes=session.release(None), chains=chains)

    @routes.delete("/store/{chain_id}", response_model=Freed, responses={404: {"model": Problem}})
    def remove(chain_id: str) -> Freed:
        """Release the memory of one stored inversion."""
        freed = open_session().release_one(chain_id)
        if freed is None:
            raise HTTPException(404, "RIVAL: no stored inversion has this id; GET /rival/v1/store lists the ids.")
        return Freed(bytes=freed, chains=1)

    @routes.get("/version", response_model=Version)
    def version() -> Version:
        """Return the version of the extension."""
        return Version(version=__version__)

    return routes


def _invert(asked: InvertRequest, session: Session) -> InvertResponse:
    from rival_ext.hosts.webui.check import check_in_queue

    checked = check_in_queue(_check_request(asked), session)
    return InvertResponse(
        chain_id=checked.chain,
        psnr=checked.psnr,
        grade=checked.verdict.grade,
        verdict=checked.verdict.sentence,
        original=_png_text(checked.original),
        ceiling=_png_text(checked.ceiling),
        reconstruction=_png_text(checked.reconstruction),
        seconds=round(checked.seconds, 3),
        evaluations=checked.evaluations,
        stored=checked.is_stored,
        report=checked.report.as_dict(),
    )


def _check_request(asked: InvertRequest) -> CheckRequest:
    from rival_ext.hosts.webui.check import CheckRequest

    for text in (asked.prompt, *asked.styles):
        if not is_encodable(text):
            raise RivalError(f"prompt and styles must be text that UTF-8 can encode, not {short_repr(text)}.")
    fields = dict(asked)
    fields["image"] = _as_host_reads(asked.image)
    fields["settings"] = parse_settings(asked.settings)
    return CheckRequest(**fields)


def _as_host_reads(text: str | None) -> Image.Image | None:
    """The img2img image with the colours that the host makes of it, so that a run finds its inversion stored.

    An image that the host could not read at all is decoded like any other.
    """
    image = host_image("image", text)
    if image is None or image.mode in READ_BY_HOST:
        return image
    return decoded_image("image", image)


def _stored_chain(entry: StoreEntry) -> StoredChain:
    chain = entry.chain
    height, width = (PIXELS_PER_POSITION * side for side in chain.latents.shape[2:])
    features = "with" if chain.features else "without"
    what = f"an exemplar of {width}x{height} pixels at {len(chain.noise_levels) - 1} noise levels, {features} features"
    return StoredChain(id=entry.id, bytes=chain.bytes, what=what, when=f"made {_age(time.time() - entry.made)} ago")


def _age(seconds: float) -> str:
    unit, length = next(((unit, length) for unit, length in UNITS.items() if seconds >= length), ("second", 1))
    number = int(seconds // length)
    return f"{number} {unit}{'s' * (number != 1)}"


def _png_text(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
