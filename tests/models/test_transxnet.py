"""TransXNet against the authors' code, and what is its own."""

from __future__ import annotations

import copy
from typing import Any

import parity
import pytest
import timm
import torch
from networks import images, liven
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import FrozenBatchNorm2d

import volution
from volution.models import TransXNet, load_official
from volution.models._patch_embed import PatchEmbed
from volution.models._transxnet_layers import Block, FusedBlock, LayerScale
from volution.models._transxnet_stage import StageTable
from volution.ops import DMixer, IDConv, PositionTable

DTYPES = [torch.float64, torch.float32]
PARAMETERS = {"transxnet_b": 48_009_002, "transxnet_s": 26_864_068, "transxnet_t": 12_834_808}
SMALL: dict[str, Any] = {
    "depths": (2, 1, 1, 1),
    "widths": (8, 16, 24, 32),
    "num_heads": (1, 2, 3, 4),
    "image_size": 64,
}


def make(**kwargs: Any) -> TransXNet:
    return timm.create_model("transxnet_t", **{"num_classes": 5, **SMALL, **kwargs}).eval()


def small(**kwargs: Any) -> TransXNet:
    return liven(make(**kwargs))


def outputs(net: nn.Module, x: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return net(images() if x is None else x)


def official_name(name: str) -> str:
    """Our parameter name as the authors' state dict has it."""
    name = name.replace("head.norm.", "classifier.0.").replace("head.fc.", "classifier.2.")
    if not name.startswith("stage"):
        return name
    stage, _, rest = name.partition(".")
    number = int(stage.removeprefix("stage")) - 1
    if rest == "position.weight":
        return f"relative_pos_enc.{number}"
    if rest.startswith("downsample."):
        rest = rest.replace("downsample.proj.", "proj.conv.").replace(
            "downsample.norm.", "proj.bn."
        )
        return f"network.{2 * number - 1}.{rest}" if number else f"patch_embed.{rest}"
    return f"network.{2 * number}.{rest}"


def official_value(name: str, value: Tensor) -> Tensor:
    return value[:, :, None, None] if name == "head.fc.weight" else value


def as_the_authors(net: nn.Module) -> dict[str, Tensor]:
    """What the authors' classifier would save."""
    return {official_name(k): official_value(k, v) for k, v in net.state_dict().items()}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_number_of_parameters(name, count):
    net = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in net.parameters()) == count


def test_all_of_them_are_registered():
    assert volution.models.list_models("transxnet*") == list(PARAMETERS)


def test_configuration():
    for name, crop in (("transxnet_t", 0.9), ("transxnet_s", 0.9), ("transxnet_b", 0.95)):
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.mean == (0.485, 0.456, 0.406)
        assert (cfg.crop_pct, cfg.interpolation) == (crop, "bicubic")
    assert timm.get_pretrained_cfg("transxnet_b.in1k_384").input_size == (3, 384, 384)
    assert volution.models.reported_top1("transxnet_s") == 83.8


class TestImageSize:
    def test_of_a_variant_for_384_pixels(self):
        """The authors count 48.0 M parameters at 384 too: their tables stay those of 224."""
        net = timm.create_model("transxnet_b.in1k_384", device="meta")
        assert sum(p.numel() for p in net.parameters()) == PARAMETERS["transxnet_b"]
        x = torch.empty(2, *net.pretrained_cfg["input_size"], device="meta")
        assert net.forward_features(x).shape[2:] == net.pretrained_cfg["pool_size"]

    def test_tables_of_their_own(self):
        net = timm.create_model("transxnet_b", image_size=384, device="meta")
        assert sum(p.numel() for p in net.parameters()) == pytest.approx(52.4e6, rel=1e-3)
        assert net.stage1.position.weight.shape == (1, 2, 96 * 96, 12 * 12)
        assert net.stage4.position.weight.shape == (1, 16, 12 * 12, 12 * 12)

    def test_oblong_and_odd(self):
        net = make(image_size=(65, 50))
        shapes = [getattr(net, f"stage{i}").position.weight.shape for i in range(1, 5)]
        assert [shape[2:] for shape in shapes] == [
            (17 * 13, 3 * 2),
            (9 * 7, 3 * 2),
            (5 * 4, 3 * 2),
            (3 * 2, 3 * 2),
        ]
        assert outputs(net).shape == (2, 5)

    def test_the_tables_matter_and_are_resized(self):
        net = small()
        for x in (images(), images()[:, :, :51, :37]):
            want = outputs(net, x)
            for i in range(1, 5):
                other = copy.deepcopy(net)
                with torch.no_grad():
                    getattr(other, f"stage{i}").position.weight.zero_()
                difference = (outputs(other, x) - want).abs().max()
                assert difference > 1e-3 * want.abs().max(), f"stage{i}"


@parity.needs_fixtures
@pytest.mark.parametrize("dtype", DTYPES)
class TestParity:
    @pytest.mark.parametrize("fused", [False, True])
    def test_whole_network(self, fused, dtype):
        fixture = parity.load("transxnet_t")
        net = timm.create_model("transxnet_t").eval()
        load_official(net, fixture.weights())
        net.to(dtype)
        if fused:
            net = net.fuse()
        with torch.inference_mode():
            last, taps = net.forward_intermediates(*fixture.inputs(dtype))
            got = {f"stage{i}": tap for i, tap in enumerate(taps, 1)}
            got["pooled"] = net.forward_head(last, pre_logits=True)
            got["logits"] = net.forward_head(last)
        assert got.keys() == fixture.meta["tensors"].keys()
        fixture.check(got, dtype)

    def test_block(self, dtype):
        """The table is the second input there, a module here."""
        fixture = parity.load("transxnet_block")
        table = StageTable(2, (12, 12), 2)
        block = Block(32, 4, num_groups=2, num_heads=2, sr_ratio=2)
        block.load_state_dict(fixture.weights())
        x, stored = fixture.inputs(dtype)
        block.to(dtype).eval()
        table.to(dtype).load_state_dict({"weight": stored})
        x.requires_grad_()
        y = block(x, table)
        y.backward(fixture.cotangent(y))
        got = {"output": y, "grad_input/0": x.grad, "grad_input/1": table.weight.grad}
        got |= {f"grad/{name}": p.grad for name, p in block.named_parameters()}
        assert got.keys() == fixture.meta["tensors"].keys()
        fixture.check(got, dtype)

    @pytest.mark.parametrize(
        ("name", "layer"),
        [
            ("transxnet_patch_embed_first", lambda: PatchEmbed(3, 24, 7, 4, bias=False)),
            ("transxnet_patch_embed_next", lambda: PatchEmbed(24, 40, 3, 2, bias=False)),
            ("transxnet_layerscale", lambda: LayerScale(24)),
        ],
    )
    def test_layers(self, name, layer, dtype):
        def rename(name: str) -> str:
            return name.replace("proj.", "proj.conv.").replace("norm.", "proj.bn.")

        parity.compare(parity.load(name), layer(), dtype, rename)


@parity.needs_fixtures
def test_keys_and_shapes_are_the_authors():
    manifest = parity.load("transxnet_t").meta["manifest"]
    net = timm.create_model("transxnet_t", device="meta")
    own = {key: list(value.shape) for key, value in as_the_authors(net).items()}
    assert own == manifest


@pytest.fixture(scope="module")
def source():
    return small()


@pytest.fixture
def theirs(source):
    return as_the_authors(source)


def without_classifier(theirs: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """What the authors' copies for detection and segmentation would save."""
    dense = {prefix + k: v for k, v in theirs.items() if not k.startswith("classifier.")}
    for i, width in zip((0, 2, 4, 6), SMALL["widths"], strict=True):
        dense |= {f"{prefix}norm{i}.weight": torch.ones(width)}
        dense |= {f"{prefix}norm{i}.bias": torch.zeros(width)}
    return dense


class TestOfficialCheckpoints:
    @pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
    def test_classifier(self, source, theirs, prefix):
        net = make()
        before = repr(theirs)
        load_official(net, {"state_dict": {prefix + k: v for k, v in theirs.items()}, "epoch": 310})
        assert torch.equal(outputs(net), outputs(source))
        assert repr(theirs) == before, "the caller's checkpoint was modified"

    @pytest.mark.parametrize("prefix", ["", "backbone."])
    def test_dense_copy(self, source, theirs, prefix):
        net = make(num_classes=0)
        others = {"neck.conv.weight": torch.ones(1)} if prefix else {}
        load_official(net, {**without_classifier(theirs, prefix), **others})
        want = source.forward_intermediates(images(), intermediates_only=True)
        got = net.forward_intermediates(images(), intermediates_only=True)
        assert_close(got, want, atol=0, rtol=0)

    def test_dense_copy_has_no_classifier(self, theirs):
        with pytest.raises(ValueError, match=r"(?s)missing \(4\): head\.norm.*num_classes=0"):
            self.refused(make(), without_classifier(theirs))

    def test_feature_extractor(self, source, theirs):
        net = make(features_only=True, num_classes=None)
        load_official(net, theirs)
        want = source.forward_intermediates(images(), intermediates_only=True)
        assert_close(net(images()), want, atol=0, rtol=0)

    def test_plain_loading(self, source, theirs):
        net, names = make(), list(theirs)
        net.load_state_dict(theirs)
        assert torch.equal(outputs(net), outputs(source))
        assert list(theirs) == names, "the caller's state dict was modified"

    def test_through_timm(self, source, theirs, tmp_path):
        torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")
        overlay = {"file": str(tmp_path / "theirs.pth"), "num_classes": 5}
        net = make(pretrained=True, pretrained_cfg_overlay=overlay)
        assert torch.equal(outputs(net), outputs(source))
        net = make(pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, in_chans=1)
        x = images(channels=1)
        want = source.forward_intermediates(x.expand(-1, 3, -1, -1), intermediates_only=True)
        assert_close(net(x), want, atol=1e-3, rtol=1e-3)

    def refused(self, net: nn.Module, checkpoint: Any) -> None:
        before = {key: value.clone() for key, value in net.state_dict().items()}
        try:
            load_official(net, checkpoint)
        finally:
            assert_close(dict(net.state_dict()), before, atol=0, rtol=0)

    def test_other_architecture(self, theirs):
        with pytest.raises(
            ValueError, match=r"nothing was loaded:\n  missing \(\d+\): stage3\.1\."
        ):
            self.refused(make(depths=(2, 1, 2, 1)), theirs)
        van = timm.create_model("van_b0", device="meta").state_dict()
        with pytest.raises(ValueError, match=r"does not fit transxnet_t.*\n  missing.*\n  unexp"):
            self.refused(make(), van)
        with pytest.raises(ValueError, match="does not fit van_b0"):
            load_official(timm.create_model("van_b0", num_classes=5, device="meta"), theirs)

    def test_other_number_of_heads(self, theirs):
        with pytest.raises(ValueError, match=r"stage4\.position\.weight is \(1, 4, .* not \(1, 8,"):
            self.refused(make(num_heads=(1, 2, 3, 8)), theirs)


class TestTablesOfAnotherSize:
    """Tables that a network was stored with are taken over, since they are its function."""

    @pytest.mark.parametrize("size", [32, 64, 96])
    def test_are_taken_over(self, theirs, source, size):
        net = make(image_size=size)
        table = net.stage1.position.weight
        load_official(net, theirs)
        assert torch.equal(outputs(net), outputs(source))
        assert net.stage1.position.weight is table, "optimisers hold the parameter"
        assert net.stage1.position.size == (16, 16)

    def test_with_plain_loading_and_through_timm(self, theirs, source, tmp_path):
        net = make(image_size=96)
        net.load_state_dict(theirs)
        assert torch.equal(outputs(net), outputs(source))
        torch.save(theirs, tmp_path / "theirs.pth")
        overlay = {"file": str(tmp_path / "theirs.pth"), "num_classes": 5}
        net = make(pretrained=True, pretrained_cfg_overlay=overlay, image_size=96)
        assert torch.equal(outputs(net), outputs(source))

    def test_what_was_resized_before_is_forgotten(self, theirs, source):
        net = make(image_size=96)
        outputs(net)
        load_official(net, theirs)
        assert torch.equal(outputs(net), outputs(source))

    def test_that_are_of_no_square(self, theirs):
        oblong = as_the_authors(small(image_size=(64, 32)))
        net = make()
        message = (
            r"stage1\.position\.weight is a table of another size: expected .* "
            r"\(1, 1, 256, 4\), .* got \(1, 1, 128, 2\); create the network with the image_size"
        )
        for load in (load_official, lambda net, state: net.load_state_dict(state)):
            with pytest.raises(ValueError, match=message):
                load(net, oblong)
        load_official(make(image_size=(64, 32)), oblong)

    def test_whose_keys_are_not_reduced_so(self):
        table = StageTable(2, (8, 8), 4)
        with pytest.raises(ValueError, match="keys reduced by 4, got"):
            table.load_state_dict({"weight": torch.zeros(1, 2, 64, 16)})
        table.load_state_dict({"weight": torch.ones(1, 2, 49, 4)})
        assert table.size == (7, 7)


class TestStages:
    def test_blocks_share_a_table_that_the_stage_owns(self, source):
        tables = [name for name, m in source.named_modules() if isinstance(m, PositionTable)]
        assert tables == [f"stage{i}.position" for i in range(1, 5)]
        other = copy.deepcopy(source)
        with torch.no_grad():
            other.stage1.position.weight.zero_()
        assert not torch.allclose(outputs(other), outputs(source))

    def test_checkpointing_reaches_the_table(self):
        grads = []
        for frugal in (False, True):
            net = small().train()
            net.set_grad_checkpointing(frugal)
            net(images()).square().sum().backward()
            grads.append(net.stage1.position.weight.grad)
        assert grads[0].any()
        assert_close(grads[1], grads[0], atol=0, rtol=0)

    def test_a_table_is_as_early_as_the_first_block(self):
        net = make()
        groups = timm.models.group_parameters(net, net.group_matcher(), reverse=True)
        assert groups["stage3.position.weight"] == groups["stage3.0.norm1.weight"]


class LargestTensor(TorchDispatchMode):
    """Notes how large the largest tensor is that an operator returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


class TestDetectionSizes:
    """At 800 by 1344 pixels the table of the first stage would be resized to 280 M numbers."""

    SIZE = (800, 1344)

    def net(self) -> TransXNet:
        sizes = {"widths": (8, 16, 24, 32), "image_size": 224, "num_classes": 0}
        return liven(make(**{**sizes, "depths": (1, 1, 1, 1), "global_pool": ""}))

    @pytest.mark.parametrize("recording", [False, True])
    def test_no_tensor_grows_with_queries_times_keys(self, recording):
        net, x = self.net(), torch.randn(1, 3, *self.SIZE)
        queries, keys = 200 * 336, 25 * 42
        with torch.set_grad_enabled(recording), LargestTensor() as seen:
            y = net(x)
            if recording:
                y.square().sum().backward()
        assert y.shape == (1, 32, 25, 42)
        # Those of the wide map of the first feed-forward network are the largest there should be.
        widest = 4 * (4 * 8) * queries
        assert seen.largest <= 4 * widest < 4 * queries * keys / 2

    def test_equals_the_table_resized_whole(self):
        """In parts, with the key side resized first, against one resize of the whole table."""
        net, x = self.net().double(), torch.randn(1, 3, 96, 250, dtype=torch.float64)
        with torch.no_grad():
            want = copy.deepcopy(net)
            for stage, reduction in zip(range(1, 5), (4, 8, 16, 32), strict=True):
                table = getattr(want, f"stage{stage}").position
                sides = [-(-side // reduction) for side in x.shape[2:]]
                reduced = [-(-side // table.sr_ratio) for side in sides]
                size = (sides[0] * sides[1], reduced[0] * reduced[1])
                resized = nn.functional.interpolate(
                    table.weight, size, mode="bicubic", align_corners=False
                )
                table.weight.data = resized
            difference = (net(x) - want(x)).abs().max()
            assert difference < 1e-10 * net(x).abs().max()


class TestFuse:
    def test_float32(self):
        net = small()
        want = outputs(net)
        got = outputs(net.fuse())
        assert (got - want).abs().max() < 1e-5 * want.abs().max()

    @pytest.mark.parametrize("kind", ["block", "embedding"])
    def test_layer(self, kind):
        block = kind == "block"
        layer = Block(24, 4, num_heads=2, sr_ratio=2) if block else PatchEmbed(3, 24, 7, 4, False)
        layer.double()
        table = [StageTable(2, (10, 9), 2).double()] if block else []
        with torch.no_grad():
            for value in (p for m in (layer, *table) for p in m.state_dict().values()):
                if value.is_floating_point():
                    value.copy_(torch.randn_like(value) / 2)
            for norm in layer.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.running_var.copy_(0.5 + torch.rand_like(norm.running_var))
            x = torch.randn(2, 24 if block else 3, 20, 17, dtype=torch.float64)
            kept = x.clone()
            fused, want = layer.eval().fuse(), layer(x, *table)
            got = fused(x, *table)
            assert (got - want).abs().max() < 1e-10 * want.abs().max()
            assert torch.equal(x, kept), "the input was overwritten"
        assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d | LayerScale)]

    def test_leaves_one_scale_for_each_block(self):
        """LS2 folds away; LS1 keeps a scale for what the enhancer's shortcut adds."""
        fused = small().fuse()
        blocks = [m for m in fused.modules() if isinstance(m, FusedBlock)]
        assert len(blocks) == sum(SMALL["depths"])
        assert not [key for key in fused.state_dict() if "layer_scale" in key]
        for block in blocks:
            assert [name for name, _ in block.named_parameters(recurse=False)] == ["shortcut"]

    def test_norms_that_do_not_fold_stay(self):
        net = small().double()
        for module in list(net.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    frozen = FrozenBatchNorm2d(child.num_features, child.eps).double()
                    frozen.load_state_dict(child.state_dict(), strict=False)
                    setattr(module, name, frozen)
        x = images().double()
        want = outputs(net, x)
        assert (outputs(net.fuse(), x) - want).abs().max() < 1e-10 * want.abs().max()

    def test_of_frozen_parameters_stay_frozen(self):
        net = small().requires_grad_(False)
        assert not any(p.requires_grad for p in net.fuse().parameters())


class TestInitialisation:
    def test_as_the_authors(self):
        torch.manual_seed(0)
        net = TransXNet(depths=(1, 1, 1, 1))
        block = net.get_submodule("stage3.0")
        assert isinstance(block.token_mixer, DMixer)
        for scale in (block.layer_scale_1, block.layer_scale_2):
            assert (scale.weight == 1e-5).all()
            assert not scale.bias.any()
        assert not net.stage3.position.weight.any()
        local = block.token_mixer.local_unit
        for drawn in (block.pos_embed.weight, block.mlp.fc1[0].weight, local.weight, local.bias):
            assert drawn.std().item() == pytest.approx(0.02, rel=0.1)
        assert not block.pos_embed.bias.any()
        assert net.head.fc.weight.std().item() == pytest.approx(0.02, rel=0.05)

    def test_meta_network_can_be_filled(self):
        torch.manual_seed(0)
        want = TransXNet(**SMALL)
        net = TransXNet(**SMALL, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            for tensor in net.state_dict().values():
                tensor.fill_(7)
        net.init_weights()
        for key, like in want.state_dict().items():
            value = net.state_dict()[key]
            if not value.is_floating_point():
                continue
            if (like == like.flatten()[0]).all():
                assert torch.equal(value, like), key
            else:
                assert 0 < value.abs().max() < 0.2, key


class TestArguments:
    def test_settings_of_blocks(self):
        net = make(
            num_groups=(2, 3, 4, 2),
            mlp_ratios=(2, 3, 4, 1.5),
            sr_ratios=(8, 8, 2, 2),
            kernel_size=5,
            layer_scale_init_value=0.5,
        )
        blocks = [net.get_submodule(f"stage{i}.0") for i in range(1, 5)]
        assert [b.token_mixer.local_unit.num_groups for b in blocks] == [2, 3, 4, 2]
        assert {m.kernel_size for m in net.modules() if isinstance(m, IDConv)} == {5}
        assert [b.mlp.fc1[0].out_channels for b in blocks] == [16, 48, 96, 48]
        assert [b.token_mixer.global_unit.sr_ratio for b in blocks] == [8, 8, 2, 2]
        assert {b.layer_scale_2.weight[0].item() for b in blocks} == {0.5}
        assert outputs(net).shape == (2, 5)

    def test_weight_decay_spares_what_the_authors_spared(self):
        """Biases and norms: by their number of dimensions, and by name where they have two."""
        net = make()
        assert net.no_weight_decay() == set()

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"depths": (1, 1, 1)}, "depths must have one number for each of four stages"),
            ({"widths": (8, 16)}, r"widths must have one number .* got \(8, 16\)"),
            ({"num_heads": (1,) * 5}, "num_heads must have one number"),
            ({"widths": (9, 16, 24, 32)}, "dim must be even, half local and half global, got 9"),
            ({"num_heads": (3, 2, 3, 4)}, "num_heads"),
            ({"num_groups": (1, 2, 2, 2)}, "num_groups must be at least 2, got 1"),
            ({"sr_ratios": (3, 4, 2, 1)}, "sr_ratio must be 1 or even"),
            ({"output_stride": 16}, "output_stride must be 32, got 16"),
            ({"image_size": 0}, "image_size must be a side of at least 1, .* got 0"),
            ({"image_size": (64, 64, 3)}, r"a height and a width, got \(64, 64, 3\)"),
            ({"kernel_size": 4}, "kernel_size must be"),
        ],
    )
    def test_wrong_ones(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            TransXNet(**{**SMALL, **wrong})

    def test_unknown_one(self):
        with pytest.raises(TypeError, match="kernels"):
            make(kernels=3)

    def test_one_image_in_training(self):
        with pytest.raises(ValueError, match="at least 2 images in training, got 1"):
            make().train()(images(1))
