"""The chain at its nodes, between them and outside of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rival_ext.cli import SAMPLERS
from rival_ext.method.chain import Chain
from rival_ext.method.noise import levels_tensor
from tests.unit.synthetic import LEVELS, noise


def features(node):
    return {"layer": torch.full((1, 2, 3), float(node))}


LATENTS = noise(5, 4, 3, 3)
CHAIN = Chain(levels_tensor(LEVELS), LATENTS, {node: features(node) for node in (1, 2, 4)})


def slope_below(node):
    return (LATENTS[node : node + 1] - LATENTS[node - 1 : node]) / (LEVELS[node] - LEVELS[node - 1])


# latents


@pytest.mark.parametrize("node", range(1, 5))
def test_at_a_node_the_chain_returns_the_latent_of_the_node_bit_by_bit(node):
    assert torch.equal(CHAIN.latent(LEVELS[node]), LATENTS[node : node + 1])


def test_at_the_lowest_node_the_chain_returns_the_clean_latent():
    assert (CHAIN.latent(LEVELS[0]) - LATENTS[:1]).abs().max() < 1e-6


@given(st.integers(1, 4), st.floats(0.001, 0.999))
def test_between_two_nodes_the_latent_is_linear_in_the_noise_level(node, part):
    level = LEVELS[node - 1] + part * (LEVELS[node] - LEVELS[node - 1])
    expected = (1 - part) * LATENTS[node - 1] + part * LATENTS[node]
    # a level within a ten-thousandth above a node counts as the node, and the two segments differ a little there
    assert (CHAIN.latent(level)[0] - expected).abs().max() < 1e-3


def test_outside_the_nodes_the_outer_segments_go_on():
    assert (CHAIN.latent(20.0) - (LATENTS[4:] + 6 * slope_below(4))).abs().max() < 1e-5
    assert (CHAIN.latent(0.0) - (LATENTS[:1] - 0.03 * slope_below(1))).abs().max() < 1e-5


def test_the_top_is_the_latent_of_the_highest_node():
    assert torch.equal(CHAIN.top, LATENTS[4:])


# slopes


@pytest.mark.parametrize("node", range(1, 5))
def test_the_slope_at_a_node_is_the_slope_of_the_step_below_it(node):
    middle = (LEVELS[node] + LEVELS[node - 1]) / 2
    for level in (LEVELS[node], middle):
        assert (CHAIN.slope(level) - slope_below(node)).abs().max() < 1e-6


def test_outside_the_nodes_the_slope_is_the_slope_of_the_outer_segments():
    assert (CHAIN.slope(100.0) - slope_below(4)).abs().max() < 1e-6
    for level in (LEVELS[0], 0.01, 0.0):
        assert (CHAIN.slope(level) - slope_below(1)).abs().max() < 1e-6


# features


def test_at_a_node_with_features_these_are_seen_alone():
    for node in (1, 2, 4):
        assert CHAIN.features_around(LEVELS[node]) == (node, node, 0.0)


@pytest.mark.parametrize(
    ("level", "around"),
    [
        (LEVELS[0], (1, 1, 0)),
        (0.0, (1, 1, 0)),
        ((LEVELS[1] + LEVELS[2]) / 2, (1, 2, 0.5)),
        (LEVELS[3], (2, 4, 0.5)),
        ((LEVELS[3] + LEVELS[4]) / 2, (2, 4, 0.75)),
        (100.0, (4, 4, 0)),
    ],
)
def test_between_nodes_with_features_the_place_is_counted_in_nodes(level, around):
    assert CHAIN.features_around(level) == pytest.approx(around)


def test_without_features_there_is_none_to_see_and_below_a_node_comes_the_next_one():
    assert Chain(CHAIN.noise_levels, LATENTS).features_around(LEVELS[2]) is None
    assert [CHAIN.features_below(node) for node in (4, 3, 2, 1)] == [
        *(CHAIN.features[node] for node in (2, 2, 1)),
        None,
    ]


@given(st.integers(1, 4), st.floats(-5e-5, 5e-5))
def test_a_level_that_differs_from_a_node_by_rounding_is_the_node(node, error):
    level = LEVELS[node] * (1 + error)
    assert (CHAIN.slope(level) - slope_below(node)).abs().max() < 1e-6
    assert (CHAIN.latent(level) - LATENTS[node : node + 1]).abs().max() < 1e-2
    assert CHAIN.features_around(level)[:2] == ((2, 4) if node == 3 else (node, node))


@pytest.mark.parametrize("steps", [2, 50, 500])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_level_of_every_sampler_is_a_node(make_host, sampler, steps):
    levels = make_host(sampler=sampler, steps=steps).noise_levels()
    nodes = range(1, len(levels))
    chain = Chain(levels, torch.zeros(len(levels), 1, 1, 1), {node: features(node) for node in nodes})
    for node in nodes:
        for level in (levels[node].item(), levels[node].float().item()):
            assert chain.features_around(level) == (node, node, 0.0)


# memory


def test_the_bytes_of_a_chain_are_those_of_its_latents_and_features():
    assert CHAIN.bytes == 4 * (5 * 4 * 3 * 3 + 3 * 1 * 2 * 3)
    in_16_bits = {1: {"layer": torch.zeros(1, 2, 3).half()}}
    assert Chain(levels_tensor(LEVELS), LATENTS, in_16_bits).bytes == 4 * 180 + 2 * 6
