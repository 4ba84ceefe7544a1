"""METHOD section 8: with every switch off, the image is bit-identical to the host's own."""

from __future__ import annotations

import torch

from rival_ext.method.guide import Guide
from rival_ext.method.prepare import prepare
from rival_ext.settings import parse_settings
from rival_ext.storage.store import NoStore
from tests.conftest import quiet


def test_a_guide_with_every_switch_off_changes_no_bit(make_host):
    for sampler in ("ddim", "euler-a", "dpm++2m"):
        host = make_host(prompt="a pizza", sampler=sampler, steps=6)
        exemplars = prepare(host, parse_settings({}), NoStore()).guide.exemplars
        idle = Guide(exemplars, parse_settings({"alignment": "off"}), host.schedule, {}, host.predict_noise)
        start = host.noise(5)
        assert torch.equal(host.sample(start, [5], idle, quiet), host.sample(start, [5], None, quiet))
        assert (idle.counts.steps.total, idle.counts.steps.injected, idle.counts.steps.aligned) == (6, 0, 0)
