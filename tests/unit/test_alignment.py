"""Alignment gives a latent or a prediction the exemplar's mean and deviation of each channel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rival_ext.method.alignment import align_statistics, blend_statistics, channel_statistics
from tests.conftest import quick
from tests.unit.synthetic import noise


def test_channel_statistics_are_the_mean_and_the_unbiased_deviation():
    latent = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 8.0, 0.0]).view(1, 2, 2, 2)
    mean, deviation = channel_statistics(latent)
    assert mean.flatten().tolist() == [2.5, 2.0]
    assert deviation.flatten().tolist() == pytest.approx([(5 / 3 + 1e-5) ** 0.5, (16 + 1e-5) ** 0.5], rel=1e-6)


@given(
    rows=st.integers(1, 3),
    seed=st.integers(0, 1000),
    scale=st.floats(0.1, 20),
    offset=st.floats(-5, 5),
    exemplar_side=st.integers(2, 9),
)
def test_alignment_makes_mean_and_deviation_equal_to_the_exemplars(rows, seed, scale, offset, exemplar_side):
    exemplar = noise(1, 4, exemplar_side, exemplar_side, seed=seed) * scale + offset
    aligned = align_statistics(noise(rows, 4, 5, 7, seed=seed + 1) * 3 - 1, channel_statistics(exemplar))
    for row in aligned:
        assert row.mean((1, 2)).tolist() == pytest.approx(exemplar[0].mean((1, 2)).tolist(), abs=1e-4)
        # the variance's floor of 1e-5 counts where the exemplar hardly varies
        deviation = (exemplar[0].var((1, 2)) + 1e-5).sqrt().tolist()
        assert row.std((1, 2)).tolist() == pytest.approx(deviation, rel=1e-4)


def test_alignment_to_its_own_statistics_changes_nothing():
    generation = noise(3, 4, 8, 8)
    for row in generation.split(1):
        assert (align_statistics(row, channel_statistics(row)) - row).abs().max() < 1e-5


def test_alignment_keeps_the_layout():
    generation, exemplar = noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1) * 3
    aligned = align_statistics(generation, channel_statistics(exemplar))
    assert torch.equal(aligned.flatten(2).argsort(), generation.flatten(2).argsort())


def test_alignment_pairs_each_row_with_the_same_row_of_the_exemplars():
    generation, exemplars = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1) * torch.tensor([2.0, 5.0]).view(2, 1, 1, 1)
    pairs = zip(generation.split(1), exemplars.split(1), strict=True)
    one_by_one = torch.cat([align_statistics(row, channel_statistics(exemplar)) for row, exemplar in pairs])
    assert (align_statistics(generation, channel_statistics(exemplars)) - one_by_one).abs().max() < 1e-5


def test_alignment_of_a_constant_channel_is_finite_and_takes_the_exemplars_mean():
    exemplar = noise(1, 4, 8, 8) + 2
    aligned = align_statistics(torch.full((1, 4, 8, 8), 3.0), channel_statistics(exemplar))
    expected = exemplar.mean((2, 3), keepdim=True).expand_as(aligned)
    assert (aligned - expected).abs().max() < 1e-5


@pytest.mark.parametrize("height", [0, 1])
def test_what_has_no_statistics_is_not_aligned(height):
    """A single position would become the exemplar's mean, and a half-finished picture nothing but that."""
    generation = noise(2, 4, height, 1)
    assert align_statistics(generation, channel_statistics(noise(1, 4, 8, 8))) is generation


def test_an_exemplar_of_one_position_gives_its_mean():
    one = noise(1, 4, 1, 1)
    mean, deviation = channel_statistics(one)
    assert torch.equal(mean, one)
    assert deviation.flatten().tolist() == pytest.approx([1e-5**0.5] * 4)
    assert align_statistics(noise(1, 4, 8, 8), (mean, deviation)).isfinite().all()


def test_alignment_computes_in_float32_and_returns_the_generations_type():
    # in half precision the sum of squares would overflow
    generation = (noise(1, 4, 32, 32) * 300).half()
    exemplar = (noise(1, 4, 32, 32, seed=1) * 300).half()
    aligned = align_statistics(generation, channel_statistics(exemplar))
    assert aligned.dtype == torch.float16
    expected = align_statistics(generation.float(), channel_statistics(exemplar.float()))
    assert torch.equal(aligned, expected.half())


def test_statistics_are_blended_by_weight():
    two = [channel_statistics(noise(1, 4, 8, 8, seed=seed) * (seed + 1) + seed) for seed in (0, 1)]
    mean, deviation = blend_statistics(two, [1, 3])
    assert torch.allclose(mean, 0.25 * two[0][0] + 0.75 * two[1][0])
    assert torch.allclose(deviation, 0.25 * two[0][1] + 0.75 * two[1][1])
    assert all(torch.equal(a, b) for a, b in zip(blend_statistics(two[:1], [0.3]), two[0], strict=True))


# the noise that a sampler adds


@pytest.mark.parametrize(("sampler", "is_aligned"), [("euler-a", True), ("euler", False)])
@pytest.mark.parametrize("alignment", quick(["noise", "off"], "noise"))
def test_the_latent_of_a_sampler_that_adds_noise_is_aligned_to_the_chain(
    make_host, make_live_guide, sampler, is_aligned, alignment
):
    """If the prediction alone were aligned, the statistics of the fresh noise would stay in the image as colours."""
    host = make_host("pizza-emojione-yellow", sampler=sampler, steps=8)
    guide = make_live_guide(host, alignment=alignment)
    chain = guide.exemplars[0].chain
    early, late = float(chain.noise_levels[-2]), float(chain.noise_levels[2])
    for level in (early, late):
        latent = level * noise(2, 4, 16, 16)
        corrected = guide.corrected_latent(latent, level)
        if is_aligned and alignment == "noise" and level == early:
            statistics, expected = channel_statistics(corrected), channel_statistics(chain.latent(level))
            assert all(torch.allclose(*pair, atol=1e-3) for pair in zip(statistics, expected, strict=True))
        else:
            assert corrected is latent
