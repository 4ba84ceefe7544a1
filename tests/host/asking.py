"""Requests to a server, and comparisons of its answers."""

from __future__ import annotations

import re
from contextlib import contextmanager

import numpy as np
import torch

from rival_ext.images.transforms import rgb_array
from rival_ext.method.quality import psnr
from tests.conftest import exemplar
from tests.host.answers import base64_of

STEPS = 8


def request(settings=None, *, image=None, **fields):
    """Make an img2img request. `settings` is the extension's object; None leaves the extension out."""
    payload = {
        "init_images": [base64_of(image or exemplar("pizza-emojione-yellow"))],
        "prompt": "a pizza",
        **{"seed": 3, "steps": STEPS, "width": 128, "height": 128, "cfg_scale": 5, "denoising_strength": 1},
        "sampler_name": "Euler",
        **fields,
    }
    if settings is not None:
        args = settings if isinstance(settings, list) else [{"enabled": True, **settings}]
        payload["alwayson_scripts"] = {"RIVAL": {"args": args}}
    return payload


def images_of(server, settings=None, **fields):
    """Return the images of a request that must succeed. The global generator is seeded before."""
    server.plan()
    answer = server.img2img(**request(settings, **fields))
    assert answer.status == 200, answer.sentence
    assert server.leftovers() == []
    return answer.images


def text_request(settings=None, **fields):
    """Make a txt2img request, as `request` makes one for img2img."""
    payload = request(settings, **fields)
    for name in ("init_images", "denoising_strength"):
        if name not in fields:
            del payload[name]
    return payload


def from_text(server, settings=None, **fields):
    """Return the answer to a txt2img request that must succeed. The global generator is seeded before."""
    server.plan()
    answer = server.txt2img(**text_request(settings, **fields))
    assert answer.status == 200, answer.sentence
    assert server.leftovers() == []
    return answer


def uploaded(name="pizza-emojione-yellow", **settings):
    """Make the settings for txt2img with an uploaded exemplar."""
    return {"mode": "text", "exemplar": base64_of(exemplar(name)), **settings}


def report(answer, name="RIVAL report"):
    """Return the report in the infotext of the first image."""
    return re.search(rf"{name}: ([^,\n]*)", answer.infotexts[0])[1]


def infotext(server, settings, **fields):
    """Return the infotext of the first image of a request that must succeed."""
    answer = server.img2img(**request(settings, **fields))
    assert answer.status == 200, answer.sentence
    return answer.infotexts[0]


def largest_difference(some, others):
    """Return the largest difference between the pixels of two lists of images, in 255ths."""
    assert len(some) == len(others)
    return max(int(np.abs(one.astype(int) - other.astype(int)).max()) for one, other in zip(some, others, strict=True))


def psnr_of(one, other):
    """Compute the PSNR in dB of two images of the same size."""
    return psnr(*(torch.from_numpy(rgb_array(image)) for image in (one, other)))


@contextmanager
def at_first_call(server, act):
    """Call `act()` within the first UNet call of the stand-in while the context manager is open."""
    due = [act]

    def hook(*_):
        if due:
            due.pop()()

    handle = server.checkpoint.model.diffusion_model.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
