"""Several exemplars, regions, the start between inverted and permuted, canvases: what each promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rival_ext.errors import RivalError
from rival_ext.hosts.diffusers import DiffusersHost, Request, RequestImages
from rival_ext.method.alignment import blend_statistics, channel_statistics
from rival_ext.method.attention import concatenate, inject, record, replace
from rival_ext.method.chain import Chain
from rival_ext.method.exemplars import Exemplar, InpaintCanvas, JointTokens, joint_statistics
from rival_ext.method.guide import Guide
from rival_ext.method.host import EncodedExemplar
from rival_ext.method.layers import self_attention_layers
from rival_ext.method.prepare import prepare
from rival_ext.method.start import draw_positions, start_latents
from rival_ext.method.tokens import TokenSubset, token_grid
from rival_ext.settings import ExemplarInput, parse_settings
from rival_ext.storage.store import ChainStore, NoStore
from tests.conftest import exemplar, quiet

LEVELS = torch.tensor([0.1, 2.0, 9.0]).double()


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def chain(height=8, width=8, seed=0):
    return Chain(LEVELS, noise(3, 4, height, width, seed=seed))


def half(height=8, width=8):
    """The left half."""
    region = torch.zeros(1, 1, height, width)
    region[..., : width // 2] = 1
    return region


def assert_statistics(latent, expected):
    for one, other in zip(channel_statistics(latent), expected, strict=True):
        assert (one - other).abs().max() < 1e-4


def columns(latent):
    """The values at each position, as a set."""
    return {tuple(values) for values in latent.flatten(2)[0].T.tolist()}


# the start


@given(st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_every_mix_of_inverted_and_permuted_keeps_mean_and_variance(mix, seed):
    exemplar = Exemplar(chain(16, 16))
    (start,) = start_latents([exemplar], [seed], mix, (16, 16))
    own, theirs = channel_statistics(start[None]), channel_statistics(exemplar.chain.top)
    for one, other in zip(own, theirs, strict=True):
        assert (one - other).abs().max() < 1e-4


def test_the_mix_leads_evenly_from_the_layout_to_its_loss():
    exemplar = Exemplar(chain(32, 32))
    top = exemplar.chain.top.flatten()

    def likeness(mix):
        start = start_latents([exemplar], [1], mix, (32, 32)).flatten()
        return float(torch.corrcoef(torch.stack([top, start]))[0, 1])

    likenesses = [likeness(mix) for mix in (0, 0.25, 0.5, 0.75, 1)]
    assert likenesses[0] == pytest.approx(1, abs=1e-6)
    assert likenesses == sorted(likenesses, reverse=True)
    assert abs(likenesses[-1]) < 0.1


@pytest.mark.parametrize("size", [(8, 12), (5, 9), (16, 4)])
def test_another_size_starts_with_the_exemplars_statistics(size):
    exemplar = Exemplar(chain(8, 8))
    start = start_latents([exemplar], [3, 4], 1.0, size)
    assert start.shape == (2, 4, *size)
    assert not torch.equal(start[0], start[1])
    for row in start.split(1):
        assert_statistics(row, channel_statistics(exemplar.chain.top))
    assert columns(draw_positions([exemplar], 99, 3)) <= columns(exemplar.chain.top)
    assert columns(start_latents([exemplar], [3], 0.0, size)) <= columns(exemplar.chain.top)


def test_several_exemplars_start_with_their_joint_statistics():
    exemplars = [Exemplar(chain(16, 16, seed), weight) for seed, weight in ((1, 0.75), (2, 0.25))]
    start = start_latents(exemplars, [3], 1.0, (16, 16))
    assert_statistics(start, joint_statistics(exemplars, [one.chain.top for one in exemplars]))


def test_a_region_alone_gives_the_positions():
    exemplar = Exemplar(chain(), region=half())
    assert columns(draw_positions([exemplar], 64, 1)) <= columns(exemplar.chain.top[..., :4])
    assert_statistics(start_latents([exemplar], [1], 1.0, (8, 8)), joint_statistics([exemplar], [exemplar.chain.top]))


@pytest.mark.parametrize(("weights", "share"), [((1, 1), 0.5), ((0.25, 0.75), 0.25)])
def test_of_several_exemplars_each_gives_its_share_of_positions(weights, share):
    exemplars = [Exemplar(chain(32, 32, seed), weight) for seed, weight in enumerate(weights)]
    drawn = draw_positions(exemplars, 4096, 7)
    of_first = columns(exemplars[0].chain.top)
    found = sum(tuple(values) in of_first for values in drawn.flatten(2)[0].T.tolist()) / 4096
    assert found == pytest.approx(share, abs=0.03)


def test_a_hole_is_permuted_among_its_own_positions_and_the_rest_is_as_inverted():
    hole = half()
    canvas = InpaintCanvas(chain(), hole)
    start = start_latents([Exemplar(canvas.chain, region=hole)], [5], 1.0, (8, 8), canvas)
    assert torch.equal(start[..., 4:], canvas.chain.top[..., 4:])
    assert not torch.equal(start[..., :4], canvas.chain.top[..., :4])
    assert sorted(columns(start[..., :4])) == sorted(columns(canvas.chain.top[..., :4]))


def test_a_hole_may_be_filled_from_another_exemplar_of_another_size():
    canvas, other = InpaintCanvas(chain(), half()), Exemplar(chain(6, 10, seed=1))
    start = start_latents([other], [5], 1.0, (8, 8), canvas)
    assert torch.equal(start[..., 4:], canvas.chain.top[..., 4:])
    assert_statistics(start[..., :4], channel_statistics(other.chain.top))


# what is kept


def test_the_kept_region_follows_the_chain_exactly():
    """Deterministic steps with the kept noise lead from node to node, whatever the prediction was."""
    canvas = InpaintCanvas(chain(), half())
    latent = canvas.keep_latent(noise(2, 4, 8, 8, seed=5), 9.0)
    for level, lower in ((9.0, 2.0), (2.0, 0.1)):
        predicted = canvas.keep_noise(noise(2, 4, 8, 8, seed=6), level)
        latent = latent + (lower - level) * predicted
        expected = canvas.chain.latent(lower)[..., 4:].expand(2, -1, -1, -1)
        assert (latent[..., 4:] - expected).abs().max() < 1e-4
    assert (latent[..., :4] - canvas.chain.latent(0.1)[..., :4]).abs().max() > 0.1


# regions and weights


@pytest.mark.parametrize(
    ("latent", "tokens", "expected"),
    [((8, 8), 64, (8, 8, 1)), ((8, 8), 4, (2, 2, 4)), ((9, 5), 15, (5, 3, 2)), ((64, 96), 96, (8, 12, 8))],
)
def test_tokens_lie_on_the_halved_grid(latent, tokens, expected):
    assert token_grid(torch.zeros(1, 4, *latent), tokens) == expected


def test_merged_tokens_lie_on_no_grid():
    with pytest.raises(RivalError, match="token merging"):
        token_grid(torch.zeros(1, 4, 8, 8), 40)


def test_only_the_regions_tokens_are_seen():
    exemplar = Exemplar(chain(), region=half())
    h = torch.arange(64.0).view(1, 64, 1)
    seen = exemplar.seen_tokens(h).flatten()
    assert seen.tolist() == [value for value in range(64) if value % 8 < 4]
    assert exemplar.seen_tokens(torch.arange(16.0).view(1, 16, 1)).flatten().tolist() == [*(0, 1, 4, 5, 8, 9, 12, 13)]


def test_a_small_region_still_has_a_token_in_every_layer():
    region = torch.zeros(1, 1, 8, 8)
    region[..., 3:5, 3:5] = 1
    exemplar = Exemplar(chain(), region=region)
    assert exemplar.seen_tokens(torch.zeros(1, 4, 2)).shape[1] == 4
    assert exemplar.seen_tokens(torch.zeros(1, 16, 2)).shape[1] >= 1


def test_a_region_of_next_to_nothing_is_refused():
    region = torch.zeros(1, 1, 8, 8)
    region[..., 0, 0] = 1
    with pytest.raises(RivalError, match="exemplar_mask"):
        EncodedExemplar(noise(1, 4, 8, 8), region=region)


def test_what_lies_outside_the_region_does_not_count_in_the_statistics():
    exemplar = Exemplar(chain(), region=half())
    latent = noise(1, 4, 8, 8)
    changed = latent.clone()
    changed[..., 4:] = 100
    for one, other in zip(joint_statistics([exemplar], [latent]), joint_statistics([exemplar], [changed]), strict=True):
        assert torch.equal(one, other)


def test_statistics_are_blended_by_weight():
    two = [channel_statistics(noise(1, 4, 8, 8, seed=seed) * (seed + 1) + seed) for seed in (0, 1)]
    mean, deviation = blend_statistics(two, [1, 3])
    assert torch.allclose(mean, 0.25 * two[0][0] + 0.75 * two[1][0])
    assert torch.allclose(deviation, 0.25 * two[0][1] + 0.75 * two[1][1])
    assert all(torch.equal(a, b) for a, b in zip(blend_statistics(two[:1], [0.3]), two[0], strict=True))


def test_the_tokens_of_all_exemplars_are_joined_and_of_a_lighter_one_fewer_are_taken():
    features = [{"attn1": torch.full((1, 64, 2), value)} for value in (1.0, 2.0)]
    joined = JointTokens([Exemplar(chain(), 1.0), Exemplar(chain(), 0.5)]).join(features)["attn1"]
    assert joined.shape == (1, 96, 2)
    assert (joined == 1).sum() == 128
    equal = JointTokens([Exemplar(chain(), 0.3), Exemplar(chain(), 0.3)]).join(features)["attn1"]
    assert equal.shape == (1, 128, 2)


@given(st.integers(1, 200), st.floats(0.01, 1))
def test_a_scattered_part_has_its_size_and_no_token_twice(tokens, fraction):
    kept = TokenSubset(fraction).of(torch.arange(float(tokens)).view(1, tokens, 1)).flatten().tolist()
    assert len(kept) == max(1, round(tokens * fraction))
    assert len(set(kept)) == len(kept)


# strength


@pytest.mark.parametrize("context", [replace, concatenate])
def test_strength_leads_from_the_usual_output_to_the_injected_one(pipeline, context):
    layers = self_attention_layers(pipeline.unet)
    text = torch.zeros(1, 77, 96)

    def evaluate(strength=None):
        with torch.no_grad():
            if strength is None:
                return pipeline.unet(noise(1, 4, 16, 16), 500, text, return_dict=False)[0]
            with inject(layers, features, context, strength=strength) as seen:
                output = pipeline.unet(noise(1, 4, 16, 16), 500, text, return_dict=False)[0]
        assert len(seen) == 10
        return output

    with torch.no_grad(), record(layers) as features:
        pipeline.unet(noise(1, 4, 16, 16, seed=1), 500, text)
    usual, full = evaluate(), evaluate(1.0)
    assert (evaluate(1e-9) - usual).abs().max() < 1e-5
    distances = [float((evaluate(strength) - usual).norm()) for strength in (0.25, 0.5, 0.75, 1.0)]
    assert distances == sorted(distances)
    assert (evaluate(0.5) - full).norm() < (usual - full).norm()
    assert (evaluate() - usual).abs().max() == 0


# a part of an exemplar


def painted_half(image):
    """The image with its right half overpainted, and a mask of its left half."""
    mask = Image.new("L", image.size)
    mask.paste(255, (0, 0, image.width // 2, image.height))
    overpainted = Image.composite(image, Image.new("RGB", image.size, "lime"), mask)
    return overpainted, mask


def guide_of(pipeline, shown, **fields):
    request = Request("a house", "", 5.0, "ddim", 6)
    host = DiffusersHost(pipeline, request, RequestImages(shown, (128, 128)), quiet)
    return host, prepare(host, parse_settings(fields), NoStore()).guide


def test_a_part_aligns_nothing_and_gives_no_start(pipeline):
    image, mask = painted_half(exemplar("house-emojione-blue"))
    host, guide = guide_of(pipeline, [ExemplarInput(image, mask)])
    start = guide.start([3, 4], (16, 16))
    assert torch.equal(start[1:], guide.start([4], (16, 16)))
    assert not columns(start[:1]) & columns(guide.exemplars[0].chain.top)
    level = float(guide.exemplars[0].chain.noise_levels[-1])
    assert start.std() == pytest.approx(level, rel=0.05)
    host.sample(start, [3, 4], guide, quiet)
    assert (guide.counts.steps.injected, guide.counts.steps.aligned) == (6, 0)


def test_beside_a_part_the_whole_exemplar_gives_start_and_statistics(pipeline):
    image, mask = painted_half(exemplar("house-emojione-blue"))
    whole = exemplar("pizza-emojione-yellow")
    host, guide = guide_of(pipeline, [ExemplarInput(image, mask), ExemplarInput(whole)])
    _, alone = guide_of(pipeline, [ExemplarInput(whole)])
    assert torch.equal(guide.start([3], (16, 16)), alone.start([3], (16, 16)))
    host.sample(guide.start([3], (16, 16)), [3], guide, quiet)
    assert (len(guide.exemplars), guide.counts.steps.injected, guide.counts.steps.aligned) == (2, 6, 2)


def test_an_exemplar_without_weight_leaves_the_others_picture_as_it_is(pipeline):
    house, pizza = exemplar("house-emojione-blue"), exemplar("pizza-emojione-yellow")
    settings = parse_settings({"exemplar": house, "weight": 0, "exemplar_2": pizza})
    shown = [ExemplarInput(slot.image, slot.mask, slot.weight) for slot in settings.exemplar_inputs]
    host, guide = guide_of(pipeline, shown)
    _, alone = guide_of(pipeline, [ExemplarInput(pizza)])
    finals = [host.sample(one.start([3], (16, 16)), [3], one, quiet) for one in (guide, alone)]
    assert torch.equal(*finals)


@pytest.mark.parametrize(("layers", "seen"), [("all", 10), ("fine", 3), ("coarse", 7), ("16", 3), ("8,32", 7)])
def test_only_the_layers_asked_for_see_the_exemplar(pipeline, layers, seen):
    host, guide = guide_of(pipeline, [ExemplarInput(exemplar("house-emojione-blue"))], layers=layers)
    host.sample(guide.start([3], (16, 16)), [3], guide, quiet)
    assert guide.counts.layers == seen


def test_layers_of_no_size_are_refused_before_sampling(pipeline):
    with pytest.raises(RivalError, match="layers names none"):
        guide_of(pipeline, [ExemplarInput(exemplar("house-emojione-blue"))], layers="64")


def test_strength_zero_is_generation_without_injection(pipeline):
    host, guide = guide_of(pipeline, [ExemplarInput(exemplar("house-emojione-blue"))], strength=0)
    start = guide.start([3], (16, 16))
    off = Guide(guide.exemplars, guide.settings, host.schedule, {}, host.predict_noise)
    assert torch.equal(host.sample(start, [3], guide, quiet), host.sample(start, [3], off, quiet))
    assert guide.counts.steps.injected == 0


def test_the_chains_of_one_run_share_the_memory_budget(pipeline):
    shown = [ExemplarInput(exemplar(name)) for name in ("house-emojione-blue", "pizza-emojione-yellow")]
    host, guide = guide_of(pipeline, shown)
    each = guide.exemplars[0].chain.bytes
    for budget, kept in ((2 * each, [6, 6]), (1.5 * each, [6, 2]), (each, [6, 0])):
        host.memory_budget = lambda budget=budget: budget
        store = ChainStore()
        chains = [one.chain for one in prepare(host, parse_settings({}), store).guide.exemplars]
        assert [len(one.features) for one in chains] == kept
        assert store.bytes <= budget
