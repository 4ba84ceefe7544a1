"""Chains of few nodes, chains without an inversion, and which runs a stored chain serves, on each WebUI."""

from __future__ import annotations

import pytest

from tests.host.asking import images_of, infotext, largest_difference, request

APPLE = {"exemplar_prompt": "a red apple"}
"""Of no other file, so that no other inversion is stored."""


@pytest.mark.slow
def test_an_inversion_serves_other_samplers_and_steps_but_for_edits(server):
    assert "inverted in 10 evaluations" in infotext(server, APPLE, steps=12)
    for fields in ({"steps": 20}, {"sampler_name": "Euler a", "scheduler": "Karras", "steps": 30}, {"steps": 8}):
        assert "stored inversion" in infotext(server, APPLE, **fields)
    edit = {"mode": "edit", **APPLE}
    assert "inverted in 12 evaluations" in infotext(server, edit, steps=12)
    assert "inverted in 14 evaluations" in infotext(server, edit, steps=14)
    assert "stored inversion" in infotext(server, edit, steps=12)
    assert "inverted in" in infotext(server, edit, steps=12, sampler_name="DDIM")


@pytest.mark.slow
def test_a_noised_chain_is_evaluated_in_one_call_and_makes_other_images(server):
    noised = {"chain": "noised", "feature_nodes": 6}
    server.plan()
    text = infotext(server, noised, steps=20)
    assert "noised in 6 evaluations; 6 + 40 UNet rows" in text
    assert "stored inversion" in infotext(server, noised, steps=30, sampler_name="DDIM")
    assert largest_difference(images_of(server, noised, steps=20), images_of(server, {}, steps=20)) > 10
    for refused in ({"mode": "edit"}, {"start_mix": 0.5}, {"exact": True}):
        answer = server.img2img(**request({"exemplar_prompt": "a pizza", **noised, **refused}))
        assert answer.status == 422
        assert "chain must be inverted" in answer.sentence
