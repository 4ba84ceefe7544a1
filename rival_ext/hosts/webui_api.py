"""The HTTP routes in the WebUI: served where its own API is, behind the same passwords."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from modules import shared
from PIL import Image

from rival_ext.errors import RivalError
from rival_ext.settings import decoded_picture, host_picture, is_writable, parse_settings, shown

if TYPE_CHECKING:
    from rival_ext.api import InvertRequest, InvertResponse
    from rival_ext.store import ChainStore


READ_BY_HOST = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F")
"""Modes of a picture that Pillow turns into RGB in one step, as the host does."""


def add_routes(_: Any, app: Any) -> None:
    """Adds them to the WebUI's app if it was started with --api; nothing of the method is imported for it yet."""
    if not (shared.cmd_opts.api or shared.cmd_opts.nowebui):
        return
    from rival_ext.api import router

    app.include_router(router(WebuiBackend(), _credentials(shared.cmd_opts.api_auth)))


def _credentials(api_auth: str | None) -> dict[str, str]:
    """User -> password, as the host itself reads its --api-auth.

    Raises ValueError for what it cannot read either, so that there are no routes rather than open ones.
    """
    if not api_auth:
        return {}
    return dict(pair.split(":") for pair in api_auth.split(","))


class WebuiBackend:
    """What the routes ask of this WebUI (`rival_ext.api.Backend`)."""

    def invert(self, asked: InvertRequest) -> InvertResponse:
        from rival_ext.api import InvertResponse
        from rival_ext.hosts.webui_check import CheckRequest, check_in_queue

        for text in (asked.prompt, *asked.styles):
            if not is_writable(text):
                raise RivalError(f"prompt and styles must be text without broken characters, not {shown(text)}.")
        fields = dict(asked)
        fields["image"] = _as_the_host_reads(asked.image)
        fields["settings"] = parse_settings(asked.settings)
        checked = check_in_queue(CheckRequest(**fields))
        return InvertResponse(
            chain_id=checked.chain,
            psnr=checked.psnr,
            grade=checked.verdict.grade,
            verdict=checked.verdict.sentence,
            original=_base64(checked.original),
            ceiling=_base64(checked.ceiling),
            reconstruction=_base64(checked.reconstruction),
            seconds=round(checked.seconds, 3),
            evaluations=checked.evaluations,
            stored=checked.is_stored,
            report=checked.report.as_dict(),
        )

    def store(self) -> ChainStore:
        # whoever has the API's password is one user, and none of those who log in to the page
        from rival_ext.hosts.webui import STORE

        return STORE


def _as_the_host_reads(text: str | None) -> Image.Image | None:
    """The img2img image with whatever the host makes of its colours, so that a run finds its inversion stored.

    What the host could not read at all is read as any other picture.
    """
    image = host_picture("image", text)
    if image is None or image.mode in READ_BY_HOST:
        return image
    return decoded_picture("image", image)


def _base64(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
