"""HorNet against the authors' code, their checkpoints, folding, and what is its own."""

from __future__ import annotations

import parity
import pytest
import timm
import torch
from networks import images, liven, skeleton, twin
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.testing import assert_close

import volution
from volution.models import load_official
from volution.models.hornet import Block, HorNet

DTYPES = [torch.float64, torch.float32]
PARAMETERS = {
    "hornet_base_7x7": 87_256_680,
    "hornet_base_gf": 88_421_352,
    "hornet_base_gf_img384": 92_099_560,
    "hornet_large_7x7": 194_542_504,
    "hornet_large_gf": 196_289_512,
    "hornet_large_gf_img384": 201_806_824,
    "hornet_small_7x7": 49_528_264,
    "hornet_small_gf": 50_401_768,
    "hornet_tiny_7x7": 22_409_512,
    "hornet_tiny_gf": 22_991_848,
}
WITH_22K_HEAD = {
    "hornet_large_7x7": 209_067_154,
    "hornet_large_gf": 210_814_162,
    "hornet_large_gf_img384": 216_331_474,
}
SMALL = {"depths": (1, 1, 2, 1), "widths": (16, 32, 64, 128)}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_number_of_parameters(name, parameters):
    assert count(skeleton(name)) == parameters


@pytest.mark.parametrize(("name", "parameters"), WITH_22K_HEAD.items())
def test_number_of_parameters_with_the_22k_head(name, parameters):
    net = timm.create_model(f"{name}.in22k", device="meta")
    assert net.num_classes == 10450
    assert count(net) == parameters


def test_all_of_them_are_registered():
    assert volution.models.list_models("hornet*") == list(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_configuration(name):
    cfg, large_images = skeleton(name).pretrained_cfg, name.endswith("img384")
    assert cfg["mean"] == (0.485, 0.456, 0.406)
    assert cfg["std"] == (0.229, 0.224, 0.225)
    assert cfg["interpolation"] == "bicubic"
    assert cfg["input_size"] == (3, 384, 384) if large_images else (3, 224, 224)
    assert cfg["crop_pct"] == (1.0 if large_images else 0.875)
    sizes = {
        tuple(p.shape[1:3])
        for key, p in skeleton(name).named_parameters()
        if key.endswith("complex_weight")
    }
    native = {(24, 13), (12, 7)} if large_images else {(14, 8), (7, 4)}
    assert sizes == (native if "_gf" in name else set())


def test_reported_accuracies():
    reported = {name: volution.models.reported_top1(name) for name in PARAMETERS}
    assert reported["hornet_tiny_gf"] == 83.0
    assert reported["hornet_large_gf"] is None
    assert sum(value is not None for value in reported.values()) == 6


@parity.needs_fixtures
@pytest.mark.parametrize("dtype", DTYPES)
class TestParity:
    @pytest.mark.parametrize("name", ["hornet_tiny_7x7", "hornet_tiny_gf"])
    def test_whole_network(self, name, dtype):
        fixture = parity.load(name)
        net = timm.create_model(name).eval()
        load_official(net, fixture.weights())
        net.to(dtype)
        with torch.inference_mode():
            last, taps = net.forward_intermediates(*fixture.inputs(dtype))
            got = {f"stage{i + 1}": tap for i, tap in enumerate(taps)}
            got["pooled"] = net.forward_head(last, pre_logits=True)
            got["logits"] = net.forward_head(last)
        assert got.keys() == fixture.meta["tensors"].keys()
        fixture.check(got, dtype)

    def test_block(self, dtype):
        parity.compare(parity.load("hornet_block_o3"), Block(32, 3), dtype)
        block = Block(32, 4, filter="global_local", filter_size=(8, 5))
        parity.compare(parity.load("hornet_block_o4_gf"), block, dtype)


def theirs(net: nn.Module) -> dict[str, Tensor]:
    """The state dict under the authors' names, of which half count stages from 0."""
    state = {}
    for key, value in net.state_dict().items():
        stage, _, rest = key.partition(".")
        if stage == "head":
            name = rest if rest.startswith("norm.") else rest.replace("fc.", "head.")
        else:
            index = int(stage.removeprefix("stage")) - 1
            name = f"stages.{index}.{rest}"
            if rest.startswith("downsample."):
                name = f"downsample_layers.{index}.{rest.removeprefix('downsample.')}"
        state[name] = value
    return state


def dense(net: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """What a detector or segmenter of the authors saves."""
    state = {k: v for k, v in theirs(net).items() if not k.startswith(("norm.", "head."))}
    for i, tap in enumerate(net.feature_info):
        for kind in ("weight", "bias"):
            state[f"norm{i}.{kind}"] = torch.randn(tap["num_chs"])
    others = {"neck.conv.weight": torch.ones(1), "decode_head.conv.bias": torch.ones(1)}
    return {prefix + k: v for k, v in state.items()} | (others if prefix else {})


def make(**kwargs: object) -> nn.Module:
    return timm.create_model("hornet_tiny_gf", **{"num_classes": 5, **SMALL, **kwargs}).eval()


@pytest.fixture(scope="module")
def source() -> nn.Module:
    return liven(make())


def run(net: nn.Module, size: int = 64) -> Tensor:
    with torch.no_grad():
        return net(images(size=size))


class TestCheckpoints:
    @parity.needs_fixtures
    @pytest.mark.parametrize("name", ["hornet_tiny_7x7", "hornet_tiny_gf"])
    def test_names_are_the_authors(self, name):
        assert theirs(skeleton(name)).keys() == parity.load(name).meta["manifest"].keys()

    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_classifier(self, source, prefix):
        net = make()
        load_official(net, {"model": {prefix + k: v for k, v in theirs(source).items()}})
        assert torch.equal(run(net), run(source))

    def test_classifier_into_a_network_without_one(self, source):
        net = make(num_classes=0)
        load_official(net, theirs(source))
        with torch.no_grad():
            want = source.forward_head(source.forward_features(images()), pre_logits=True)
        assert_close(run(net), want, atol=0, rtol=0)

    def test_larger_head(self, source):
        net = make(num_classes=21)
        with pytest.raises(ValueError, match=r"head\.fc\.weight is \(5, 128\), not \(21, 128\)"):
            load_official(net, theirs(source))
        state = theirs(source) | {"head.weight": torch.ones(21, 128), "head.bias": torch.ones(21)}
        load_official(net, state)
        assert run(net).shape == (2, 21)

    @pytest.mark.parametrize("prefix", ["", "backbone."])
    def test_dense_copy(self, source, prefix):
        net = make(num_classes=0)
        norm = net.head.norm.weight.detach().clone()
        load_official(net, {"state_dict": dense(source, prefix)})
        assert_close(net.forward_features(images()), source.forward_features(images()))
        assert torch.equal(net.head.norm.weight, norm)

    def test_dense_copy_into_a_classifier(self, source):
        with pytest.raises(ValueError, match=r"missing \(4\): head\.norm\.weight"):
            load_official(make(), dense(source))

    @pytest.mark.parametrize("prefix", ["", "backbone."])
    def test_feature_extractor(self, source, prefix):
        net = make(features_only=True, num_classes=None)
        load_official(net, dense(source, prefix))
        want = source.forward_intermediates(images(), intermediates_only=True)
        assert_close(net(images()), want, atol=0, rtol=0)

    @pytest.mark.parametrize("features_only", [False, True])
    def test_filters_of_another_size_keep_it(self, features_only):
        """Some dense checkpoints hold the filters of the networks for larger images."""
        sizes = ((96, 49), (48, 25), (24, 13), (12, 7))
        larger = liven(make(filter_sizes=sizes))
        options = {"features_only": True, "num_classes": None} if features_only else {}
        net = make(**({"num_classes": 0} | options))
        load_official(net, dense(larger, "backbone."))
        weights = [p for key, p in net.named_parameters() if key.endswith("complex_weight")]
        assert {tuple(p.shape[1:3]) for p in weights} == {(24, 13), (12, 7)}
        want = larger.forward_intermediates(images(), intermediates_only=True)
        got = net(images()) if features_only else net.forward_intermediates(images())[1]
        assert_close(got, want, atol=0, rtol=0)

    def test_refused_checkpoints_change_nothing(self, source):
        net = make(filter_sizes=((96, 49), (48, 25), (24, 13), (12, 7)))
        before = {key: value.clone() for key, value in net.state_dict().items()}
        state = theirs(source)
        del state["stages.0.0.gamma1"]
        with pytest.raises(ValueError, match=r"missing \(1\): stage1\.0\.gamma1"):
            load_official(net, state)
        assert_close(dict(net.state_dict()), before, atol=0, rtol=0)

    def test_as_part_of_a_larger_model(self, source):
        task = nn.ModuleDict({"backbone": make(), "neck": nn.Linear(2, 2)})
        state = {f"backbone.{k}": v for k, v in theirs(source).items()}
        state.update({f"neck.{k}": v for k, v in task["neck"].state_dict().items()})
        task.load_state_dict(state)
        assert torch.equal(run(task["backbone"]), run(source))

    def test_other_family(self):
        with pytest.raises(ValueError, match="does not fit hornet_tiny_gf, nothing was loaded"):
            load_official(make(), timm.create_model("convnext_atto", device="meta").state_dict())


class TestFuse:
    @pytest.mark.parametrize("name", ["hornet_tiny_7x7", "hornet_tiny_gf"])
    @pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
    def test_block_computes_the_same(self, name, dtype, bound):
        net = twin(name).to(dtype)
        x = images().to(dtype)
        with torch.no_grad():
            for stage in (net.stage1, net.stage2, net.stage3, net.stage4):
                x = stage.downsample(x)
                for block in list(stage)[1:]:
                    got, x = block.fuse()(x), block(x)
                    assert (got - x).abs().max() < bound * x.abs().max()

    @pytest.mark.parametrize("inplace", [False, True])
    def test_no_scales_are_left(self, inplace):
        net = twin("hornet_tiny_gf", depths=(1, 2, 3, 1))
        want = run(net)
        fused = reparameterize_model(net, inplace=inplace)
        assert (fused is net) == inplace
        blocks = [m for m in fused.modules() if isinstance(m, Block)]
        assert len(blocks) == 7
        assert all(b.gamma1 is None and b.gamma2 is None and b.gnconv.scale == 1 for b in blocks)
        assert_close(run(fused), want, atol=1e-4, rtol=1e-4)
        again = fused.fuse()
        assert_close(run(again), run(fused), atol=0, rtol=0)


class TestPrecision:
    @pytest.mark.parametrize("size", [64, 77])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_whole_network_in_half_precision(self, source, size, dtype):
        net = liven(make()).to(dtype)
        with torch.no_grad():
            got = net(images(size=size).to(dtype))
        want = run(source, size)
        assert got.dtype == dtype
        assert (got.float() - want).norm() < 0.05 * want.norm()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_learns_at_the_recipe_rate_without_nan(self, dtype):
        """The peak of the authors' schedule, on a batch it can learn by heart."""
        torch.manual_seed(0)
        net = HorNet(**SMALL, num_classes=4, filters=("depthwise",) * 2 + ("global_local",) * 2)
        optimizer = torch.optim.AdamW(net.train().parameters(), lr=4e-3, weight_decay=0.05)
        x, labels = images(16, size=32), torch.arange(16) % 4
        losses = []
        for _ in range(40):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = nn.functional.cross_entropy(net(x).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            assert norm.isfinite()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.3 * losses[0]


class TestArguments:
    def test_orders_filters_and_sizes(self):
        net = HorNet(
            **SMALL,
            orders=(1, 2, 2, 3),
            filters=("global_local", "depthwise", lambda width: nn.Identity(), "depthwise"),
            filter_sizes=((9, 5), (1, 1), (1, 1), (1, 1)),
            kernel_size=5,
        )
        assert [net.get_submodule(f"stage{i}")[1].gnconv.order for i in (1, 2, 3, 4)] == [
            1,
            2,
            2,
            3,
        ]
        assert net.stage1[1].gnconv.dwconv.complex_weight.shape[1:3] == (9, 5)
        assert net.stage2[1].gnconv.dwconv.kernel_size == (5, 5)
        assert isinstance(net.stage3[1].gnconv.dwconv, nn.Identity)
        assert net.eval()(images()).shape == (2, 1000)

    def test_without_layer_scale(self):
        net = liven(HorNet(**SMALL, layer_scale_init_value=0))
        assert not [key for key in net.state_dict() if "gamma" in key]
        with torch.no_grad():
            assert_close(net.fuse()(images()), net(images()), atol=1e-4, rtol=1e-4)

    def test_spared_by_weight_decay(self):
        net = make()
        spared = net.no_weight_decay()
        assert {key.rpartition(".")[2] for key in spared} == {"gamma1", "gamma2", "complex_weight"}
        assert len(spared) == 2 * 5 + 3

    def test_initialisation(self):
        net = HorNet(**SMALL, device="meta", filters=("global_local",) * 4)
        net = net.to_empty(device="cpu")
        net.init_weights()
        block = net.stage3[1]
        assert (block.gamma1 == 1e-6).all()
        assert (block.norm1.weight == 1).all()
        weights = (block.pwconv1.weight, block.gnconv.dwconv.complex_weight)
        for weight in weights:
            assert weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not block.gnconv.proj_in.bias.any()

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"depths": (1, 1, 1)}, "depths must have one number for each of four stages"),
            ({"orders": (2, 3, 4)}, "orders must have"),
            ({"widths": (16, 32, 64, 136)}, "dim must be a multiple of 16 for order 5, got 136"),
            ({"orders": (0, 1, 2, 3)}, "order must be an integer of at least 1, got 0"),
            ({"output_stride": 16}, "output_stride must be 32, got 16"),
            ({"filters": ("dense",) * 4}, "filter must be 'depthwise', 'global_local' or"),
        ],
    )
    def test_wrong_ones(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            HorNet(**{**SMALL, **wrong})

    def test_small_images(self):
        with pytest.raises(ValueError, match="at least 32 by 32 pixels, got 31 by 40"):
            make()(torch.randn(1, 3, 31, 40))
