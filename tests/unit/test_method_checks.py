"""What METHOD.md's section 8 asks of any implementation, on the trained model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rival_ext.images.transforms import rgb_array
from rival_ext.method.alignment import align_statistics, channel_statistics
from rival_ext.method.attention import concatenate, inject, record, replace
from rival_ext.method.chain import Chain
from rival_ext.method.exemplars import Exemplar
from rival_ext.method.inversion import invert, lower_latent, reconstruct
from rival_ext.method.layers import self_attention_layers
from rival_ext.method.noise import scale_to_vp
from rival_ext.method.quality import psnr
from rival_ext.method.start import start_latents

HELD_OUT = ["cat-face-emojione-white", "pizza-emojione-yellow", "taxi-twemoji-green"]


def inverted(host, **options):
    return invert(host.exemplar_latent(), host.noise_levels(), host.predict_noise, {}, **options)


def decibels(host, latent):
    """Of a latent's image against the VAE's own reconstruction of the exemplar."""
    images = host.decode(host.exemplar_latent())[0], host.decode(latent)[0]
    return psnr(*(torch.from_numpy(rgb_array(image)) for image in images))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# the exemplar comes back


@pytest.mark.parametrize("name", HELD_OUT)
def test_one_evaluation_a_step_brings_the_exemplar_back_at_40_db(make_host, sample, name):
    host = make_host(name, guidance=1.0)
    chain = inverted(host)
    assert chain.evaluations == 20
    assert decibels(host, sample(host, chain.top, [0], None)) >= 40


def test_the_exemplar_comes_back_under_its_own_prompt(make_host, sample):
    host = make_host("house-emojione-blue", prompt="a house", exemplar_prompt="a house", guidance=1.0)
    chain = inverted(host)
    assert decibels(host, sample(host, chain.top, [0], None)) >= 40


def test_the_exemplar_comes_back_through_a_sampler_of_the_other_form(make_host, sample):
    host = make_host("house-emojione-blue", guidance=1.0, sampler="euler")
    chain = inverted(host)
    assert decibels(host, sample(host, chain.top, [0], None)) >= 40


def test_reconstruction_is_what_the_sampler_does_without_guidance(make_host, sample):
    host = make_host(guidance=1.0, steps=8)
    chain = inverted(host)
    difference = reconstruct(chain, host.predict_noise) - sample(host, chain.top, [0], None)
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("name", HELD_OUT[:2])
def test_the_residual_falls_with_the_iterations(make_host, name):
    host = make_host(name, steps=12)
    chains = [inverted(host, iterations=iterations) for iterations in (1, 2, 3)]
    residuals = [chain.residual for chain in chains]
    assert residuals[0] > 1.5 * residuals[1]
    assert residuals[1] > 1.1 * residuals[2] > 0
    assert [chain.evaluations for chain in chains] == [12, 24, 36]


@pytest.mark.parametrize("name", HELD_OUT[:2])
def test_one_evaluation_from_the_extrapolated_start_beats_the_authors_start_with_two(make_host, name):
    host = make_host(name, steps=12)
    ours = inverted(host, iterations=1)
    theirs = inverted(host, iterations=2, first_guess=lower_latent)
    clean = host.exemplar_latent()
    errors = [(reconstruct(chain, host.predict_noise) - clean).norm() for chain in (ours, theirs)]
    assert errors[0] < 0.8 * errors[1]


# switched off: see also test_switches_off.py


def test_plain_sampling_is_the_librarys_own_pipeline(pipeline, make_host, sample):
    host = make_host(prompt="a taxi", steps=6)
    start = host.noise(5)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a taxi",
        latents=start * scale_to_vp(host.noise_levels()[-1].item()),
        num_inference_steps=6,
        guidance_scale=5.0,
        output_type="latent",
    ).images
    assert (sample(host, start, [5], None) - theirs).abs().max() < 1e-5


# the generation's own features


@pytest.fixture
def evaluation(make_host):
    """(layers of the UNet, a guided evaluation of two latents: four rows)."""
    host = make_host(prompt="a taxi")
    latents = noise(2, 4, 16, 16)
    prompts = torch.cat(
        [host.embeddings.negative, host.embeddings.negative, host.embeddings.prompt, host.embeddings.prompt]
    )
    level = host.noise_levels()[10].item()
    evaluate = torch.no_grad()(lambda: host.evaluate(torch.cat([latents, latents]), level, prompts))
    return self_attention_layers(host.unet), evaluate


def test_replacing_by_the_generations_own_features_changes_nothing(evaluation):
    layers, evaluate = evaluation
    with record(layers) as features:
        untouched = evaluate()
    with inject(layers, features, replace, range(4)) as seen:
        replaced = evaluate()
    assert torch.equal(replaced, untouched)
    assert seen == set(layers)


def test_concatenating_the_generations_own_features_changes_nothing(evaluation):
    layers, evaluate = evaluation
    with record(layers) as features:
        untouched = evaluate()
    with inject(layers, features, concatenate, range(4)):
        doubled = evaluate()
    assert (doubled - untouched).abs().max() < 1e-5


@pytest.mark.parametrize("context", [replace, concatenate])
def test_features_of_another_image_change_the_prediction(evaluation, context):
    layers, evaluate = evaluation
    with record(layers) as features:
        untouched = evaluate()
    others = {name: tokens.flip(0) for name, tokens in features.items()}
    with inject(layers, others, context, range(4)):
        assert (evaluate() - untouched).abs().max() > 1e-2


# the start


def start_of(chain, seeds, mix=1.0):
    return start_latents([Exemplar(chain)], seeds, mix, chain.top.shape[2:])


def permute_positions(latent, seed):
    return start_of(Chain(torch.tensor([0.1, 2.0]).double(), latent.repeat(2, 1, 1, 1)), [seed])


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7))
def test_the_permutation_keeps_each_channels_values(seed, channels, height, width):
    latent = noise(1, channels, height, width)
    permuted = permute_positions(latent, seed)
    assert permuted.shape == latent.shape
    assert torch.equal(permuted.flatten(2).sort().values, latent.flatten(2).sort().values)


@given(st.integers(0, 2**32 - 1))
def test_the_permutation_is_the_same_for_all_channels(seed):
    positions = torch.arange(24.0).view(1, 1, 4, 6)
    permuted = permute_positions(torch.cat([positions, positions + 100, -positions], dim=1), seed)[0]
    assert torch.equal(permuted[1], permuted[0] + 100)
    assert torch.equal(permuted[2], -permuted[0])


@given(st.integers(0, 2**32 - 1))
def test_one_seed_gives_one_permutation_whatever_was_drawn_before(seed):
    latent = noise(1, 4, 8, 8)
    before = permute_positions(latent, seed)
    torch.rand(3)
    assert torch.equal(permute_positions(latent, seed), before)


def test_drawing_the_permutation_leaves_the_global_random_state_alone():
    state = torch.random.get_rng_state()
    permute_positions(noise(1, 4, 8, 8), 1)
    assert torch.equal(torch.random.get_rng_state(), state)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=6, unique=True))
def test_different_seeds_give_different_permutations(seeds):
    latent = torch.arange(64.0).view(1, 1, 8, 8)
    assert len({tuple(permute_positions(latent, seed).flatten().tolist()) for seed in seeds}) == len(seeds)


def test_all_32_bits_of_the_seed_count():
    latent = torch.arange(64.0).view(1, 1, 8, 8)
    seeds = [1, *(1 + 10**power for power in range(10)), *(1 + 2**power for power in range(1, 32))]
    assert len({tuple(permute_positions(latent, seed).flatten().tolist()) for seed in seeds}) == len(set(seeds))


def test_each_image_of_a_batch_starts_as_its_own_seed_does_alone():
    chain = Chain(torch.tensor([0.1, 2.0]).double(), noise(2, 4, 8, 8))
    together = start_of(chain, [3, 8, 5])
    assert torch.equal(together, torch.cat([start_of(chain, [seed]) for seed in (3, 8, 5)]))
    assert torch.equal(together[1:2], permute_positions(chain.latents[1:], 8))


def test_an_inverted_start_is_the_chains_top_for_every_seed():
    chain = Chain(torch.tensor([0.1, 2.0]).double(), noise(2, 4, 8, 8))
    assert torch.equal(start_of(chain, [3, 8], mix=0.0), chain.latents[1:].expand(2, -1, -1, -1))


# alignment


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


def test_alignment_pairs_rows_with_the_exemplars_rows():
    generation, exemplars = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1) * torch.tensor([2.0, 5.0]).view(2, 1, 1, 1)
    pairs = zip(generation.split(1), exemplars.split(1), strict=True)
    one_by_one = torch.cat([align_statistics(row, channel_statistics(exemplar)) for row, exemplar in pairs])
    assert (align_statistics(generation, channel_statistics(exemplars)) - one_by_one).abs().max() < 1e-5


def test_alignment_of_a_constant_channel_is_finite_and_takes_the_exemplars_mean():
    exemplar = noise(1, 4, 8, 8) + 2
    aligned = align_statistics(torch.full((1, 4, 8, 8), 3.0), channel_statistics(exemplar))
    expected = exemplar.mean((2, 3), keepdim=True).expand_as(aligned)
    assert (aligned - expected).abs().max() < 1e-5


def test_alignment_computes_in_float32_and_returns_the_generations_type():
    # in half precision the sum of squares would overflow
    generation = (noise(1, 4, 32, 32) * 300).half()
    exemplar = (noise(1, 4, 32, 32, seed=1) * 300).half()
    aligned = align_statistics(generation, channel_statistics(exemplar))
    assert aligned.dtype == torch.float16
    expected = align_statistics(generation.float(), channel_statistics(exemplar.float()))
    assert torch.equal(aligned, expected.half())


@given(st.integers(0, 2**31), st.sampled_from([1, 1000, 2**16, 2**20]))
def test_every_seed_has_an_order_of_its_own(seed, distance):
    latent = torch.arange(256.0).view(1, 1, 16, 16)
    assert not torch.equal(permute_positions(latent, seed), permute_positions(latent, seed + distance))


@pytest.mark.parametrize(("sampler", "takes_them"), [("euler-a", True), ("euler", False)])
@pytest.mark.parametrize("alignment", ["noise", "off"])
def test_a_latent_with_fresh_noise_takes_the_chains_statistics(
    make_host, make_live_guide, sampler, takes_them, alignment
):
    """Pulled towards the exemplar's while the noise has its own, a prediction leaves the difference in the colours."""
    host = make_host("pizza-emojione-yellow", sampler=sampler, steps=8)
    guide = make_live_guide(host, alignment=alignment)
    chain = guide.exemplars[0].chain
    early, late = float(chain.noise_levels[-2]), float(chain.noise_levels[2])
    for level in (early, late):
        latent = level * noise(2, 4, 16, 16)
        corrected = guide.corrected_latent(latent, level)
        if takes_them and alignment == "noise" and level == early:
            own, wanted = channel_statistics(corrected), channel_statistics(chain.latent(level))
            assert all(torch.allclose(*pair, atol=1e-3) for pair in zip(own, wanted, strict=True))
        else:
            assert corrected is latent
