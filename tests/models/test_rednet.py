"""RedNet against the authors' code, and what is its own."""

from __future__ import annotations

from collections import OrderedDict

import parity
import pytest
import timm
import torch
from networks import images
from torch import nn
from torch.testing import assert_close

import volution
from volution.models.rednet import Bottleneck, RedNet
from volution.ops import Involution2d

DTYPES = [torch.float64, torch.float32]
PARAMETERS = {
    "rednet26": 9_233_166,
    "rednet38": 12_386_986,
    "rednet50": 15_540_806,
    "rednet101": 25_652_950,
    "rednet152": 33_984_582,
}
SMALL = {"depths": (1, 1, 1, 1), "widths": (32, 64, 96, 128)}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_number_of_parameters(name, count):
    net = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in net.parameters()) == count


def test_all_of_them_are_registered():
    assert volution.models.list_models("rednet*") == list(PARAMETERS)


@parity.needs_fixtures
@pytest.mark.parametrize("dtype", DTYPES)
class TestParity:
    def test_whole_network(self, dtype):
        fixture = parity.load("rednet26")
        net = timm.create_model("rednet26").eval()
        volution.models.load_official(net, fixture.weights())
        net.to(dtype)
        with torch.inference_mode():
            last, taps = net.forward_intermediates(*fixture.inputs(dtype))
            got = dict(zip(("stem", "stage1", "stage2", "stage3", "stage4"), taps, strict=True))
            got["pooled"] = net.forward_head(last, pre_logits=True)
            got["logits"] = net.forward_head(last)
        assert got.keys() == fixture.meta["tensors"].keys()
        fixture.check(got, dtype)

    def test_block(self, dtype):
        parity.compare(parity.load("rednet_bottleneck_c64"), Bottleneck(64, 64), dtype)

    def test_stage(self, dtype):
        stage = nn.Sequential(Bottleneck(64, 128, stride=2), Bottleneck(128, 128))
        parity.compare(parity.load("rednet_stage_s2"), stage, dtype)

    @pytest.mark.parametrize(("kind", "kernel_size"), [("cls", 3), ("det", 7)])
    def test_stem(self, kind, kernel_size, dtype):
        net = RedNet(depths=(1, 1, 1, 1), stem_kernel_size=kernel_size)
        stem = nn.Sequential(OrderedDict(stem=net.stem, maxpool=net.maxpool))
        parity.compare(parity.load(f"rednet_stem_{kind}"), stem, dtype)


@parity.needs_fixtures
def test_keys_are_the_authors_in_their_order():
    manifest = parity.load("rednet26").meta["manifest"]
    own = timm.create_model("rednet26", device="meta").state_dict()
    theirs = [key.removeprefix("backbone.") for key in manifest]
    assert [parity.official_name(key) for key in own] == theirs


class TestInitialisation:
    def test_blocks_start_as_their_shortcuts(self):
        net = RedNet(**SMALL)
        x = torch.randn(1, 8, 9, 9)
        with torch.no_grad():
            block = net.layer1.eval()[0]
            assert_close(block(x), block.downsample(x).relu(), atol=0, rtol=0)

    def test_blocks_can_start_whole(self):
        net = RedNet(**SMALL, zero_init_last=False)
        assert (net.layer1[0].bn3.weight == 1).all()

    def test_convolutions_follow_he(self):
        torch.manual_seed(0)
        net = RedNet(depths=(1, 1, 1, 1))
        weight = net.layer3[0].conv2.kernel_generator.conv2.conv.weight
        assert weight.std().item() == pytest.approx((2 / weight.shape[0]) ** 0.5, rel=0.05)
        assert not net.layer3[0].conv2.kernel_generator.conv2.conv.bias.any()

    def test_meta_network_can_be_filled(self):
        net = RedNet(**SMALL, device="meta").to_empty(device="cpu")
        net.init_weights()
        assert not net.layer1[0].bn3.weight.any()


class TestArguments:
    def test_window_sizes(self):
        net = RedNet(**SMALL, kernel_size=5, stem_kernel_size=7)
        sizes = [m.kernel_size for m in net.modules() if isinstance(m, Involution2d)]
        assert sizes == [7, 5, 5, 5, 5]

    def test_output_stride_dilates(self):
        net = RedNet(depths=(1, 1, 2, 2), widths=SMALL["widths"], output_stride=8)
        steps = [[(b.conv2.stride, b.conv2.dilation) for b in net.get_submodule(f"layer{i}")]
                 for i in (2, 3, 4)]  # fmt: skip
        assert steps == [[(2, 1)], [(1, 1), (1, 2)], [(1, 2), (1, 4)]]

    def test_layers_by_name(self):
        net = RedNet(**SMALL, norm_layer="groupnorm1", act_layer="silu")
        assert isinstance(net.layer1[0].act1, nn.SiLU)
        assert net.eval()(images()).shape == (2, 1000)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"depths": (1, 1, 1)},
            {"widths": (32, 64, 96)},
            {"widths": (32, 64, 96, 130)},
            {"stem_kernel_size": 4},
        ],
    )
    def test_wrong_ones(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong)).removeprefix("stem_")):
            RedNet(**{**SMALL, **wrong})

    def test_unknown_one(self):
        with pytest.raises(TypeError, match="kernels"):
            timm.create_model("rednet26", kernels=3)
