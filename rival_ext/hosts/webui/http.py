"""What all routes of RIVAL share: bounded bodies, errors in one sentence, and the passwords of the WebUI's API."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping
from hashlib import sha256
from secrets import compare_digest
from typing import Any

from fastapi import Depends, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from starlette.exceptions import HTTPException as AnyHTTPException

from rival_ext.errors import RivalError, short_repr
from rival_ext.images.decoding import MEGABYTE

BODY_MEGABYTES = 256
"""The largest body of a request: the largest image as base64, and half of one beside it."""

MOST_DIGITS = 18
"""The most digits of a body's length. Python refuses to read very long ones."""

NOT_JSON = 400
"""The status with which fastapi answers a body that it cannot read at all."""

GIVEN_CREDENTIALS = Depends(HTTPBasic())
"""The user and the password of a request. Without them fastapi answers with 401."""


def plain_route(fields: Collection[str]) -> type[APIRoute]:
    """Make a class of routes that answer every error with one sentence in `detail`.

    Such a route reads no body beyond `BODY_MEGABYTES`.

    Args:
        fields: The fields of the body. A sentence about an unknown field lists them.

    Returns:
        The class, for `APIRouter(route_class=...)`.
    """

    class PlainRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_plainly(request: Request) -> Response:
                try:
                    return await handle(Request(request.scope, bounded(request)))
                except RequestValidationError as error:
                    raise HTTPException(422, _sentence(error, fields)) from None
                except RivalError as error:
                    raise HTTPException(error.status_code, error.detail) from None
                except AnyHTTPException as error:
                    if error.status_code != NOT_JSON:
                        raise
                    raise HTTPException(422, "RIVAL: the body: it is not valid JSON; send a JSON object.") from None

            return handle_plainly

    return PlainRoute


def bounded(request: Request) -> Callable[[], Coroutine[Any, Any, Any]]:
    """Bound a request's body, by the length in its header and by the bytes that really come.

    Args:
        request: The request, not read yet.

    Returns:
        The function to receive the request with.

    Raises:
        HTTPException: 413, now or while the body is received.
    """
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > MOST_DIGITS or int(length) > BODY_MEGABYTES * MEGABYTE:
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


def credentials_of(api_auth: str | None) -> dict[str, str]:
    """Read the host's --api-auth exactly as the host does.

    Args:
        api_auth: The text of the option, if it was given.

    Returns:
        Passwords by user.

    Raises:
        ValueError: The host cannot read it either. The routes are not added then; without passwords they would be open.
    """
    if not api_auth:
        return {}
    return dict(pair.split(":") for pair in api_auth.split(","))


def admission(credentials: Mapping[str, str]) -> Callable[..., None]:
    """Make a dependency that lets in only those who know a user and the password.

    Args:
        credentials: Passwords by user, at least one.

    Returns:
        The dependency. It answers everybody else with 401.
    """
    admitted = [_credential_hash(user, password) for user, password in credentials.items()]

    def admit(given: HTTPBasicCredentials = GIVEN_CREDENTIALS) -> None:
        asking = _credential_hash(given.username, given.password)
        # compared with every known pair, by hashes of one length, so the time betrays neither a name nor a length
        if not sum(compare_digest(asking, known) for known in admitted):
            sentence = "RIVAL: wrong user or password; send those of the WebUI's option --api-auth."
            raise HTTPException(401, sentence, headers={"WWW-Authenticate": "Basic"})

    return admit


def _credential_hash(user: str, password: str) -> bytes:
    # neither the host's command line nor HTTP allows a colon in a user's name
    return sha256(f"{user}:{password}".encode()).digest()


def _too_long() -> HTTPException:
    return HTTPException(413, f"RIVAL: the body must have at most {BODY_MEGABYTES} MB; send smaller images.")


def _sentence(error: RequestValidationError, fields: Collection[str]) -> str:
    """The first thing that is wrong with a request's body."""
    first = error.errors()[0]
    _, *path = first["loc"]
    if not path or not isinstance(path[0], str):
        return f"RIVAL: the body: {first['msg']}."
    if path[0] not in fields:
        return f"RIVAL: unknown field {short_repr(path[0])}; the fields are {', '.join(fields)}."
    return f"RIVAL: {'.'.join(map(str, path))}: {first['msg']}."
