"""X-volution ResNets: what is theirs beside the contract of all networks.

The authors published no code, so the networks are held against the plain ResNets of timm and
torchvision, whose weights they take over.
"""

from __future__ import annotations

from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from networks import images, liven, twin
from torch import Tensor, nn
from torch.testing import assert_close

import volution
from volution.models import load_official
from volution.models.resnet_xvolution import XvolutionResNet
from volution.ops import FoldedXvolution2d, Xvolution2d

PARAMETERS = {
    "xvolution_resnet34": 24_070_952,
    "xvolution_resnet50": 26_742_824,
    "xvolution_resnet101": 49_094_696,
}
# timm's stems have 64 channels whatever the stages have.
WIDTHS = {"basic": (64, 48, 96, 128), "bottleneck": (256, 96, 128, 160)}
BLOCKS = list(WIDTHS)
SMALL: dict[str, Any] = {"depths": (1, 2, 2, 1), "heads": 2, "num_classes": 5}
EVERYWHERE = (1, 2, 3, 4)


def make(block: str = "basic", **kwargs: Any) -> nn.Module:
    name = {"basic": "xvolution_resnet34", "bottleneck": "xvolution_resnet50"}[block]
    return timm.create_model(name, **{"widths": WIDTHS[block], **SMALL, **kwargs}).eval()


def plain(block: str = "basic", **kwargs: Any) -> nn.Module:
    """A plain ResNet of timm with nothing switched off, in the sizes of ``make``."""
    name, share = {"basic": ("resnet34", 1), "bottleneck": ("resnet50", 4)}[block]
    channels = tuple(width // share for width in WIDTHS[block])
    sizes = {"layers": SMALL["depths"], "channels": channels, "num_classes": 5}
    return liven(timm.create_model(name, **{**sizes, **kwargs}))


def layers_of(net: nn.Module) -> dict[str, Xvolution2d]:
    return {name: m for name, m in net.named_modules() if isinstance(m, Xvolution2d)}


def run(net: nn.Module, x: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return net(images() if x is None else x)


def equal(got: Tensor, want: Tensor, tolerance: float = 1e-6) -> None:
    assert (got - want).abs().max() < tolerance * want.abs().max()


class TestNames:
    def test_all_of_them_are_registered(self):
        assert volution.models.list_models("xvolution*") == list(PARAMETERS)

    def test_families(self):
        families = {"rednet": 5, "hornet": 10, "van": 7, "transxnet": 3, "xvolution_resnet": 3}
        counts = {name: len(volution.models.list_models(f"{name}_*")) or
                  len(volution.models.list_models(f"{name}*")) for name in families}  # fmt: skip
        assert counts == families
        assert len(volution.models.list_models()) == 28

    @pytest.mark.parametrize("name", PARAMETERS)
    def test_no_accuracy_is_claimed(self, name):
        assert volution.models.reported_top1(name) is None
        assert "No weights" in timm.get_pretrained_cfg(name).description


class TestParameters:
    @pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
    def test_number(self, name, count):
        net = timm.create_model(name, device="meta")
        assert sum(p.numel() for p in net.parameters()) == count

    @pytest.mark.parametrize("name", PARAMETERS)
    def test_what_an_xvolution_adds_to_its_convolution(self, name):
        """Queries and keys with biases, values without, a norm of two numbers per channel."""
        net = timm.create_model(name, device="meta")
        theirs = timm.create_model(name.removeprefix("xvolution_"), device="meta")
        added = sum(
            layer.out_channels * (3 * layer.in_channels + 4) for layer in layers_of(net).values()
        )
        assert len(layers_of(net)) == {"34": 12, "50": 6, "01": 23}[name[-2:]]
        own, plain = (sum(p.numel() for p in n.parameters()) for n in (net, theirs))
        assert own == plain + added

    def test_names_are_those_of_resnets(self):
        """But for the stem, the classifier and the X-volutions."""
        own = set(make("bottleneck").state_dict())
        theirs = set(plain("bottleneck").state_dict())
        assert {key for key in theirs if key not in own and not key.startswith("layer3.")} == {
            key for key in theirs if key.startswith(("conv1.", "bn1.", "fc."))
        }
        assert {key for key in own - theirs if not key.startswith(("stem.", "head."))} == {
            key for key in own if key.startswith(("layer3.0.conv2.", "layer3.1.conv2."))
        }


@pytest.mark.parametrize("block", BLOCKS)
class TestPlainWeights:
    @pytest.mark.parametrize("stages", [(3,), EVERYWHERE, ()])
    @pytest.mark.parametrize("attention", ["pssa", "involution", "sa"])
    def test_same_logits(self, block, stages, attention):
        theirs = plain(block)
        ours = liven(make(block, stages=stages, attention=attention), seed=1)
        assert not torch.allclose(run(ours), run(theirs))
        load_official(ours, theirs.state_dict())
        for x in (images(), images(seed=3)[:, :, :51, :37]):
            equal(run(ours, x), run(theirs, x))

    @pytest.mark.parametrize("output_stride", [8, 16])
    def test_dilated(self, block, output_stride):
        theirs = plain(block, output_stride=output_stride)
        ours = make(block, stages=EVERYWHERE, output_stride=output_stride)
        load_official(ours, theirs.state_dict())
        equal(run(ours), run(theirs))
        steps = {(m.stride, m.dilation) for m in layers_of(ours.layer4).values()}
        assert steps <= {((1, 1), (d, d)) for d in (1, 2, 4)}

    def test_training_starts_from_there_and_switches_the_attention_on(self, block):
        ours = make(block)
        load_official(ours, plain(block).state_dict())
        before = {name: m.attention.query.weight.clone() for name, m in layers_of(ours).items()}
        optimizer = torch.optim.SGD(ours.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            ours.train()(images(4)).square().mean().backward()
            optimizer.step()
        for name, layer in layers_of(ours).items():
            assert layer.attention_norm.weight.any(), name
            assert not torch.equal(layer.attention.query.weight, before[name]), name

    def test_the_attention_keeps_its_first_weights(self, block):
        ours = liven(make(block), seed=4)
        names = [f"{n}.attention.{k}.weight" for n in layers_of(ours) for k in ("query", "value")]
        before = {name: ours.state_dict()[name].clone() for name in names}
        theirs = plain(block).state_dict()
        load_official(ours, theirs)
        assert_close({name: ours.state_dict()[name] for name in names}, before, atol=0, rtol=0)
        layer = ours.layer3[0].conv2
        assert not layer.attention_norm.weight.any()
        assert not layer.attention_norm.bias.any()
        assert torch.equal(layer.conv_norm.running_var, theirs["layer3.0.bn2.running_var"])

    def test_folded(self, block):
        theirs = plain(block).double()
        ours = make(block, stages=EVERYWHERE).double()
        load_official(ours, theirs.state_dict())
        equal(run(ours.fuse(), images().double()), run(theirs, images().double()), 1e-10)

    def test_the_checkpoint_is_not_modified(self, block):
        theirs = plain(block).state_dict()
        keys, values = list(theirs), {key: value.clone() for key, value in theirs.items()}
        load_official(make(block), {"state_dict": theirs})
        make(block).load_state_dict(theirs)
        assert list(theirs) == keys
        assert_close(dict(theirs), values, atol=0, rtol=0)

    def test_own_checkpoints_are_not_taken_for_plain_ones(self, block):
        ours, other = liven(make(block)), make(block)
        load_official(other, ours.state_dict())
        assert_close(run(other), run(ours), atol=0, rtol=0)
        assert other.layer3[0].conv2.attention_norm.weight.all()


class TestPlainWeightsAtFullSize:
    @pytest.mark.parametrize("name", ["resnet34", "resnet50"])
    def test_of_timm(self, name):
        self.same(timm.create_model(name), name)

    def test_of_torchvision(self):
        self.same(torchvision.models.resnet50(), "resnet50")

    @pytest.mark.slow
    def test_of_the_deepest(self):
        self.same(timm.create_model("resnet101"), "resnet101")

    def same(self, theirs: nn.Module, name: str) -> None:
        theirs = liven(theirs)
        ours = timm.create_model(f"xvolution_{name}").eval()
        ours.load_state_dict(theirs.state_dict(), strict=True)
        equal(run(ours, images(1)), run(theirs, images(1)))


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    return plain()


class TestPlainFiles:
    """Through the ways in which networks are given weights."""

    @pytest.mark.parametrize("prefix", ["module.", "backbone.", "_orig_mod.module."])
    def test_wrapped(self, theirs, prefix):
        ours = make(num_classes=0)
        state = {f"{prefix}{key}": value for key, value in theirs.state_dict().items()}
        load_official(ours, {"epoch": 1, "state_dict": state})
        theirs_pooled = theirs.forward_head(theirs.forward_features(images()), pre_logits=True)
        equal(run(ours), theirs_pooled.detach())

    def test_old_pytorch(self, theirs):
        ours = make()
        state = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}
        load_official(ours, state)
        equal(run(ours), run(theirs))

    def test_as_part_of_a_larger_model(self, theirs):
        task = nn.ModuleDict({"trunk": make(), "neck": nn.Linear(2, 2)})
        state = {f"trunk.{key}": value for key, value in theirs.state_dict().items()}
        state.update({f"neck.{k}": v for k, v in task["neck"].state_dict().items()})
        task.load_state_dict(state)
        equal(run(task["trunk"]), run(theirs))

    def test_features(self, theirs):
        net = make(features_only=True, num_classes=None)
        load_official(net, theirs.state_dict())
        want = theirs.forward_intermediates(images(), intermediates_only=True)
        for got, tap in zip(net(images()), want, strict=True):
            equal(got.detach(), tap.detach())

    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_checkpoint_path(self, theirs, tmp_path, suffix):
        path = tmp_path / f"resnet.{suffix}"
        if suffix == "pth":
            torch.save(theirs.state_dict(), path)
        else:
            safetensors.torch.save_file(theirs.state_dict(), path)
        equal(run(make(checkpoint_path=str(path))), run(theirs))

    @pytest.mark.parametrize("classes", [0, 3, 5])
    def test_pretrained(self, theirs, tmp_path, classes):
        torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
        overlay = {"file": str(tmp_path / "resnet.pth"), "num_classes": 5}
        net = make(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes)
        with torch.no_grad():
            equal(net.forward_features(images()), theirs.forward_features(images()))
        assert net(images()).shape == (2, classes or net.num_features)

    def test_pretrained_in_grey(self, theirs, tmp_path):
        torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
        overlay = {"file": str(tmp_path / "resnet.pth"), "num_classes": 5}
        net = make(pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1)
        x = images(channels=1)
        equal(run(net, x), run(theirs, x.expand(-1, 3, -1, -1)), 1e-4)


class TestRefusal:
    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ({"layers": (1, 2, 3, 1)}, r"unexpected \(12\): layer3.2.conv1.weight"),
            ({"layers": (1, 2, 1, 1)}, r"missing \(\d+\): layer3.1.conv1.conv.weight"),
            ({"channels": (64, 48, 80, 128)}, r"layer3.0.conv1.conv.weight is \(80, 48, 3, 3\)"),
            ({"num_classes": 3}, r"head.fc.weight is \(3, 128\), not \(5, 128\)"),
            ({"stem_type": "deep"}, r"unexpected \(\d+\): conv1.0.weight"),
        ],
    )
    def test_of_another_resnet(self, other, message):
        net = make()
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with pytest.raises(ValueError, match="does not fit xvolution_resnet34") as caught:
            load_official(net, plain(**other).state_dict())
        caught.match(message)
        assert_close(dict(net.state_dict()), before, atol=0, rtol=0)

    def test_of_other_blocks(self):
        with pytest.raises(ValueError, match=r"unexpected \(\d+\): layer1.0.conv3.weight"):
            load_official(make(), plain("bottleneck").state_dict())

    def test_of_another_family(self):
        rednet = timm.create_model("rednet26", device="meta").state_dict()
        with pytest.raises(ValueError, match="nothing was loaded"):
            load_official(make("bottleneck"), rednet)

    def test_where_there_is_no_convolution_to_take_the_weights(self):
        with pytest.raises(ValueError, match=r"unexpected .*layer3\.0\.conv1\.conv\.weight"):
            load_official(make(branches="attention"), plain().state_dict())


class TestAttention:
    @pytest.mark.parametrize("block", BLOCKS)
    @pytest.mark.parametrize(
        "settings",
        [
            {"attention": "involution", "heads": 4},
            {"normalize": "softmax"},
            {"kernel_size": 5},
            {"heads": 1, "stages": (1, 4)},
            {"branches": "conv"},
            {"branches": "attention"},
        ],
        ids=lambda settings: "-".join(map(str, settings.values())),
    )
    def test_kinds_fold(self, block, settings):
        net = liven(make(block, **settings)).double()
        fused = net.fuse()
        for x in (images(), images(seed=3)[:, :, :51, :37]):
            equal(run(fused, x.double()), run(net, x.double()), 1e-10)
        assert not layers_of(fused)
        folded = nn.Conv2d if settings.get("branches") == "conv" else FoldedXvolution2d
        stage = net.get_submodule(f"layer{settings.get('stages', (3,))[0]}")
        place = "conv2" if block == "bottleneck" else "conv1"
        assert isinstance(getattr(stage[0], place), Xvolution2d)
        place = next(name for name in layers_of(net))
        assert isinstance(fused.get_submodule(place), folded)

    def test_convolution_alone_is_the_plain_network(self):
        theirs = plain()
        ours = make(branches="conv", stages=EVERYWHERE)
        load_official(ours, theirs.state_dict())
        equal(run(ours), run(theirs))
        count = sum(p.numel() for p in theirs.parameters())
        assert sum(p.numel() for p in ours.parameters()) == count

    def test_global_attention_says_what_folds(self):
        net = liven(make(attention="sa", stages=(3, 4))).double()
        x = images().double()
        want = run(net, x)
        message = r'cannot fold layer3.0.conv1 and 5 more: .* not "sa".* fuse_convolution\(\)'
        with pytest.raises(ValueError, match=message):
            net.fuse()
        for name in ("layer1", "layer2"):
            setattr(net, name, timm.utils.reparameterize_model(net.get_submodule(name)))
        for name, layer in layers_of(net).items():
            net.set_submodule(name, layer.fuse_convolution())
        equal(run(net, x), want, 1e-10)

    def test_global_attention_sees_the_whole_image(self):
        far = []
        for attention in ("pssa", "sa"):
            net = liven(make(attention=attention, output_stride=8, stages=(4,))).double()
            x = images(1, size=256).double().requires_grad_()
            net.forward_features(x)[0, :, 0, 0].sum().backward()
            far.append(x.grad[0, :, -8:, -8:].abs().max() > 0)
        assert far == [False, True]

    def test_module_factory(self):
        def pooling(inputs: int, outputs: int, stride: int) -> nn.Module:
            pool = nn.AvgPool2d(3, stride, padding=1)
            return nn.Sequential(pool, nn.Conv2d(inputs, outputs, 1))

        net = liven(make(attention=pooling))
        assert isinstance(net.layer3[0].conv1.attention[0], nn.AvgPool2d)
        net(images()).square().sum().backward()
        assert net.layer3[0].conv1.attention[1].weight.grad.any()
        with pytest.raises(ValueError, match=r"cannot fold layer3\.0\.conv1"):
            net.fuse()

    def test_kernel_size_is_the_attentions(self):
        net = make("bottleneck", kernel_size=7)
        layer = net.layer3[0].conv2
        assert layer.conv.weight.shape[2:] == (3, 3)
        assert len(layer.attention.offsets) == 2 * 49


class TestInitialisation:
    @pytest.mark.parametrize("block", BLOCKS)
    def test_blocks_start_as_their_shortcuts(self, block):
        net = make(block, stages=(1,))
        x = torch.randn(2, net.stem.conv1.out_channels, 9, 9)
        with torch.no_grad():
            first = net.layer1[0]
            assert_close(first(x), first.downsample(x).relu(), atol=0, rtol=0)
        net = make(block, stages=(1,), zero_init_last=False)
        assert not torch.equal(run(net.layer1[0], x), run(net.layer1[0].downsample, x).relu())

    def test_convolutions_follow_he(self):
        net = timm.create_model("xvolution_resnet34", depths=(1, 1, 1, 1))
        for conv in (net.layer3[0].conv1.conv, net.layer4[0].conv1):
            assert conv.weight.std().item() == pytest.approx(
                (2 / (9 * conv.out_channels)) ** 0.5, rel=0.05
            )

    def test_meta_network_can_be_filled(self):
        net = XvolutionResNet("basic", widths=WIDTHS["basic"], **SMALL, device="meta").to_empty(
            device="cpu"
        )
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(torch.nan)
        net.init_weights()
        weights = [p for key, p in net.named_parameters() if "norm" not in key and p.dim() > 1]
        assert all(w.isfinite().all() for w in weights if w is not net.head.fc.weight)
        assert net.layer3[0].conv1.attention.query.bias.isfinite().all()


class TestArguments:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"stages": (0,)}, r"stages must be some of 1, 2, 3 and 4, each once, got \(0,\)"),
            ({"stages": (3, 3)}, r"each once, got \(3, 3\)"),
            ({"stages": 3}, "stages must be a sequence of stages, got 3"),
            ({"block": "wide"}, "block must be one of 'basic', 'bottleneck', got 'wide'"),
            ({"depths": (1, 1, 1)}, "depths must have one number for each of four stages"),
            ({"widths": (32, 64, 96)}, "widths must have one number for each of four stages"),
            ({"block": "bottleneck", "widths": (32, 64, 98, 128)}, "widths must be multiples of 4"),
            ({"heads": 5}, "heads must divide out_channels, got heads=5 and out_channels=96"),
            ({"kernel_size": 4}, "attention_kernel_size must be a positive odd integer, got 4"),
            ({"attention": "lka"}, "attention must be one of 'pssa', 'involution', 'sa'"),
            ({"branches": "none"}, "branches must be one of"),
            ({"normalize": "l2"}, "normalize must be one of"),
            ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
        ],
    )
    def test_wrong_ones(self, wrong, message):
        with pytest.raises((ValueError, TypeError), match=message):
            XvolutionResNet(**{"block": "basic", "widths": WIDTHS["basic"], **SMALL, **wrong})

    def test_stages(self):
        for stages in (EVERYWHERE, (4, 2), ()):
            net = make("bottleneck", stages=stages)
            found = {name.partition(".")[0] for name in layers_of(net)}
            assert found == {f"layer{stage}" for stage in stages}

    def test_twin_is_lively(self):
        """The attention of the contract's networks makes a difference."""
        net = twin("xvolution_resnet34")
        want = run(net)
        for layer in layers_of(net).values():
            layer.start_as_convolution()
        assert (run(net) - want).norm() > 0.1 * want.norm()
