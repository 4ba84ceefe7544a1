"""Inside a step the CPU never waits for the device, seen on a pretended one.

On a GPU each of these operations stops the CPU until the GPU has done all that it was given: a value that Python reads,
positions that are found by a mask, a tensor that travels between the devices.
"""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from rival_ext.hosts.diffusers import DiffusersHost, Request, RequestImages
from rival_ext.method.noise import scale_to_vp
from rival_ext.method.prepare import prepare
from rival_ext.method.rows import COND, UNCOND
from rival_ext.settings import parse_settings
from rival_ext.storage import loading
from rival_ext.storage.store import NoStore
from tests.conftest import exemplar, quiet
from tests.unit.elsewhere import ELSEWHERE, elsewhere

READ_BY_PYTHON = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal"}
OF_UNKNOWN_SIZE = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim"}


class Waits(TorchDispatchMode):
    """Writes down each operation for which a GPU would be waited for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, _, args=(), kwargs=None):
        answer = operation(*args, **(kwargs or {}))
        name = operation._schema.name
        given, made = (
            [value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor)]
            for values in ((args, kwargs), answer)
        )
        # a single number of the CPU goes along with the operation
        devices = {value.device for value in [*given, *made] if value.dim() or name == "aten::_to_copy"}
        is_there = any(value.device == ELSEWHERE for value in given)
        is_mask = name.startswith("aten::index") and any(value.dtype == torch.bool for value in given[1:])
        if len(devices) > 1 or is_mask or (is_there and name in READ_BY_PYTHON | OF_UNKNOWN_SIZE):
            self.found.append(f"{name} of {[tuple(value.shape) for value in given]}")
        return answer


@pytest.fixture(scope="module")
def there(pipeline):
    """The small trained model on the pretended device."""
    parts = deepcopy(pipeline.components)
    with elsewhere():
        for name in ("unet", "vae", "text_encoder"):
            parts[name].to(ELSEWHERE)
    return type(pipeline)(**parts, requires_safety_checker=False)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"uncond_share": 1},
        {"alignment": "noise", "t_align": 600},
        {"exemplar_tokens": 0.5},
        {"strength": 0.5},
        {"chain": "noised", "feature_nodes": 2},
    ],
    ids=str,
)
def test_nothing_inside_a_step_waits_for_the_device(there, values, monkeypatch):
    # uploads do not wait, but here they look as if; so all nodes are there after the first steps
    monkeypatch.setattr(loading, "room_on", lambda device: 2**40)
    request = Request("a house", "", 5.0, "ddim", 4)
    with elsewhere(), torch.no_grad():
        host = DiffusersHost(there, request, RequestImages.of(exemplar("cat-face-emojione-white")), quiet)
        guide, _ = prepare(host, parse_settings(values), NoStore())
        levels = host.noise_levels().tolist()[:0:-1]
        latent = host.start([1], guide)
        negative, prompt, _ = host.embeddings
        prompts = torch.cat([negative, prompt])

        def steps():
            for level in levels:
                rows = (latent * scale_to_vp(level)).expand(2, -1, -1, -1)
                guide.guided_noise(
                    level,
                    lambda rows=rows, level=level: host.evaluate(rows, level, prompts)[1:],
                    [UNCOND, COND],
                )
                guide.corrected_latent(latent, level)

        # what is made once a run may wait
        steps()
        with Waits() as waits:
            steps()
    assert not waits.found, chr(10).join(waits.found)
