"""Which levels a chain visits, the walk between them, and a chain of one fixed noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rival_ext.errors import RivalError
from rival_ext.method.inversion import invert
from rival_ext.method.nodes import LITTLE_ABOVE, nodes_of, spread
from rival_ext.method.noise import levels_tensor
from rival_ext.method.noised import fixed_noise, noised_chain
from rival_ext.settings import parse_settings
from tests.unit.synthetic import LEVELS, LayeredModel, noise

LATENT = noise(1, 4, 4, 4)

# which levels


@given(st.lists(st.floats(0, 999), min_size=1, max_size=60, unique=True), st.data())
def test_the_chosen_levels_are_ascending_and_have_both_ends(timesteps, data):
    timesteps = sorted(timesteps)
    number = data.draw(st.integers(0, len(timesteps)))
    chosen = spread(number, timesteps)
    assert len(chosen) == number
    assert chosen == sorted(set(chosen))
    assert all(1 <= place <= len(timesteps) for place in chosen)
    if number > 1:
        assert (chosen[0], chosen[-1]) == (1, len(timesteps))


def test_the_chosen_levels_are_even_in_timesteps():
    assert spread(4, [1, 100, 200, 300, 400, 500, 600, 700, 800, 901]) == [1, 4, 7, 10]
    # most of a sampler's levels may lie close together
    assert spread(3, [1, 2, 3, 4, 5, 400, 450, 500, 900]) == [1, 7, 9]


def nodes(is_exact=False, **fields):
    return nodes_of(parse_settings(fields), levels_tensor(LEVELS), [0, 100, 400, 600, 1000], is_exact)


@pytest.mark.parametrize(
    ("fields", "evaluated", "are_all"),
    [
        ({}, [1, 2, 3, 4], True),
        ({"inversion_nodes": "all"}, [1, 2, 3, 4], True),
        ({"inversion_nodes": 3}, [1, 3, 4], False),
        ({"inversion_nodes": 3, "is_exact": True}, [1, 2, 3, 4], True),
    ],
)
def test_an_exemplar_is_evaluated_at_a_part_of_the_levels_unless_each_is_needed(fields, evaluated, are_all):
    found = nodes(**fields)
    assert (found.levels.tolist(), list(found.evaluated), found.are_all) == (LEVELS, evaluated, are_all)
    assert not found.are_noised


def test_with_zero_terminal_snr_the_last_step_starts_from_an_evaluated_node():
    levels, timesteps = levels_tensor([0.03, 0.5, 1.0, 2.0, 4.0, 6.0, 4500.0]), [0, 100, 200, 400, 600, 700, 999]
    found = nodes_of(parse_settings({"inversion_nodes": 3}), levels, timesteps, False)
    assert (list(found.evaluated), found.are_all) == ([1, 4, 5, 6], False)


def test_a_noised_chain_has_the_levels_with_features_and_the_ends():
    found = nodes(chain="noised", feature_nodes=1)
    assert found.levels.tolist() == [LEVELS[index] for index in (0, 2, 4)]
    assert (list(found.evaluated), found.are_all, found.are_noised) == ([1], False, True)


def test_another_chain_serves_up_to_a_little_above_its_highest_level():
    wanted = nodes(inversion_nodes=3)
    for highest, evaluated, serves in (
        (LEVELS[-1], 3, True),
        (2 * LEVELS[-1], 3, True),
        (LEVELS[-1] / LITTLE_ABOVE * 1.001, 3, True),
        (LEVELS[-1] / LITTLE_ABOVE * 0.999, 3, False),
        (LEVELS[-1], 2, False),
    ):
        assert wanted.lie_within(levels_tensor([0.0, highest]), evaluated) == serves


# the walk between them


def linear(latent, level):
    """A prediction that is a line in sigma, whatever the latent is."""
    return torch.full_like(latent, 1 + 2 * level)


def test_a_prediction_that_is_linear_in_sigma_needs_no_evaluation_in_between():
    full, part = (
        invert(LATENT, levels_tensor(LEVELS), linear, {}, evaluated=evaluated) for evaluated in ((), [1, 2, 4])
    )
    assert (full.latents - part.latents).abs().max() < 1e-4
    assert (full.evaluations, full.evaluated, full.bend) == (4, 4, 0.0)
    assert (part.evaluations, part.evaluated) == (3, 3)
    assert part.bend < 1e-6


def test_the_bend_tells_how_far_a_curved_chain_is_off():
    def curved(latent, level):
        return torch.full_like(latent, level**2 / 10)

    full, part = (
        invert(LATENT, levels_tensor(LEVELS), curved, {}, evaluated=evaluated) for evaluated in ((), [1, 2, 4])
    )
    off = float(((full.latents - part.latents).flatten(1).norm(dim=1) / full.latents.flatten(1).norm(dim=1)).max())
    assert off > 0.01
    assert 0.2 * off < part.bend < 10 * off


# one fixed noise


def predicting(model, calls):
    def predict_noises(latents, levels):
        calls.append(len(latents))
        model.layer(torch.tensor(levels).view(-1, 1, 1).expand(-1, 2, 3))
        return latents * 0.1

    return predict_noises


def test_a_noised_chain_is_straight_and_is_evaluated_in_one_call():
    model, calls = LayeredModel(), []
    chain = noised_chain(LATENT, levels_tensor(LEVELS), [1, 3], predicting(model, calls), model.layers)
    assert calls == [2]
    slope = chain.slope(LEVELS[1])
    for level in LEVELS[1:]:
        assert (chain.slope(level) - slope).abs().max() < 1e-4
    assert (slope - fixed_noise(LATENT)).abs().max() < 1e-4
    assert list(chain.features) == [1, 3]
    assert [float(chain.features[node]["layer"][0, 0, 0]) for node in (1, 3)] == pytest.approx([LEVELS[1], LEVELS[3]])
    assert (chain.evaluations, chain.evaluated, chain.visits) == (2, 2, "")


def test_the_fixed_noise_has_mean_0_and_deviation_1_and_is_always_the_same():
    fixed = fixed_noise(LATENT)
    assert fixed.mean(dim=(2, 3)).abs().max() < 1e-5
    assert (fixed.std(dim=(2, 3)) - 1).abs().max() < 1e-3
    assert torch.equal(fixed, fixed_noise(LATENT))


def test_where_memory_is_short_fewer_nodes_are_evaluated_together():
    model, calls = LayeredModel(), []
    predict_noises = predicting(model, calls)

    def short_of_memory(latents, levels):
        if len(latents) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return predict_noises(latents, levels)

    levels = levels_tensor(LEVELS)
    chain = noised_chain(LATENT, levels, [1, 2, 3, 4], short_of_memory, model.layers)
    assert calls == [1, 1, 1, 1]
    assert list(chain.features) == [1, 2, 3, 4]

    def never(latents, levels):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        noised_chain(LATENT, levels, [1, 2], never, model.layers)


def test_a_prediction_that_is_not_finite_or_reaches_no_layer_is_refused():
    model, calls = LayeredModel(), []
    levels = levels_tensor(LEVELS)
    with pytest.raises(RivalError, match="not numbers"):
        noised_chain(LATENT, levels, [1], lambda *asked: predicting(model, calls)(*asked) * float("nan"), model.layers)
    with pytest.raises(RivalError, match="no self-attention layer saw the exemplar"):
        noised_chain(LATENT, levels, [1], lambda latents, levels: latents, model.layers)
