"""Which UNet rows see the exemplar, and that the others attend to their own tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rival_ext.method.injection import concatenate, inject, replace
from rival_ext.method.layers import HookedLayer
from rival_ext.method.rows import BOTH, COND, COND_ALONE, UNCOND, rows_that_see
from tests.unit.tiny_unet import DiffusersAttention, tokens

ROWS = [COND, COND, UNCOND, UNCOND]


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return DiffusersAttention().requires_grad_(False)


def outputs(layer, rows, exemplar, join, **injection):
    with inject({"layer": HookedLayer(layer)}, {"layer": exemplar}, join, **injection) as seen:
        return layer(rows), seen


# which rows


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.9, 1])
def test_the_negative_rows_see_the_exemplar_at_their_share_of_the_nodes(share):
    nodes = 1000
    seeing = [UNCOND in rows_that_see(share, node) for node in range(nodes)]
    assert sum(seeing) / nodes == pytest.approx(share, abs=0.005)
    # samplers that call the model twice a step, or three times, have their share at each of these calls
    for period in (2, 3):
        for phase in range(period):
            assert sum(seeing[phase::period]) / len(seeing[phase::period]) == pytest.approx(share, abs=0.01)


@given(st.floats(0, 1), st.integers(0, 10_000))
def test_the_rows_with_the_prompt_always_see_it(share, node):
    assert COND in rows_that_see(share, node)


@given(st.integers(0, 10_000))
def test_more_share_never_hides_it_where_less_shows_it(node):
    shown = [UNCOND in rows_that_see(share / 20, node) for share in range(21)]
    assert shown == sorted(shown)


# their outputs


@pytest.mark.parametrize("join", [replace, concatenate])
@pytest.mark.parametrize("number", [6, 7, 3])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_negative_row_that_does_not_see_the_exemplar_gives_the_usual_output(layer, join, number, strength):
    rows, exemplar = tokens(4, 6), tokens(1, number, seed=1)
    usual = layer(rows)
    everywhere, _ = outputs(layer, rows, exemplar, join, cond_or_uncond=ROWS, strength=strength)
    mixed, seen = outputs(layer, rows, exemplar, join, cond_or_uncond=ROWS, strength=strength, seeing=COND_ALONE)
    assert (mixed[2:] - usual[2:]).abs().max() < 1e-5
    assert (mixed[:2] - everywhere[:2]).abs().max() < 1e-5
    assert (everywhere[2:] - usual[2:]).abs().max() > 1e-2
    assert seen == {"layer"}


def test_where_the_exemplar_has_as_many_tokens_the_layer_is_evaluated_once(layer):
    calls = []
    layer.to_q.register_forward_hook(lambda *_: calls.append(1))
    for number, expected in ((6, 1), (7, 2)):
        calls.clear()
        outputs(layer, tokens(4, 6), tokens(1, number), concatenate, cond_or_uncond=ROWS, seeing=COND_ALONE)
        assert len(calls) == expected


def test_a_call_of_negative_rows_alone_is_left_as_it_is(layer):
    rows = tokens(2, 6)
    with inject(
        {"layer": HookedLayer(layer)}, {"layer": tokens(1, 6, seed=1)}, replace, ROWS, seeing=COND_ALONE
    ) as seen:
        first, second = layer(rows), layer(rows)
    assert torch.equal(second, layer(rows))
    assert (first - second).abs().max() > 1e-2
    assert seen == {"layer"}


def test_each_kind_of_row_has_its_own_exemplar_row(layer):
    rows, exemplar = tokens(4, 6), tokens(2, 6, seed=1)
    both, _ = outputs(layer, rows, exemplar, concatenate, cond_or_uncond=ROWS, seeing=BOTH)
    for index, mark in enumerate(ROWS):
        alone, _ = outputs(layer, rows[index : index + 1], exemplar[mark : mark + 1], concatenate)
        assert (both[index] - alone[0]).abs().max() < 1e-5


def test_tokens_that_another_extension_appended_stay_beside_the_own_ones(layer):
    """They are part of the usual context, so the negative rows attend to them as well."""
    own, appended, exemplar = tokens(4, 6), tokens(4, 2, seed=2), tokens(1, 6, seed=1)
    context = torch.cat([own, appended], dim=1)
    usual = layer(own, context)
    with inject({"layer": HookedLayer(layer)}, {"layer": exemplar}, concatenate, ROWS, seeing=COND_ALONE):
        mixed = layer(own, context)
    assert (mixed[2:] - usual[2:]).abs().max() < 1e-5
    assert (mixed[:2] - usual[:2]).abs().max() > 1e-2
