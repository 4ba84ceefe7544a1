"""The stand-in on a pretended device: no operation mixes its tensors with the CPU's, and none of them is float64.

The first fails only on GPUs, the second only on Apple's.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache

import pytest
import torch
from PIL import Image

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline
from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import largest_difference, request
from tests.host.quick import quick_first
from tests.host.standin import modules
from tests.host.standin.model import Checkpoint
from tests.host.standin.samplers import SAMPLERS
from tests.host.standin_server import StandInServer
from tests.unit.elsewhere import ELSEWHERE, elsewhere

CPU = torch.device("cpu")
SIDE = 72
"""A side of nine latent positions, which the UNet's levels do not halve evenly."""
PHOTO = base64_of(exemplar("pizza-emojione-yellow"))
HALF = base64_of(Image.linear_gradient("L").resize((128, 128)).point(lambda value: 255 * (value > 127)))


@cache
def checkpoint_on(device):
    pipeline = load_pipeline(DEMO_CHECKPOINT)
    with elsewhere():
        return Checkpoint(pipeline, device)


def made_on(device, settings, kind="img2img", **fields):
    """Make the images of a request on a stand-in whose checkpoint is on a device."""
    payload = request(settings, **{"width": SIDE, "height": SIDE, "steps": 3, "batch_size": 2, **fields})
    if kind == "txt2img":
        del payload["init_images"], payload["denoising_strength"]
    with ExitStack() as stack:
        stack.enter_context(modules.uninstalled())
        checkpoint = checkpoint_on(device)
        modules.install(checkpoint)
        if device == ELSEWHERE:
            stack.enter_context(elsewhere())
        answer = getattr(StandInServer(checkpoint), kind)(**payload)
    assert answer.status == 200, answer.sentence
    return answer.images


# an adaptive sampler takes a hundred steps and would show nothing new
@pytest.mark.parametrize("sampler", quick_first([sampler for sampler in SAMPLERS if sampler != "DPM adaptive"]))
def test_every_sampler_makes_the_same_images(sampler):
    one, other = (made_on(device, {}, sampler_name=sampler) for device in (ELSEWHERE, CPU))
    assert largest_difference(one, other) <= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"exemplar": PHOTO}, {"kind": "txt2img"}),
        ({"exemplar": PHOTO, "start_mix": 0.5}, {"kind": "txt2img", "width": 128}),
        ({"exemplar_mask": HALF, "exemplar_2": PHOTO, "weight_2": 0.5}, {}),
        ({"exemplar_prompt": "a pizza", "exact": True, "layers": "fine", "strength": 0.5, "exemplar_tokens": 0.5}, {}),
        ({"alignment": "latent"}, {"override_settings": {"rival_memory_mb": 0}}),
        ({"mode": "inpaint"}, {"mask": HALF, "inpaint_full_res": False}),
        ({"mode": "inpaint", "exemplar": PHOTO}, {"mask": HALF, "inpaint_full_res": False, "sampler_name": "DDIM"}),
    ],
)
def test_every_setting_makes_the_same_images(settings, fields):
    one, other = (made_on(device, settings, **fields) for device in (ELSEWHERE, CPU))
    assert largest_difference(one, other) <= 4
