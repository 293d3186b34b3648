"""VAN against the authors' code, and what is its own."""

from __future__ import annotations

from typing import Any

import parity
import pytest
import timm
import torch
from networks import images, liven
from torch import Tensor, nn
from torch.testing import assert_close

import volution
from volution.models import VAN, load_official
from volution.models._patch_embed import PatchEmbed
from volution.models._van_layers import Block, Mlp
from volution.ops import LKA

DTYPES = [torch.float64, torch.float32]
PARAMETERS = {
    "van_b0": 4_105_800,
    "van_b1": 13_861_800,
    "van_b2": 26_578_472,
    "van_b3": 44_765_608,
    "van_b4": 60_283_176,
    "van_b5": 89_967_688,
    "van_b6": 199_829_416,
}
SMALL: dict[str, Any] = {"depths": (2, 1, 1, 1), "widths": (8, 16, 24, 32)}


def small(**kwargs: Any) -> VAN:
    return liven(timm.create_model("van_b0", **{"num_classes": 5, **SMALL, **kwargs}))


def outputs(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net(images())


def official_name(name: str) -> str:
    """Our parameter name as the authors' state dict has it."""
    stage, _, rest = name.partition(".")
    if stage == "head":
        return name.replace("head.fc.", "head.")
    number, rest = stage.removeprefix("stage"), rest.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")
    if rest.startswith("downsample."):
        return f"patch_embed{number}.{rest.removeprefix('downsample.')}"
    if rest.startswith("norm."):
        return f"norm{number}.{rest.removeprefix('norm.')}"
    return f"block{number}.{rest}"


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_number_of_parameters(name, count):
    net = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in net.parameters()) == count


def test_all_of_them_are_registered():
    assert volution.models.list_models("van*") == list(PARAMETERS)


def test_configuration():
    cfg = timm.get_pretrained_cfg("van_b2")
    assert cfg.mean == cfg.std == (0.5, 0.5, 0.5)
    assert (cfg.crop_pct, cfg.interpolation, cfg.license) == (0.9, "bicubic", "apache-2.0")
    assert volution.models.reported_top1("van_b2") == 82.8
    assert volution.models.reported_top1("van_b6") is None


@parity.needs_fixtures
@pytest.mark.parametrize("dtype", DTYPES)
class TestParity:
    @pytest.mark.parametrize("fused", [False, True])
    def test_whole_network(self, fused, dtype):
        fixture = parity.load("van_b0")
        net = timm.create_model("van_b0").eval()
        load_official(net, fixture.weights())
        net.to(dtype)
        if fused:
            net = net.fuse()
        before: dict[str, Tensor] = {}
        for i in range(1, 5):
            last = [child for name, child in net.get_submodule(f"stage{i}").named_children()][-2]
            last.register_forward_hook(
                lambda *args, key=f"stage{i}_block": before.update({key: args[-1]})
            )
        with torch.inference_mode():
            last, taps = net.forward_intermediates(*fixture.inputs(dtype))
            got = {f"stage{i}": tap for i, tap in enumerate(taps, 1)} | before
            got["pooled"] = net.forward_head(last, pre_logits=True)
            got["logits"] = net.forward_head(last)
        assert got.keys() == fixture.meta["tensors"].keys()
        fixture.check(got, dtype)

    @pytest.mark.parametrize(
        ("name", "make"),
        [
            ("van_block", lambda: Block(24, mlp_ratio=4)),
            ("van_mlp", lambda: Mlp(24, 96)),
            ("van_patch_embed_first", lambda: PatchEmbed(3, 24, 7, 4)),
            ("van_patch_embed_next", lambda: PatchEmbed(24, 40, 3, 2)),
        ],
    )
    def test_layers(self, name, make, dtype):
        def rename(name: str) -> str:
            return name.replace("dwconv.", "dwconv.dwconv.")

        parity.compare(parity.load(name), make(), dtype, rename)


@parity.needs_fixtures
def test_keys_are_the_authors_in_their_order():
    manifest = parity.load("van_b0").meta["manifest"]
    own = timm.create_model("van_b0", device="meta").state_dict()
    assert [official_name(key) for key in own] == list(manifest)


@pytest.fixture(scope="module")
def source():
    return small()


@pytest.fixture
def theirs(source):
    """What the authors' classifier would save."""
    return {official_name(key): value for key, value in source.state_dict().items()}


class TestOfficialCheckpoints:
    @pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
    def test_classifier(self, source, theirs, prefix):
        net = timm.create_model("van_b0", num_classes=5, **SMALL).eval()
        wrapped = {
            key if prefix == "backbone." and key.startswith("head.") else prefix + key: value
            for key, value in theirs.items()
        }
        load_official(net, {"state_dict": wrapped, "epoch": 310})
        assert torch.equal(outputs(net), outputs(source))

    @pytest.mark.parametrize("prefix", ["", "backbone."])
    def test_dense_copy(self, source, theirs, prefix):
        net = timm.create_model("van_b0", num_classes=0, **SMALL).eval()
        dense = {prefix + key: v for key, v in theirs.items() if not key.startswith("head.")}
        load_official(net, dense)
        with torch.no_grad():
            want = source.forward_head(source.forward_features(images()), pre_logits=True)
        assert torch.equal(outputs(net), want)

    def test_feature_extractor(self, source, theirs):
        net = timm.create_model("van_b0", features_only=True, **SMALL).eval()
        load_official(net, theirs)
        want = source.forward_intermediates(images(), intermediates_only=True)
        assert_close(net(images()), want, atol=0, rtol=0)

    def test_plain_loading(self, source, theirs):
        net = timm.create_model("van_b0", num_classes=5, **SMALL).eval()
        names = list(theirs)
        net.load_state_dict(theirs)
        assert torch.equal(outputs(net), outputs(source))
        assert list(theirs) == names, "the caller's state dict was modified"

    def test_through_timm(self, source, theirs, tmp_path):
        torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")
        overlay = {"file": str(tmp_path / "theirs.pth"), "num_classes": 5}
        net = timm.create_model("van_b0", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)
        assert net.num_classes == 5
        assert torch.equal(outputs(net.eval()), outputs(source))
        net = timm.create_model(
            "van_b0",
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            features_only=True,
            in_chans=1,
            **SMALL,
        ).eval()
        x = images(channels=1)
        want = source.forward_intermediates(x.expand(-1, 3, -1, -1), intermediates_only=True)
        assert_close(net(x), want, atol=1e-3, rtol=1e-3)

    def test_other_architecture(self, theirs):
        net = timm.create_model("van_b0", num_classes=5, **{**SMALL, "depths": (2, 1, 2, 1)})
        with pytest.raises(ValueError, match=r"nothing was loaded:\n  missing \(26\): stage3\.1\."):
            load_official(net, theirs)
        rednet = timm.create_model("rednet26", device="meta").state_dict()
        with pytest.raises(ValueError, match=r"does not fit van_b0.*\n  missing.*\n  unexpected"):
            load_official(net, rednet)
        with pytest.raises(ValueError, match="does not fit rednet26"):
            load_official(timm.create_model("rednet26", num_classes=5), theirs)


class TestFuse:
    def test_float32(self):
        net = small()
        want = outputs(net)
        with torch.no_grad():
            got = net.fuse()(images())
        assert (got - want).abs().max() < 1e-5 * want.abs().max()

    @pytest.mark.parametrize("channels", [3, 24])
    def test_layer(self, channels):
        layer = (Block(24, 4) if channels == 24 else PatchEmbed(3, 24, 7, 4)).double()
        with torch.no_grad():
            for key, value in layer.state_dict().items():
                if value.is_floating_point():
                    noise = torch.randn_like(value)
                    value.copy_(0.5 + noise.abs() if key.endswith("running_var") else noise / 2)
            x = torch.randn(2, channels, 20, 17, dtype=torch.float64)
            fused, want = layer.eval().fuse(), layer(x)
            assert (fused(x) - want).abs().max() < 1e-12 * want.abs().max()
        assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]

    def test_needs_no_norm_but_those_of_the_stages(self):
        fused = small().fuse()
        norms = [key for key, m in fused.named_modules() if "norm" in type(m).__name__.lower()]
        assert norms == [f"stage{i}.norm" for i in range(1, 5)]
        assert not [key for key in fused.state_dict() if "layer_scale" in key]


class TestInitialisation:
    def test_as_the_authors(self):
        torch.manual_seed(0)
        net = VAN(depths=(1, 1, 1, 1))
        block = net.stage3[1]
        assert isinstance(block, Block)
        assert (block.layer_scale_1 == 0.01).all()
        assert (block.layer_scale_2 == 0.01).all()
        for conv in (block.mlp.fc1, block.mlp.dwconv, block.attn.spatial_gating_unit.conv0):
            side = conv.kernel_size[0]
            std = (2 / (side * side * conv.out_channels / conv.groups)) ** 0.5
            assert conv.weight.std().item() == pytest.approx(std, rel=0.05)
            assert not conv.bias.any()
        assert net.head.fc.weight.std().item() == pytest.approx(0.02, rel=0.05)

    def test_meta_network_can_be_filled(self):
        net = VAN(**SMALL, device="meta").to_empty(device="cpu")
        net.init_weights()
        assert net.stage1.downsample.proj.weight.abs().max() < 10


class TestArguments:
    def test_attention(self):
        net = VAN(**SMALL, kernel_size=35, dilation=5)
        units = [m for m in net.modules() if isinstance(m, LKA)]
        assert len(units) == 5
        assert {(u.kernel_size, u.dilation, u.reach) for u in units} == {(35, 5, 39)}
        assert net.eval()(images()).shape == (2, 1000)

    def test_settings_of_blocks(self):
        ratios = (2, 3, 4, 1.5)
        net = VAN(**SMALL, mlp_ratios=ratios, layer_scale_init_value=0.5, norm_eps=1e-5)
        blocks = [stage[1] for stage in (net.stage1, net.stage2, net.stage3, net.stage4)]
        assert [b.mlp.fc1.out_channels for b in blocks] == [16, 48, 96, 48]
        assert {b.layer_scale_2[0].item() for b in blocks} == {0.5}
        assert [stage.norm.eps for stage in (net.stage1, net.stage4)] == [1e-5, 1e-5]

    def test_weight_decay_spares_the_layer_scales(self):
        net = VAN(**SMALL)
        assert len(net.no_weight_decay()) == 10
        assert all(".layer_scale_" in key for key in net.no_weight_decay())

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"depths": (1, 1, 1)}, "depths must have one number for each of four stages"),
            ({"widths": (8, 16)}, r"widths must have one number .* got \(8, 16\)"),
            ({"mlp_ratios": (4,) * 5}, "mlp_ratios must have one number"),
            ({"output_stride": 16}, "output_stride must be 32, got 16"),
            ({"kernel_size": 24}, "take kernel_size=25 with dilation=3"),
            ({"dilation": 0}, "dilation must be an integer of at least 1, got 0"),
        ],
    )
    def test_wrong_ones(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            VAN(**{**SMALL, **wrong})

    def test_unknown_one(self):
        with pytest.raises(TypeError, match="kernels"):
            timm.create_model("van_b0", kernels=3)

    @pytest.mark.parametrize(("height", "width"), [(31, 64), (64, 31), (1, 1)])
    def test_small_images(self, height, width):
        message = f"images must be at least 32 by 32 pixels, got {height} by {width}"
        with pytest.raises(ValueError, match=message):
            VAN(**SMALL)(torch.randn(1, 3, height, width))


@pytest.mark.parametrize("with_residual", [True, False])
def test_mlp_in_parts_is_the_same(with_residual):
    """Five images of 4 MiB between the convolutions: four of them, then one."""
    mlp = Mlp(4, 64).eval()
    x = torch.randn(5, 4, 128, 128).contiguous(memory_format=torch.channels_last)
    residual = x if with_residual else None
    want = mlp(x, residual)
    with torch.no_grad():
        got = mlp(x, residual)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert_close(got, want)
