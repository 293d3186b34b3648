"""A plain ResNet's weights, trained further with X-volutions in it, then folded."""

import pytest
import timm
import torch

from volution import data, tasks
from volution.ops import Xvolution2d
from volution.train import TrainConfig, fit

# timm's stems have 64 channels whatever the stages have.
WIDTHS, DEPTHS, STAGES = [64, 32, 32, 32], [1, 1, 1, 1], [3, 4]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xvolution")
    torch.manual_seed(0)
    sizes = {"layers": DEPTHS, "channels": WIDTHS, "num_classes": 7, "in_chans": 1}
    torch.save(timm.create_model("resnet34", **sizes).state_dict(), folder / "resnet.pth")
    config = TrainConfig(
        model="xvolution_resnet34",
        model_args={"widths": WIDTHS, "depths": DEPTHS, "heads": 2, "stages": STAGES},
        weights=folder / "resnet.pth",
        data="digits",
        out=folder / "run",
        image_size=32,
        epochs=3,
        batch_size=32,
        lr=0.1,
        optimizer="momentum",
        weight_decay=1e-4,
        warmup_epochs=0,
        device="cpu",
    )
    result = fit(config, show_progress=False)
    return result, tasks.load_classifier(result.best)


def layers_of(net):
    return [module for module in net.modules() if isinstance(module, Xvolution2d)]


def test_it_learns(trained):
    result, _ = trained
    assert result.best_top1 > 0.8
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_training_switches_the_attention_on(trained):
    _, classifier = trained
    layers = layers_of(classifier.model)
    assert len(layers) == 2 * len(STAGES)
    # It was zero in the network that the plain weights made.
    assert all(layer.attention_norm.weight.abs().max() > 1e-3 for layer in layers)


def test_folded_it_predicts_the_same(trained):
    result, classifier = trained
    net = classifier.model.eval()
    folded = net.fuse()
    assert not layers_of(folded)
    right = count = 0
    for batch in data.loader(data.load("digits").val, classifier.input.transform(), batch_size=64):
        with torch.inference_mode():
            want, got = net(batch.images), folded(batch.images)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert torch.equal(got.argmax(1), want.argmax(1))
        right += int((want.argmax(1) == batch.labels).sum())
        count += len(batch.labels)
    assert right / count == pytest.approx(result.best_top1)
