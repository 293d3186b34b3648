"""Classifiers: made for a dataset, written and read with all that is needed to use them."""

import pytest
import small
import torch

from volution import data, tasks


def test_accuracy_agrees_with_its_definition():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 7), torch.randint(7, (50,))
    accuracy = tasks.Accuracy(7)
    for part in (slice(0, 20), slice(20, 50)):
        accuracy.update(logits[part], labels[part])
    order = logits.argsort(1, descending=True)
    assert accuracy.top1 == pytest.approx((order[:, 0] == labels).float().mean())
    assert accuracy.top5 == pytest.approx((order[:, :5] == labels[:, None]).any(1).float().mean())
    assert accuracy.confusion[3].sum() == (labels == 3).sum()
    assert accuracy.count == 50


def test_accuracy_of_nothing_is_not_a_number():
    assert tasks.Accuracy(3).top1 != tasks.Accuracy(3).top1


def test_the_dataset_knows_its_input_better_than_the_network():
    digits = data.load("digits")
    net = tasks.create_model("rednet26", num_classes=10, in_chans=1, model_args=small.WIDTHS)
    config = tasks.input_config(net, digits)
    assert (config.channels, config.image_size, config.crop_pct) == (1, 32, 1.0)
    assert config.mean == digits.mean
    plain = tasks.input_config(net)
    assert (plain.image_size, plain.crop_pct) == (224, 0.875)
    assert tasks.input_config(net, digits, image_size=48).image_size == 48


def test_a_classifier_survives_its_file(tmp_path):
    classifier = small.colour_classifier()
    tasks.save_classifier(tmp_path / "net.safetensors", classifier, val_top1=0.5)
    again = tasks.load_classifier(tmp_path / "net.safetensors")
    assert (again.name, again.classes, again.input) == (
        classifier.name,
        classifier.classes,
        classifier.input,
    )
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.model(x), classifier.model(x))


def test_weights_of_another_architecture_are_refused_with_their_keys(tmp_path):
    path = tmp_path / "net.safetensors"
    tasks.save_classifier(path, small.colour_classifier())
    with pytest.raises(ValueError, match=r"missing.*layer1\.1") as info:
        tasks.load_classifier(path, model="rednet50")
    assert "stem.0.conv.weight is (4, 3, 3, 3)" in str(info.value)


def test_bare_weights_need_the_networks_name(tmp_path):
    path = tmp_path / "bare.pth"
    torch.save(tasks.create_model("resnet10t", num_classes=1000).state_dict(), path)
    with pytest.raises(ValueError, match="does not say which network"):
        tasks.load_classifier(path)
    assert len(tasks.load_classifier(path, model="resnet10t").classes) == 1000


def test_unknown_models_and_arguments():
    with pytest.raises(ValueError, match="unknown model 'redent50'; nearest: rednet50"):
        tasks.create_model("redent50")
    with pytest.raises(TypeError, match="wings"):
        tasks.create_model("rednet26", model_args={"wings": 2})
    net = small.colour_classifier().model
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        tasks.input_config(net, image_size=0)


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg_overlay"])
def test_a_files_description_cannot_name_other_files(name):
    with pytest.raises(ValueError, match=f"arguments of the network's class, got {name}"):
        tasks.create_model("rednet26", model_args={name: "/etc/passwd"})
