"""The inversion: its steps where the exact answer is known, its first guesses, and the features that it keeps."""

from __future__ import annotations

import math

import pytest
import torch

from rival_ext.method.inversion import TOLERANCE, extrapolated, invert, lower_latent, reconstruct
from rival_ext.method.keeping import FeatureKeeper
from rival_ext.method.noise import levels_tensor, scale_to_vp
from rival_ext.method.path import Path
from rival_ext.storage.features import FeatureTransfer
from tests.unit.synthetic import LEVELS, LayeredModel, noise

LATENTS = noise(5, 4, 3, 3)

# steps


def test_a_constant_prediction_gives_a_straight_chain_and_each_step_stops_at_once():
    clean, eps = noise(1, 4, 3, 3), noise(1, 4, 3, 3, seed=1)
    chain = invert(clean, levels_tensor(LEVELS), lambda latent, level: eps, {}, iterations=10)
    for node, level in enumerate(LEVELS):
        expected = clean / scale_to_vp(LEVELS[0]) + (level - LEVELS[0]) * eps
        assert (chain.latents[node] - expected[0]).abs().max() < 1e-5
        if node:
            assert (chain.slope(level) - eps).abs().max() < 1e-5
    # the first step starts from the lower latent and needs a second evaluation, the others are exact
    assert (chain.evaluations, chain.residual < TOLERANCE) == (2 + 3, True)


def test_a_prediction_that_is_linear_in_the_noise_level_is_extrapolated_exactly():
    clean = noise(1, 4, 3, 3)
    chain = invert(clean, levels_tensor(LEVELS), lambda latent, level: torch.full_like(latent, level), {}, iterations=5)
    expected = clean / scale_to_vp(LEVELS[0])
    for node in range(1, 5):
        expected = expected + (LEVELS[node] - LEVELS[node - 1]) * LEVELS[node]
        assert (chain.latents[node] - expected[0]).abs().max() < 1e-4
    # two evaluations for the first step, two for the second, which knows one prediction only
    assert chain.evaluations == 2 + 2 + 1 + 1


def test_enough_iterations_solve_each_step_implicitly():
    levels = [0.1, 0.4, 0.8, 1.3]
    clean = noise(1, 4, 3, 3)
    chain = invert(clean, levels_tensor(levels), lambda latent, level: 0.5 * latent, {}, iterations=10)
    for node in range(1, 4):
        exact = chain.latents[node - 1] / (1 - 0.5 * (levels[node] - levels[node - 1]))
        assert (chain.latents[node] - exact).norm() / exact.norm() < 2 * TOLERANCE
    assert (reconstruct(chain, lambda latent, level: 0.5 * latent) - clean).abs().max() < 1e-3


def test_the_clean_latent_lies_at_the_lowest_level_in_variance_preserving_form():
    clean = noise(1, 4, 3, 3)
    chain = invert(clean, levels_tensor([2.0, 3.0]), lambda latent, level: latent * 0, {})
    assert (chain.latents[:1] * scale_to_vp(2.0) - clean).abs().max() < 1e-6
    assert (reconstruct(chain, lambda latent, level: latent * 0) - clean).abs().max() < 1e-6


def test_each_step_evaluates_at_its_upper_level_and_tells_the_progress_before():
    seen, told = [], []

    def predict(latent, level):
        seen.append((level, len(told)))
        return noise(*latent.shape, seed=len(seen))

    chain = invert(
        LATENTS[:1],
        levels_tensor(LEVELS),
        predict,
        {},
        iterations=2,
        progress=lambda done, total: told.append((done, total)),
    )
    assert seen == [(level, 1 + 2 * index + turn) for index, level in enumerate(LEVELS[1:]) for turn in (0, 1)]
    assert told == [(done, 8) for done in range(9)]
    assert chain.evaluations == 8


# first guesses


def test_the_lower_latent_keeps_its_variance_preserving_form_at_the_higher_level():
    guess = lower_latent(Path([LATENTS[:1]], LEVELS[:1]), LEVELS[1])
    assert (guess * scale_to_vp(LEVELS[1]) - LATENTS[:1] * scale_to_vp(LEVELS[0])).abs().max() < 1e-6


def test_the_extrapolated_guess_uses_the_last_one_or_two_predictions():
    one, two = noise(1, 4, 3, 3, seed=1), noise(1, 4, 3, 3, seed=2)
    level, latent = 4.0, LATENTS[2:3]
    from_one = extrapolated(Path([latent], [2.0], [one], [2.0]), level)
    assert (from_one - (latent + 2.0 * one)).abs().max() < 1e-6
    # the line through (0.5, one) and (2.0, two), at 4.0
    from_two = extrapolated(Path([latent], [2.0], [one, two], [0.5, 2.0]), level)
    assert (from_two - (latent + 2.0 * (two + (two - one) * 2.0 / 1.5))).abs().max() < 1e-5
    path = Path([latent], [2.0])
    assert torch.equal(extrapolated(path, level), lower_latent(path, level))


@pytest.mark.parametrize("level", [14.6, 4518.0])
def test_the_last_step_with_zero_terminal_snr_starts_from_the_lower_latent(level):
    """There the prediction is the latent itself, and the iteration would not come back from an extrapolated guess."""
    latents, predictions = [torch.full((1, 4, 8, 8), value) for value in (3.0, 5.0)], [torch.ones(1, 4, 8, 8)] * 2
    path = Path(latents, [9.0, 12.0], predictions, [9.0, 12.0])
    guess = extrapolated(path, level)
    if level > 1000:
        assert torch.equal(guess, lower_latent(path, level))
    else:
        assert torch.allclose(guess, latents[-1] + (level - 12))


# features

NODE_BYTES = 2 * 2 * 3


@pytest.mark.parametrize(
    ("budget", "nodes"),
    [
        (math.inf, [1, 2, 3, 4]),
        (4 * NODE_BYTES - 1, [1, 3, 4]),
        (2 * NODE_BYTES, [1, 4]),
        (NODE_BYTES, [2]),
        (NODE_BYTES - 1, []),
        (0, []),
    ],
)
def test_features_are_kept_at_as_many_nodes_as_the_budget_has_room_for(budget, nodes):
    model, fewer = LayeredModel(), []
    keep = FeatureKeeper(4, 4, 16, FeatureTransfer().reserve, lambda size: size <= budget, fewer.append)
    chain = invert(LATENTS[:1], levels_tensor(LEVELS), model.predict_noise, model.layers, keep=keep)
    assert list(chain.features) == nodes
    for node in nodes:
        assert (chain.features[node]["layer"] == torch.tensor(LEVELS[node])).all()
    assert chain.bytes - LATENTS.nbytes <= budget
    assert fewer == [len(nodes)] * (len(nodes) < 4)


def test_the_features_of_a_step_are_those_of_its_last_evaluation():
    model = LayeredModel()
    calls = []

    def predict(latent, level):
        calls.append(level)
        model.layer(torch.full((1, 2, 3), float(len(calls))))
        return noise(*latent.shape, seed=len(calls))

    chain = invert(LATENTS[:1], levels_tensor(LEVELS), predict, model.layers, iterations=3)
    assert [kept["layer"][0, 0, 0].item() for kept in chain.features.values()] == [3, 6, 9, 12]
