"""HTTP routes beside the always-on script: an inversion of its own, what is stored, the settings' schema.

Knows neither the WebUI nor, until a route asks for it, the method: what it serves is given to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping
from hashlib import sha256
from secrets import compare_digest
from typing import TYPE_CHECKING, Any, Literal, Optional, Protocol

import pydantic
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import BaseModel
from starlette.exceptions import HTTPException as AnyHTTPException

from rival_ext import __version__
from rival_ext.decoding import MEGABYTE
from rival_ext.errors import RivalError
from rival_ext.schema import settings_schema
from rival_ext.settings import PIXELS_PER_POSITION, shown

if TYPE_CHECKING:
    from rival_ext.store import ChainStore, Kept

PREFIX = "/rival/v1"

BODY_MEGABYTES = 256
"""The most that the body of a request may have: the largest picture as base64, and half of one beside it."""

MOST_DIGITS = 18

NO_JSON = 400
"""What fastapi answers where it cannot make anything of a body."""

UNITS = {"hour": 3600, "minute": 60}
"""In seconds."""

PASSWORD = Depends(HTTPBasic())


def _settings_field() -> Any:
    """Any object for pydantic: `parse_settings` says in a sentence what is wrong. Its schema says what it takes."""
    schema = settings_schema()
    described = {name: schema[name] for name in ("properties", "additionalProperties")}
    # pydantic 2 has a word for what is added to a schema, 1 takes it as it is
    added = {"json_schema_extra": described} if pydantic.VERSION >= "2" else described
    return pydantic.Field(default_factory=dict, description="As the always-on script takes them", **added)


class InvertRequest(BaseModel, extra="forbid"):
    """An exemplar and the settings of the run that it is inverted for."""

    image: Optional[str] = pydantic.Field(  # noqa: UP045  pydantic 1 reads the annotation at run time
        None,
        description="The img2img image, base64 or a data URL; without one a run of txt2img is meant, whose exemplar is "
        "in the settings",
    )
    settings: dict[str, Any] = _settings_field()
    prompt: str = pydantic.Field("", description="For its LoRA tags; its words make no difference to an inversion")
    styles: list[str] = pydantic.Field(default_factory=list, description="The WebUI's styles, by name")
    sampler_name: str = pydantic.Field("DDIM", description="One of /sdapi/v1/samplers")
    scheduler: str = pydantic.Field("", description="One of /sdapi/v1/schedulers; empty is the sampler's own")
    steps: int = pydantic.Field(50, ge=1, le=1000, description="Sampling steps")
    width: int = pydantic.Field(512, ge=64, le=4096, description="In pixels, a multiple of 8")
    height: int = pydantic.Field(512, ge=64, le=4096, description="In pixels, a multiple of 8")
    denoising_strength: float = pydantic.Field(1.0, ge=0, le=1, description="Of img2img; RIVAL is meant for 1")
    resize_mode: int = pydantic.Field(
        0, ge=0, le=3, description="Of img2img: 0 stretch, 1 crop, 2 fill, 3 stretch the latent"
    )
    override_settings: dict[str, Any] = pydantic.Field(
        default_factory=dict, description="The WebUI's options for this request alone: checkpoint, VAE, clip skip"
    )

    # allowed anew, since "Reload UI" loads this file again in the same process
    @pydantic.validator("denoising_strength", pre=True, allow_reuse=True)
    def _within_all_floats(cls, value: Any) -> Any:  # noqa: N805
        """Pydantic 1 has no word for a whole number that no float can hold."""
        if isinstance(value, int) and abs(value) > 1:
            raise ValueError("must be a number from 0 to 1")
        return value


class InvertResponse(BaseModel):
    """How exact the inversion is. It stays stored: a run with the same image and settings inverts nothing."""

    chain_id: Optional[str] = pydantic.Field(  # noqa: UP045
        description="Its name in the store; null where the memory budget has no room for it"
    )
    psnr: float = pydantic.Field(description="dB of the reconstruction against what the VAE alone makes of the image")
    grade: Literal["good", "fair", "poor"]
    verdict: str = pydantic.Field(description="The grade in words, and what to change")
    original: str = pydantic.Field(description="The exemplar as the model was shown it, PNG in base64")
    ceiling: str = pydantic.Field(description="The exemplar as the VAE alone gives it back, PNG in base64")
    reconstruction: str = pydantic.Field(description="The exemplar led back from its inversion, PNG in base64")
    seconds: float = pydantic.Field(description="Of the inversion and the way back")
    evaluations: int = pydantic.Field(description="Of the UNet, in rows")
    stored: bool = pydantic.Field(description="Whether the inversion had been stored before")
    report: dict[str, Any] = pydantic.Field(
        description="As report.json of the command line; the way back counts as generation"
    )


class StoredChain(BaseModel):
    """An inversion that is kept in memory. Nothing of its picture or its prompt is told."""

    id: str
    bytes: int
    what: str = pydantic.Field(description="Its size and its noise levels")
    when: str = pydantic.Field(description="How long ago it was made")


class Store(BaseModel):
    """What is kept, the least recently used first."""

    bytes: int
    chains: list[StoredChain]


class Freed(BaseModel):
    """What was given back."""

    bytes: int
    chains: int


class Version(BaseModel):
    """Of the extension."""

    version: str


class Problem(BaseModel):
    """What is wrong, in one sentence."""

    detail: str


class Backend(Protocol):
    """What a host gives."""

    def invert(self, asked: InvertRequest) -> InvertResponse:
        """Inverts and leads back, in its turn among the host's jobs. Raises RivalError."""

    def store(self) -> ChainStore:
        """What is kept between runs."""


class PlainRoute(APIRoute):
    """Whatever is wrong with a request is one sentence in `detail`; no body is read further than it may be long."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_plainly(request: Request) -> Response:
            try:
                return await handle(Request(request.scope, _bounded(request)))
            except RequestValidationError as error:
                raise HTTPException(422, _sentence(error)) from None
            except RivalError as error:
                raise HTTPException(error.status_code, error.detail) from None
            except AnyHTTPException as error:
                if error.status_code != NO_JSON:
                    raise
                raise HTTPException(422, "RIVAL: the body: it is no JSON that can be read.") from None

        return handle_plainly


def _bounded(request: Request) -> Callable[[], Coroutine[Any, Any, Any]]:
    """What a request is received by, up to the bound: by the length that it tells, and by what really comes."""
    told = request.headers.get("content-length", "0")
    if not told.isdecimal() or len(told) > MOST_DIGITS or int(told) > BODY_MEGABYTES * MEGABYTE:
        raise _too_long()
    received = 0

    async def receive() -> Any:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > BODY_MEGABYTES * MEGABYTE:
            raise _too_long()
        return message

    return receive


def _too_long() -> HTTPException:
    return HTTPException(413, f"RIVAL: the body may have {BODY_MEGABYTES} MB; send smaller pictures.")


def router(backend: Backend, credentials: Mapping[str, str]) -> APIRouter:
    """The routes; where there are credentials, user -> password, only for who has them."""
    routes = APIRouter(
        prefix=PREFIX,
        tags=["RIVAL"],
        route_class=PlainRoute,
        dependencies=[Depends(_admission(credentials))] if credentials else [],
    )

    @routes.post("/invert", responses={422: {"model": Problem}})
    def invert(asked: InvertRequest) -> InvertResponse:
        """Inverts an exemplar, leads it back and says how exact that is. The inversion stays stored."""
        return backend.invert(asked)

    @routes.get("/settings/schema", response_model=dict[str, Any])
    def schema() -> dict[str, Any]:
        """JSON Schema of the settings: types, bounds, choices, defaults, what each does."""
        return settings_schema()

    @routes.get("/store", response_model=Store)
    def contents() -> Store:
        """The inversions in memory."""
        kept = backend.store().kept
        return Store(bytes=sum(one.chain.bytes for one in kept), chains=[_stored(one) for one in kept])

    @routes.delete("/store", response_model=Freed)
    def clear() -> Freed:
        """Gives the memory of all of them back."""
        store = backend.store()
        freed = Freed(bytes=store.bytes, chains=len(store.kept))
        store.clear()
        return freed

    @routes.delete("/store/{chain_id}", response_model=Freed, responses={404: {"model": Problem}})
    def remove(chain_id: str) -> Freed:
        """Gives the memory of one of them back."""
        store = backend.store()
        size = next((one.chain.bytes for one in store.kept if one.id == chain_id), 0)
        if not store.remove(chain_id):
            raise HTTPException(404, "RIVAL: no inversion with this id is stored; it may have made room for others.")
        return Freed(bytes=size, chains=1)

    @routes.get("/version", response_model=Version)
    def version() -> Version:
        """Of the extension."""
        return Version(version=__version__)

    return routes


def _admission(credentials: Mapping[str, str]) -> Callable[..., None]:
    admitted = [_digest(user, password) for user, password in credentials.items()]

    def admit(given: HTTPBasicCredentials = PASSWORD) -> None:
        asking = _digest(given.username, given.password)
        # with each of them, and by digests of one length: the time taken tells neither a user's name nor a length
        if not sum(compare_digest(asking, known) for known in admitted):
            sentence = "RIVAL: wrong user or password; they are those of the WebUI's own API."
            raise HTTPException(401, sentence, headers={"WWW-Authenticate": "Basic"})

    return admit


def _digest(user: str, password: str) -> bytes:
    # neither the host's command line nor HTTP lets a user's name have a colon
    return sha256(f"{user}:{password}".encode()).digest()


def _stored(kept: Kept) -> StoredChain:
    chain = kept.chain
    height, width = (PIXELS_PER_POSITION * side for side in chain.latents.shape[2:])
    features = "with" if chain.features else "without"
    what = f"an exemplar of {width}x{height} pixels at {len(chain.noise_levels) - 1} noise levels, {features} features"
    return StoredChain(id=kept.id, bytes=chain.bytes, what=what, when=f"made {_ago(time.time() - kept.made)} ago")


def _ago(seconds: float) -> str:
    unit, length = next(((unit, length) for unit, length in UNITS.items() if seconds >= length), ("second", 1))
    number = int(seconds // length)
    return f"{number} {unit}{'s' * (number != 1)}"


def _sentence(error: RequestValidationError) -> str:
    """The first thing that is wrong with a request's body."""
    first = error.errors()[0]
    _, *path = first["loc"]
    if not path or not isinstance(path[0], str):
        return f"RIVAL: the body: {first['msg']}."
    fields = InvertRequest.__annotations__
    if path[0] not in fields:
        return f"RIVAL: unknown field {shown(path[0])}; the fields are {', '.join(fields)}."
    return f"RIVAL: {'.'.join(map(str, path))}: {first['msg']}."
