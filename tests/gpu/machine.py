"""The GPUs that the tests of this folder need, and the small trained model on them.

`python -m pytest tests/gpu -n0` runs them all on a machine with a GPU. Elsewhere each test is skipped by its name.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from unittest import mock

import numpy as np
import pytest
import torch

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline
from rival_ext.hosts.diffusers import DiffusersHost, Request, RequestImages
from rival_ext.settings import parse_settings
from tests.conftest import exemplar, quiet

CPU, GPU, SECOND_GPU = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU: torch finds none here (CUDA or ROCm)")
needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="GPU: torch finds no second one here")

EVERY_NODE = {"inversion_nodes": "all", "feature_nodes": "all"}
"""The settings with which the exemplar is evaluated at every step, and its features are kept there in 16 bits."""


@cache
def pipeline_on(device, dtype):
    """The small trained model on a device, from the same weights in float32 on each. No test may change it."""
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        pipeline = load_pipeline(DEMO_CHECKPOINT)
    return pipeline.to(device, dtype)


def host_on(device, dtype=torch.float16, name="cat-face-emojione-white", **fields):
    """The command line's host on a device."""
    request = Request(
        **{"prompt": "", "exemplar_prompt": "", "guidance": 5.0, "sampler": "ddim", "steps": 20, **fields}
    )
    return DiffusersHost(pipeline_on(device, dtype), request, RequestImages.of(exemplar(name)), quiet)


def settings_with(**values):
    """The validated settings: the defaults, unless `values` says otherwise."""
    return parse_settings(values)


def images(host, guide, seeds):
    """The images of some seeds, as arrays of 0 to 255."""
    made = host.decode(host.sample(host.start(seeds, guide), seeds, guide, quiet))
    return np.stack([np.asarray(image, dtype=np.float64) for image in made])


def rms(one, other):
    """Root mean square of the differences of two images, of 255."""
    return float(np.mean(np.square(one - other)) ** 0.5)


@contextmanager
def without_synchronisation():
    """While this context is open, it is an error if the CPU waits for the GPU."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
