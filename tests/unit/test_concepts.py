"""The benchmarks' classifier recognises the concepts in images of a vendor that was not in its training."""

from __future__ import annotations

import pytest
import torch

from benchmarks.concepts import CONCEPTS, load_classifier
from tests.conftest import CAPTIONS, exemplar

KNOWN = {
    file.removesuffix(".png"): entry["concept"] for file, entry in CAPTIONS.items() if entry["concept_seen_by_unet"]
}


@pytest.fixture(scope="module")
def probabilities():
    """The probabilities for the exemplars that show known concepts, `[N, classes]`."""
    return load_classifier().probabilities([exemplar(name) for name in KNOWN])


def test_the_classifier_finds_the_concepts_of_the_exemplars(probabilities):
    asked = torch.tensor([CONCEPTS.index(concept) for concept in KNOWN.values()])
    assert (probabilities.argmax(dim=1) == asked).double().mean() >= 0.75
    assert (probabilities.topk(5).indices == asked[:, None]).any(dim=1).double().mean() >= 0.85


def test_the_classifier_gives_a_probability_for_every_concept(probabilities):
    assert probabilities.shape == (len(KNOWN), 121)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(len(KNOWN)))


def test_mirrored_and_larger_images_give_the_same_concept():
    classifier, image = load_classifier(), exemplar("pizza-emojione-yellow")
    mirrored, larger = image.transpose(0), image.resize((512, 512))
    one, other, third = classifier.probabilities([image, mirrored, larger])
    torch.testing.assert_close(one, other)
    assert one.argmax() == third.argmax()
