"""The start of a generation: the exemplar's noise permuted, as inverted, or between; and inside a mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rival_ext.method.alignment import channel_statistics
from rival_ext.method.chain import Chain
from rival_ext.method.exemplars import Exemplar, InpaintCanvas, joint_statistics
from rival_ext.method.noise import levels_tensor
from rival_ext.method.start import draw_positions, fresh_latents, start_latents
from tests.unit.synthetic import chain, columns, left_half, noise


def assert_statistics(latent, expected):
    for one, other in zip(channel_statistics(latent), expected, strict=True):
        assert (one - other).abs().max() < 1e-4


def begin(exemplars, seeds, mix, size, canvas=None, form="permuted", image=None):
    channels = exemplars[0].chain.latents.shape[1]
    fresh = torch.cat([noise(1, channels, *size, seed=seed) for seed in seeds])
    return start_latents(exemplars, fresh, seeds, form, mix, image, canvas)


def start_of(chain, seeds, mix=1.0):
    return begin([Exemplar(chain)], seeds, mix, chain.top.shape[2:])


def permuted_start(latent, seed):
    return start_of(Chain(torch.tensor([0.1, 2.0]).double(), latent.repeat(2, 1, 1, 1)), [seed])


# matched


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0]))
def test_fresh_noise_has_the_exact_statistics_that_the_alignment_needs(seed, mix):
    top = noise(1, 4, 6, 5) * torch.tensor([0.5, 1.0, 2.0, 14.0]).view(1, 4, 1, 1) + 3
    one = Exemplar(Chain(torch.tensor([0.1, 2.0]).double(), top.repeat(2, 1, 1, 1)))
    assert_statistics(begin([one], [seed], mix, (6, 5), form="matched"), channel_statistics(top))


# permuted


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7))
def test_the_permutation_keeps_the_values_of_each_channel(seed, channels, height, width):
    latent = noise(1, channels, height, width)
    permuted = permuted_start(latent, seed)
    assert permuted.shape == latent.shape
    assert torch.equal(permuted.flatten(2).sort().values, latent.flatten(2).sort().values)


@given(st.integers(0, 2**32 - 1))
def test_the_permutation_is_the_same_for_all_channels(seed):
    positions = torch.arange(24.0).view(1, 1, 4, 6)
    permuted = permuted_start(torch.cat([positions, positions + 100, -positions], dim=1), seed)[0]
    assert torch.equal(permuted[1], permuted[0] + 100)
    assert torch.equal(permuted[2], -permuted[0])


@given(st.integers(0, 2**32 - 1))
def test_one_seed_gives_one_permutation_whatever_was_drawn_before(seed):
    latent = noise(1, 4, 8, 8)
    before = permuted_start(latent, seed)
    torch.rand(3)
    assert torch.equal(permuted_start(latent, seed), before)


def test_drawing_the_permutation_leaves_the_global_random_state_alone():
    state = torch.random.get_rng_state()
    permuted_start(noise(1, 4, 8, 8), 1)
    assert torch.equal(torch.random.get_rng_state(), state)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=6, unique=True))
def test_different_seeds_give_different_permutations(seeds):
    latent = torch.arange(64.0).view(1, 1, 8, 8)
    assert len({tuple(permuted_start(latent, seed).flatten().tolist()) for seed in seeds}) == len(seeds)


def test_all_32_bits_of_the_seed_change_the_permutation():
    latent = torch.arange(64.0).view(1, 1, 8, 8)
    seeds = [1, *(1 + 10**power for power in range(10)), *(1 + 2**power for power in range(1, 32))]
    assert len({tuple(permuted_start(latent, seed).flatten().tolist()) for seed in seeds}) == len(set(seeds))


@given(st.integers(0, 2**31), st.sampled_from([1, 1000, 2**16, 2**20]))
def test_two_seeds_give_different_permutations(seed, distance):
    latent = torch.arange(256.0).view(1, 1, 16, 16)
    assert not torch.equal(permuted_start(latent, seed), permuted_start(latent, seed + distance))


def test_each_image_of_a_batch_starts_as_it_would_alone():
    chain = Chain(torch.tensor([0.1, 2.0]).double(), noise(2, 4, 8, 8))
    together = start_of(chain, [3, 8, 5])
    assert torch.equal(together, torch.cat([start_of(chain, [seed]) for seed in (3, 8, 5)]))
    assert torch.equal(together[1:2], permuted_start(chain.latents[1:], 8))


# between inverted and permuted


def test_with_mix_zero_every_seed_starts_from_the_top_of_the_chain():
    chain = Chain(torch.tensor([0.1, 2.0]).double(), noise(2, 4, 8, 8))
    assert torch.equal(start_of(chain, [3, 8], mix=0.0), chain.latents[1:].expand(2, -1, -1, -1))


@given(st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_every_mix_of_inverted_and_permuted_keeps_mean_and_variance(mix, seed):
    exemplar = Exemplar(chain(16, 16))
    (start,) = begin([exemplar], [seed], mix, (16, 16))
    statistics, expected = channel_statistics(start[None]), channel_statistics(exemplar.chain.top)
    for one, other in zip(statistics, expected, strict=True):
        assert (one - other).abs().max() < 1e-4


def test_more_mix_keeps_less_of_the_layout():
    exemplar = Exemplar(chain(32, 32))
    top = exemplar.chain.top.flatten()

    def correlation(mix):
        start = begin([exemplar], [1], mix, (32, 32)).flatten()
        return float(torch.corrcoef(torch.stack([top, start]))[0, 1])

    correlations = [correlation(mix) for mix in (0, 0.25, 0.5, 0.75, 1)]
    assert correlations[0] == pytest.approx(1, abs=1e-6)
    assert correlations == sorted(correlations, reverse=True)
    assert abs(correlations[-1]) < 0.1


# another size, several exemplars, regions


@pytest.mark.parametrize("size", [(8, 12), (5, 9), (16, 4)])
def test_a_start_of_another_size_has_the_exemplars_statistics(size):
    exemplar = Exemplar(chain(8, 8))
    start = begin([exemplar], [3, 4], 1.0, size)
    assert start.shape == (2, 4, *size)
    assert not torch.equal(start[0], start[1])
    for row in start.split(1):
        assert_statistics(row, channel_statistics(exemplar.chain.top))
    assert columns(draw_positions([exemplar], 99, 3)) <= columns(exemplar.chain.top)
    assert columns(begin([exemplar], [3], 0.0, size)) <= columns(exemplar.chain.top)


def test_a_start_from_several_exemplars_has_their_joint_statistics():
    exemplars = [Exemplar(chain(16, 16, seed), weight) for seed, weight in ((1, 0.75), (2, 0.25))]
    start = begin(exemplars, [3], 1.0, (16, 16))
    assert_statistics(start, joint_statistics(exemplars, [one.chain.top for one in exemplars]))


def test_positions_are_drawn_from_the_region_only():
    exemplar = Exemplar(chain(), region=left_half())
    assert columns(draw_positions([exemplar], 64, 1)) <= columns(exemplar.chain.top[..., :4])
    assert_statistics(begin([exemplar], [1], 1.0, (8, 8)), joint_statistics([exemplar], [exemplar.chain.top]))


@pytest.mark.parametrize(("weights", "share"), [((1, 1), 0.5), ((0.25, 0.75), 0.25)])
def test_each_exemplar_gives_positions_in_proportion_to_its_weight(weights, share):
    exemplars = [Exemplar(chain(32, 32, seed), weight) for seed, weight in enumerate(weights)]
    drawn = draw_positions(exemplars, 4096, 7)
    of_first = columns(exemplars[0].chain.top)
    found = sum(tuple(values) in of_first for values in drawn.flatten(2)[0].T.tolist()) / 4096
    assert found == pytest.approx(share, abs=0.03)


# matched


@given(st.integers(0, 2**32 - 1), st.integers(3, 9), st.integers(3, 9))
def test_matched_noise_has_the_exemplars_statistics_exactly(seed, height, width):
    exemplar = Exemplar(chain(8, 8))
    start = begin([exemplar], [seed], 1.0, (height, width), form="matched")
    assert_statistics(start, channel_statistics(exemplar.chain.top))


def test_matched_noise_is_the_hosts_noise_but_for_its_statistics():
    exemplar = Exemplar(chain(8, 8))
    (start,) = begin([exemplar], [5], 1.0, (16, 16), form="matched")
    for channel, fresh in zip(start, noise(1, 4, 16, 16, seed=5)[0], strict=True):
        assert torch.corrcoef(torch.stack([channel.flatten(), fresh.flatten()]))[0, 1] == pytest.approx(1, abs=1e-5)


def test_one_position_of_matched_noise_is_finite_and_differs_between_seeds():
    one, other = begin([Exemplar(chain(8, 8))], [5, 6], 1.0, (1, 1), form="matched")
    assert one.isfinite().all()
    assert not torch.equal(one, other)


# an image that is kept


@pytest.mark.parametrize("form", ["matched", "permuted"])
def test_below_full_strength_the_image_is_kept_and_only_the_noise_on_it_is_random(form):
    exemplar = Exemplar(chain(8, 8))
    image = noise(1, 4, 8, 8, seed=9)
    start = begin([exemplar], [3, 4], 1.0, (8, 8), form=form, image=image)
    noise_part = exemplar.chain.top - exemplar.chain.latents[:1]
    for row in (start - image).split(1):
        assert_statistics(row, channel_statistics(noise_part))
    if form == "permuted":
        ordered = [part.flatten(2).sort().values for part in (start[:1] - image, noise_part)]
        assert (ordered[0] - ordered[1]).abs().max() < 1e-5


def test_with_mix_zero_the_exemplars_own_image_starts_as_it_was_inverted():
    exemplar = Exemplar(chain(8, 8))
    start = begin([exemplar], [3], 0.0, (8, 8), image=exemplar.chain.latents[:1])
    assert (start - exemplar.chain.top).abs().max() < 1e-5


def test_less_noise_keeps_more_of_the_image():
    image, levels = noise(1, 4, 16, 16), levels_tensor([0.0, 1.0, 3.0, 9.0])
    exemplar = Exemplar(Chain(levels, image + levels.float().view(-1, 1, 1, 1) * noise(1, 4, 16, 16, seed=1)))

    def correlation(level):
        start = begin([exemplar.below(level)], [3], 1.0, (16, 16), form="matched", image=image)
        return float(torch.corrcoef(torch.stack([image.flatten(), start.flatten()]))[0, 1])

    correlations = [correlation(level) for level in (0.2, 2.0, 9.0)]
    assert correlations == sorted(correlations, reverse=True)


def test_each_image_of_a_batch_keeps_its_own_image():
    images = noise(2, 4, 8, 8, seed=9)
    together = begin([Exemplar(chain(8, 8))], [3, 4], 1.0, (8, 8), form="matched", image=images)
    alone = begin([Exemplar(chain(8, 8))], [4], 1.0, (8, 8), form="matched", image=images[1:])
    assert torch.equal(together[1:], alone)


def test_in_a_mask_the_image_is_kept_too_and_outside_it_is_as_inverted():
    canvas, image = InpaintCanvas(chain(), left_half()), noise(1, 4, 8, 8, seed=9)
    start = begin([Exemplar(canvas.chain)], [5], 1.0, (8, 8), canvas, form="matched", image=image)
    assert torch.equal(start[..., 4:], canvas.chain.top[..., 4:])
    noise_part = canvas.chain.top - canvas.chain.latents[:1]
    assert_statistics((start - image)[..., :4], channel_statistics(noise_part))


def test_fresh_noise_has_the_level_of_the_start():
    fresh, image = noise(2, 4, 8, 8), noise(1, 4, 8, 8, seed=9)
    assert torch.equal(fresh_latents(fresh, 3.0), fresh * 3)
    assert torch.equal(fresh_latents(fresh, 3.0, image), image + fresh * 3)


# inside a mask


def test_the_masks_positions_are_permuted_among_themselves_and_the_rest_is_as_inverted():
    mask = left_half()
    canvas = InpaintCanvas(chain(), mask)
    start = begin([Exemplar(canvas.chain, region=mask)], [5], 1.0, (8, 8), canvas)
    assert torch.equal(start[..., 4:], canvas.chain.top[..., 4:])
    assert not torch.equal(start[..., :4], canvas.chain.top[..., :4])
    assert sorted(columns(start[..., :4])) == sorted(columns(canvas.chain.top[..., :4]))


def test_the_mask_may_be_filled_from_an_exemplar_of_another_size():
    canvas, other = InpaintCanvas(chain(), left_half()), Exemplar(chain(6, 10, seed=1))
    start = begin([other], [5], 1.0, (8, 8), canvas)
    assert torch.equal(start[..., 4:], canvas.chain.top[..., 4:])
    assert_statistics(start[..., :4], channel_statistics(other.chain.top))
