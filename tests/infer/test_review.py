"""Images at both ends: the ones a classifier is worst and best on."""

import pytest
import small
import torch

from volution import data, infer


def test_worst_and_best_are_those_of_the_highest_and_the_lowest_loss(tmp_path):
    images = data.load(f"folder:{small.colour_folder(tmp_path / 'colours', per_class=20)}").val
    classifier = small.colour_classifier()
    found = infer.review(classifier, images, samples=3, batch_size=5, show_progress=False)
    transform = classifier.input.transform()
    pixels = torch.stack([transform(images.open(i)) for i in range(len(images))])
    with torch.inference_mode():
        logits = classifier.model(pixels)
    losses = torch.nn.functional.cross_entropy(
        logits, torch.tensor(list(images.labels)), reduction="none"
    )
    order = losses.argsort().tolist()
    assert [sample.position for sample in found.best] == order[:3]
    assert [sample.position for sample in found.worst] == order[::-1][:3]
    for sample in found.worst + found.best:
        assert sample.loss == pytest.approx(float(losses[sample.position]), rel=1e-4)
        assert sample.truth == images.labels[sample.position]
        assert sample.answer == int(logits[sample.position].argmax())
        assert torch.equal(sample.pixels, pixels[sample.position])
    plain = infer.evaluate(classifier, images, show_progress=False)
    assert found.evaluation.top1 == plain.top1
    assert found.evaluation.nll == pytest.approx(float(losses.mean()), rel=1e-4)


def test_fewer_images_than_samples(tmp_path):
    images = data.load(f"folder:{small.colour_folder(tmp_path / 'colours', per_class=5)}").val
    bad = small.break_image(images.paths[0])
    found = infer.review(small.colour_classifier(), images, samples=12, show_progress=False)
    assert len(found.worst) == len(found.best) == len(images) - 1
    assert found.evaluation.broken[0].startswith(str(bad))
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        infer.review(small.colour_classifier(), images, samples=0)
