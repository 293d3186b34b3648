"""What other libraries make of the networks: a test for each of them, over all networks.

Each one gets the twin's weights and must give the maps that ``forward_intermediates`` gives.
"""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from networks import images, one_of_each_kind, small, twin
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models._utils import IntermediateLayerGetter
from transformers import TimmBackbone, TimmBackboneConfig


@pytest.fixture(scope="module", params=one_of_each_kind())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def net(name: str) -> nn.Module:
    return twin(name)


@pytest.fixture(scope="module")
def taps(net: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return net.forward_intermediates(images(), intermediates_only=True)


def same(got: list[Tensor], want: list[Tensor]) -> None:
    """Compare exactly: these wrappers run the same layers on the same numbers."""
    assert_close(list(got), list(want), atol=0, rtol=0)


def give_weights(target: nn.Module, net: nn.Module) -> nn.Module:
    """Copy the weights of the layers that ``target`` has, all of which ``net`` must have."""
    assert not target.load_state_dict(net.state_dict(), strict=False).missing_keys
    return target.eval()


@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "getter", "fx"])
def test_timm_features_only(name, net, taps, feature_cls):
    got = timm.create_model(
        name,
        **small(name),
        features_only=True,
        feature_cls=feature_cls,
        out_indices=tuple(range(len(taps))),
    )
    inside = {"hook": "body", "getter": "model", "fx": "graph_module"}.get(feature_cls)
    give_weights(getattr(got, inside) if inside else got, net)
    got.eval()
    with torch.no_grad():
        maps = got(images())
    same(maps.values() if isinstance(maps, dict) else maps, taps)
    assert got.feature_info.channels() == [tap.shape[1] for tap in taps]
    assert got.feature_info.reduction() == [64 // tap.shape[2] for tap in taps]


@pytest.mark.parametrize("feature_cls", ["list", "getter"])
@pytest.mark.parametrize("indices", [(0,), (1, 3), (-2, -1)])
def test_timm_features_only_of_some_taps(name, net, taps, feature_cls, indices):
    got = timm.create_model(
        name,
        **small(name),
        features_only=True,
        feature_cls=feature_cls,
        out_indices=indices,
        in_chans=3,
    )
    give_weights(got.model if feature_cls == "getter" else got, net)
    got.eval()
    with torch.no_grad():
        same(got(images()), [taps[i] for i in indices])
    assert got.feature_info.channels() == [taps[i].shape[1] for i in indices]


def test_timm_features_only_checkpointing(name, net):
    got = timm.create_model(name, **small(name), features_only=True)
    got = give_weights(got, net)
    # Recorded too: where nothing is recorded, sums may be rounded otherwise.
    want = got(images())
    got.set_grad_checkpointing()
    maps = got(images())
    same(maps, want)
    sum(tap.sum() for tap in maps).backward()
    assert all(p.grad is not None for p in got.parameters())


def test_torchvision_intermediate_layer_getter(net, taps):
    names = [info["module"] for info in net.feature_info]
    for wanted in (names, names[1:3]):
        getter = IntermediateLayerGetter(net, {name: name for name in wanted})
        with torch.no_grad():
            maps = getter(images())
        assert list(maps) == wanted
        same(maps.values(), [taps[names.index(name)] for name in wanted])


def test_torchvision_feature_extractor(net, taps):
    names = [info["module"] for info in net.feature_info]
    extract = torchvision.models.feature_extraction.create_feature_extractor(net, names)
    with torch.no_grad():
        same(extract(images()).values(), taps)


def test_segmentation_models_encoder(name, net, taps):
    model = smp.FPN(f"tu-{name}", encoder_weights=None, classes=3, **small(name)).eval()
    give_weights(model.encoder.model, net)
    with torch.no_grad():
        maps = model.encoder(images())
        assert model(images()).shape == (2, 3, 64, 64)
    # The image itself, and an empty map where a network has nothing at half its size.
    same([m for m in maps[1:] if m.shape[1]], taps)
    assert model.encoder.out_channels == [m.shape[1] for m in maps]
    assert [64 // m.shape[2] for m in maps] == [1, 2, 4, 8, 16, 32]


def test_segmentation_models_with_dilation(name, net):
    def make(stride: int) -> nn.Module:
        options = {"encoder_output_stride": stride, **small(name)}
        return smp.DeepLabV3(f"tu-{name}", encoder_weights=None, **options)

    if 8 in net.output_strides:
        assert make(8).eval()(images()).shape == (2, 1, 64, 64)
    else:
        with pytest.raises(ValueError, match="output_stride must be 32, got 8"):
            make(8)


def test_transformers_backbone(name, net, taps):
    config = TimmBackboneConfig(backbone=name, out_indices=[-3, -1])
    backbone = TimmBackbone(config, **small(name))
    give_weights(backbone._backbone, net)
    with torch.no_grad():
        maps = backbone.eval()(images()).feature_maps
    same(maps, [taps[-3], taps[-1]])
    assert list(backbone.channels) == [taps[-3].shape[1], taps[-1].shape[1]]
