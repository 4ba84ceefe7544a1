"""Whether a run that has not begun will find its inversions stored: by what the panel sees, without encoding anything.

It may say no where the answer is yes, since any option that changed counts; never the other way round.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import ref

from modules import shared

from rival_ext.chain import Chain
from rival_ext.settings import INVERTED_ANEW, Settings
from rival_ext.ui.outlook import digest

OF_REQUEST = ("sampler_name", "scheduler", "steps", "width", "height", "denoising_strength", "resize_mode")
"""What of a request, beside its prompt's networks and its images, decides on an inversion."""
NETWORK = re.compile(r"<[^<>]+:[^<>]*>")

_chains: dict[str, list[ref[Chain]]] = {}


def outline(
    user: str | None, request: Mapping[str, Any], prompt: str, settings: Mapping[str, Any], images: Iterable[str]
) -> str:
    """One text for all that decides on the inversions of a request, of the options and of the loaded checkpoint.

    user: whose request it is, since nobody finds another's. request: with the names above. settings: by field.
    images: digests of the exemplars' pixels, in order.
    """
    # Forge has none before the first run
    checkpoint = getattr(shared.sd_model, "sd_checkpoint_info", None)
    parts = [
        user,
        [request.get(name) for name in OF_REQUEST],
        sorted(NETWORK.findall(prompt)),
        [settings[name] for name in sorted(INVERTED_ANEW)],
        list(images),
        sorted(shared.opts.data.items(), key=str),
        checkpoint and checkpoint.filename,
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def outline_of(p: Any, settings: Settings) -> str | None:
    """Of a batch that runs; None of one that the panel cannot foresee: with a mask, or in the pass of hires fix."""
    if getattr(p, "mask", None) is not None or getattr(p, "is_hr_pass", False):
        return None
    own = (getattr(p, "init_images", None) or [None])[0]
    images = [slot.image or own for slot in settings.slots if slot.image or own]
    request = {name: getattr(p, name, None) for name in OF_REQUEST}
    if own is None:
        request |= {"denoising_strength": None, "resize_mode": None}
    return outline(p.user, request, p.prompt, dict(settings), map(digest, images))


def remember(seen: str | None, chains: Sequence[Chain]) -> None:
    """Ties the chains that a run used to its outline, for as long as somebody keeps them."""
    if seen is not None:
        _chains[seen] = [ref(chain) for chain in chains]
    for gone in [key for key, kept in _chains.items() if not all(chain() for chain in kept)]:
        del _chains[gone]


def is_stored(
    user: str | None, request: Mapping[str, Any], prompt: str, settings: Mapping[str, Any], images: Sequence[str]
) -> bool:
    """Whether all inversions of a run are kept still; as `outline`."""
    asked = outline(user, request, prompt, settings, images)
    return asked in _chains and all(chain() for chain in _chains[asked])
