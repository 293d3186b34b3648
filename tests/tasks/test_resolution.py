"""Weights of one size of images, trained further at another."""

import networks
import pytest
import small
import timm
import torch

from volution import data, hub, tasks
from volution.ops.gnconv.layer import GlobalLocalFilter
from volution.ops.gnconv.reference import resize_spectrum
from volution.train import engine

SMALL, LARGE = 64, 96
TRANSXNET = {"widths": (8, 16, 32, 64), "depths": (1, 1, 1, 1), "image_size": SMALL}
HORNET = {
    "widths": (16, 32, 64, 128),
    "depths": (1, 1, 1, 1),
    "filter_sizes": ((16, 9), (8, 5), (4, 3), (2, 2)),
}
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
NAMES = {
    "transxnet_t": (TRANSXNET, "stage1.position.weight", (1, 1, 576, 9)),
    "hornet_tiny_gf": (HORNET, "stage3.0.gnconv.dwconv.complex_weight", (60, 6, 4, 2)),
    "vit_tiny_patch16_224": (VIT, "pos_embed", (1, 37, 32)),
}


def made(name, classes=3, **more):
    return tasks.create_model(name, num_classes=classes, model_args={**NAMES[name][0], **more})


@pytest.fixture(params=sorted(NAMES))
def trained(request, tmp_path):
    """A lively network for images of 64 by 64, and its file."""
    torch.manual_seed(0)
    name = request.param
    net = made(name)
    if name.startswith("vit"):
        tasks.set_image_size(net, SMALL)
        torch.nn.init.normal_(net.pos_embed)
    else:
        networks.liven(net)
    for layer in net.modules():
        if isinstance(layer, GlobalLocalFilter):
            # Learned spectra are smooth; noise has no meaning at another size.
            smooth = torch.randn(layer.dim // 2, 2, 2, 2)
            layer.complex_weight.data = resize_spectrum(smooth, *layer.complex_weight.shape[1:3])
    inputs = data.InputConfig(3, SMALL, (0.5,) * 3, (0.5,) * 3)
    kept = tasks.Classifier(net.eval(), name, ("blue", "green", "red"), inputs, NAMES[name][0])
    tasks.save_classifier(tmp_path / "net.safetensors", kept)
    return name, net, tmp_path / "net.safetensors"


def test_the_table_is_resized_not_dropped(trained, capsys):
    name, net, path = trained
    _, table, shape = NAMES[name]
    again = made(name)
    tasks.start_from(again, path, LARGE)
    assert tuple(again.get_parameter(table).shape) == shape
    told = capsys.readouterr().err
    assert f"resized for images of {LARGE} by {LARGE}: " in told
    old, new = net.get_parameter(table).detach(), again.get_parameter(table).detach()
    assert new.std() > 0.4 * old.std()
    again.eval()
    x = networks.images(8, size=LARGE)
    with torch.no_grad():
        if name.startswith("vit"):
            tasks.set_image_size(net, LARGE)
        want, got = net(x), again(x)
    # The function that the smaller table gave for such images, resized for each of them.
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        again.get_parameter(table).zero_()
        assert (again(x) - want).abs().max() > 1e-3


def test_predictions_stay_sensible(trained):
    name, net, path = trained
    scenes = 3 * networks.images(16, size=4)
    x, larger = (
        torch.nn.functional.interpolate(scenes, (side, side), mode="bilinear")
        for side in (SMALL, LARGE)
    )
    again = made(name)
    tasks.start_from(again, path, LARGE)
    with torch.no_grad():
        want, got = net(x), again.eval()(larger)
    # Nearer to what the network said of the small images than to what it said of others.
    away = (want - want.roll(1, 0)).norm(dim=1).mean()
    assert (got - want).norm(dim=1).mean() < away


def test_what_learned_at_the_larger_size_loads_again(trained, tmp_path):
    name, _, path = trained
    again = made(name)
    tasks.start_from(again, path, LARGE)
    inputs = data.InputConfig(3, LARGE, (0.5,) * 3, (0.5,) * 3)
    kept = tasks.Classifier(again.eval(), name, ("a", "b", "c"), inputs, NAMES[name][0])
    tasks.save_classifier(tmp_path / "large.safetensors", kept)
    loaded = tasks.load_classifier(tmp_path / "large.safetensors")
    x = networks.images(2, size=LARGE)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), again(x))
    assert (
        hub.read_checkpoint(tmp_path / "large.safetensors")[NAMES[name][1]].shape
        == (NAMES[name][2])
    )


def test_a_run_takes_the_weights_to_its_size_of_images(trained, tmp_path, capsys):
    name, _, path = trained
    images = small.colour_folder(tmp_path / "colours", per_class=4)
    config = small.colour_run(
        images, tmp_path / "run", model=name, model_args=NAMES[name][0], image_size=LARGE,
        weights=path, batch_size=4,
    )  # fmt: skip
    net = engine.Run.build(config).classifier.model
    assert tuple(net.get_parameter(NAMES[name][1]).shape) == NAMES[name][2]
    assert "weights: resized for images of 96 by 96" in capsys.readouterr().err


def test_the_same_size_says_nothing(trained, capsys):
    name, _, path = trained
    tasks.start_from(made(name), path, SMALL)
    assert capsys.readouterr().err == ""


def test_a_new_network_of_timm_is_made_for_the_images(tmp_path):
    images = small.colour_folder(tmp_path / "colours", per_class=4)
    config = small.colour_run(
        images, tmp_path / "run", model="vit_tiny_patch16_224", model_args=VIT, batch_size=4
    )
    net = engine.Run.build(config).classifier.model
    assert net.pos_embed.shape == (1, 5, 32)


def test_sizes_that_cannot_be_are_told():
    with pytest.raises(ValueError, match="HorNet cannot be set to 16: img_size must be at least"):
        tasks.set_image_size(made("hornet_tiny_gf"), 16)
    with torch.device("meta"):
        fixed = timm.create_model("mixer_s32_224")
    with pytest.raises(ValueError, match="MlpMixer takes images of 224 by 224 only, got 96"):
        tasks.set_image_size(fixed, 96)
