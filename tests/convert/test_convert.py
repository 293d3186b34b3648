"""Operators in the place of other networks' convolutions: what is replaced, kept, refused."""

from __future__ import annotations

import copy
import json
import sys
from functools import cache

import pytest
import timm
import torch
import torchvision
from replacements import LAYERS, REPLACEMENTS
from timm.layers import Conv2dSame, ScaledStdConv2d
from torch import nn

import volution
from volution.analysis import network_cost
from volution.convert import convert, dmixer, gnconv, involution, lka, xvolution
from volution.ops import LKA, DepthwiseConv2d, Involution2d, Xvolution2d

NETWORKS = {
    "torchvision resnet50": (torchvision.models.resnet50, "layer4.*.conv2", 3),
    "convnext_tiny": (lambda: timm.create_model("convnext_tiny"), "stages.1.*.conv_dw", 3),
    "resnet50d": (lambda: timm.create_model("resnet50d"), "layer3.[01].conv2", 2),
}


@cache
def built(network):
    """Networks of full size, made once; not to be modified."""
    return NETWORKS[network][0]()


def quietly(*args, **kwargs):
    return convert(*args, quiet=True, **kwargs)


def liven(model):
    """Random parameters and statistics: at their start norms and layer scales hide mistakes."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def stack(*layers):
    return nn.Sequential(*layers)


def small():
    return stack(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.Conv2d(32, 32, 3, padding=1, groups=4),
        nn.Conv2d(32, 8, 1),
    )


def found(*args, **kwargs):
    return quietly(*args, dry_run=True, image_size=32, **kwargs)


class TestNetworks:
    @pytest.mark.parametrize("operator", REPLACEMENTS)
    @pytest.mark.parametrize("network", NETWORKS)
    def test_runs_trains_saves_and_loads(self, network, operator, tmp_path):
        _, pattern, count = NETWORKS[network]
        net = quietly(built(network), {pattern: REPLACEMENTS[operator]})
        new = {
            name: module for name, module in net.named_modules() if type(module) is LAYERS[operator]
        }
        assert len(new) == count
        x = torch.randn(2, 3, 64, 64)
        net.train()(x).square().mean().backward()
        for path in new:
            for name, parameter in net.get_submodule(path).named_parameters():
                assert parameter.grad is not None, f"{path}.{name}"
                assert parameter.grad.isfinite().all(), f"{path}.{name}"
        torch.save(net.state_dict(), tmp_path / "net.pt")
        again = quietly(built(network), {pattern: REPLACEMENTS[operator]})
        again.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
        with torch.no_grad():
            assert torch.equal(again.eval()(x), net.eval()(x))

    @pytest.mark.parametrize("make", [
        torchvision.models.resnet18,
        lambda: timm.create_model("resnet18"),
        lambda: timm.create_model("tf_efficientnet_b0"),
    ], ids=["torchvision resnet18", "resnet18", "tf_efficientnet_b0"])  # fmt: skip
    def test_x_volution_starts_as_the_network_it_came_from(self, make):
        net = liven(make()).eval()
        new = quietly(net, lambda _, module: isinstance(module, nn.Conv2d), xvolution(heads=2))
        assert sum(isinstance(module, Xvolution2d) for module in new.modules()) > 10
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(new(x), net(x), rtol=1e-6, atol=1e-6)

    def test_x_volution_learns_and_folds_to_the_same_predictions(self):
        """The attention, off at first, joins in; then both branches become one convolution."""
        # Lively: at their start the last norms of residual branches switch the branches off.
        net = liven(timm.create_model("resnet18", num_classes=5))
        net = quietly(net, {"layer3.*.conv*": xvolution(heads=4)})
        x, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
        optimizer = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9)
        losses = []
        for _ in range(8):
            loss = nn.functional.cross_entropy(net(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 2
        assert net.layer3[0].conv1.attention_norm.weight.abs().max() > 1e-4
        net.eval()
        folded = timm.utils.reparameterize_model(net, inplace=False)
        assert not any(isinstance(module, Xvolution2d) for module in folded.modules())
        with torch.no_grad():
            want = net(x)
            torch.testing.assert_close(folded(x), want, rtol=1e-4, atol=1e-4)
            assert torch.equal(folded(x).argmax(1), want.argmax(1))

    @pytest.mark.parametrize("operator", REPLACEMENTS)
    def test_compiles_without_graph_break(self, operator):
        net = quietly(liven(small()).eval(), "*", REPLACEMENTS[operator])
        x = torch.randn(2, 3, 17, 14)
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), net(x))

    def test_a_converted_network_is_converted_again(self):
        net = quietly(small(), "0", involution())
        again = quietly(net, "*", lka())
        assert isinstance(again[0].involution, Involution2d)
        report = found(net, "*", lka())
        inside = [row.why for row in report.kept if row.path.startswith("0.involution")]
        assert inside
        assert all("an operator itself" in why for why in inside)


class TestShapes:
    PLACES = (  # C_in, C_out, K, stride, dilation, groups
        pytest.param(16, 16, 3, 1, 1, 1, id="dense"),
        pytest.param(16, 16, 7, 1, 1, 16, id="depthwise"),
        pytest.param(16, 32, 3, 2, 1, 1, id="strided-and-wider"),
        pytest.param(32, 16, 5, 3, 1, 2, id="stride3-narrower-grouped"),
    )

    @pytest.mark.parametrize("operator", REPLACEMENTS)
    @pytest.mark.parametrize(("c_in", "c_out", "size", "stride", "dilation", "groups"), PLACES)
    def test_output_size(self, operator, c_in, c_out, size, stride, dilation, groups):
        pad = dilation * (size // 2)
        conv = nn.Conv2d(c_in, c_out, size, stride, pad, dilation, groups)
        new = quietly(stack(conv), "0", REPLACEMENTS[operator]).eval()
        for height, width in ((1, 2), (9, 8), (16, 13)):
            x = torch.randn(2, c_in, height, width)
            assert new(x).shape == conv(x).shape

    @pytest.mark.parametrize("operator", ["involution", "xvolution"])
    def test_dilation_is_honoured(self, operator):
        conv = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        new = quietly(stack(conv), "0", REPLACEMENTS[operator])[0]
        assert new.dilation in (2, (2, 2))
        x = torch.randn(1, 16, 9, 8)
        assert new.eval()(x).shape == x.shape

    @pytest.mark.parametrize("operator", REPLACEMENTS)
    def test_dtype_device_and_mode(self, operator):
        net = small().bfloat16().eval()
        net[0].train()
        new = quietly(net, {"0": REPLACEMENTS[operator], "3": REPLACEMENTS[operator]})
        assert {parameter.dtype for parameter in new.parameters()} == {torch.bfloat16}
        assert all(module.training for module in new[0].modules())
        assert not any(module.training for module in new[3].modules())
        assert new.eval()(torch.randn(1, 3, 8, 8).bfloat16()).dtype == torch.bfloat16
        with torch.device("meta"):
            on_meta = small()
        new = quietly(on_meta, "*", REPLACEMENTS[operator])
        assert {parameter.device.type for parameter in new.parameters()} == {"meta"}
        assert new(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 8, 4, 4)

    def test_memory_format(self):
        net = small().to(memory_format=torch.channels_last)
        new = quietly(net, "3", xvolution())
        assert new[3].conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert not new[3].conv.weight.is_contiguous()
        assert quietly(small(), "3", xvolution())[3].conv.weight.is_contiguous()

    def test_copies_and_pickles(self, tmp_path):
        net = quietly(small(), "*", gnconv(order=2)).eval()
        x = torch.randn(1, 3, 8, 8)
        torch.save(net, tmp_path / "net.pt")
        loaded = torch.load(tmp_path / "net.pt", weights_only=False)
        assert torch.equal(copy.deepcopy(net)(x), net(x))
        assert torch.equal(loaded(x), net(x))


class TestCarrying:
    def test_lka_takes_over_what_only_scales(self):
        conv = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        nn.init.zeros_(conv.weight)
        conv.weight.data[:, 0, 1, 1] = torch.randn(8)
        report = found(stack(conv), "0", lka())
        new = quietly(stack(conv), "0", lka())
        x = torch.randn(2, 8, 7, 9)
        assert report.rows[0].carried
        torch.testing.assert_close(new(x), conv(x), rtol=0, atol=0)

    @pytest.mark.parametrize("change", ["neighbour", "bias", "dense"])
    def test_lka_starts_anew_elsewhere(self, change):
        conv = nn.Conv2d(8, 8, 3, padding=1, groups=1 if change == "dense" else 8)
        nn.init.zeros_(conv.bias)
        nn.init.dirac_(conv.weight, groups=conv.groups)
        if change == "neighbour":
            conv.weight.data[3, 0, 0, 1] = 0.1
        if change == "bias":
            conv.bias.data[2] = 0.1
        assert not found(stack(conv), "0", lka()).rows[0].carried

    def test_x_volution_without_convolution_branch_starts_anew(self):
        net = quietly(small(), "3", xvolution(branches="attention"))
        assert net[3].conv is None
        assert not found(small(), "3", xvolution(branches="attention")).rows[0].carried

    def test_tensorflow_padding_without_stride_is_carried(self):
        conv = Conv2dSame(8, 16, 5, dilation=2, groups=2).eval()
        new = quietly(stack(conv), "0", Xvolution2d)
        x = torch.randn(1, 8, 11, 12)
        torch.testing.assert_close(new(x), conv(x), rtol=1e-6, atol=1e-6)

    def test_a_frozen_layer_gets_trained_parameters(self):
        net = small().requires_grad_(False)
        new = quietly(net, "0", involution())
        assert all(parameter.requires_grad for parameter in new[0].parameters())
        assert not any(parameter.requires_grad for parameter in new[1:].parameters())


class TestKept:
    CASES = (
        pytest.param(nn.Conv2d(8, 8, 1), involution(), "1 by 1", id="pointwise"),
        pytest.param(nn.Conv2d(8, 8, 4, 4), involution(), "even side, 4", id="patches"),
        pytest.param(nn.Conv2d(8, 8, (3, 5), padding=(1, 2)), involution(), "3 by 5", id="oblong"),
        pytest.param(nn.Conv2d(8, 8, 3), involution(), "padding is (0, 0), not the 1", id="valid"),
        pytest.param(
            nn.Conv2d(8, 8, 3, padding="valid"), involution(), "padding is valid", id="valid-word"
        ),
        pytest.param(
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), involution(), "'reflect'",
            id="reflect",
        ),
        pytest.param(
            nn.Conv2d(8, 8, 3, (1, 2), padding=1), involution(), "stride (1, 2)", id="uneven-stride"
        ),
        pytest.param(
            Conv2dSame(8, 8, 3, stride=2), involution(), "pads one side more", id="tensorflow"
        ),
        pytest.param(
            DepthwiseConv2d(8, 3, activation="gelu"), involution(), "'gelu'", id="activation"
        ),
        pytest.param(
            ScaledStdConv2d(8, 8, 3, padding=1), xvolution(), "does more with its weights",
            id="standardised",
        ),
        pytest.param(
            nn.Conv2d(8, 8, 3, padding=2, dilation=2), lka(), "no dilation", id="lka-dilated"
        ),
        pytest.param(
            nn.Conv2d(8, 12, 3, padding=1), gnconv(order=4), "multiple of 8", id="gnconv-width"
        ),
        pytest.param(nn.Conv2d(8, 9, 3, padding=1), dmixer(), "dim must be even", id="odd"),
        pytest.param(nn.Conv2d(8, 9, 3, padding=1), xvolution(heads=2), "heads", id="heads"),
        pytest.param(
            nn.Conv2d(8, 8, 3, padding=1), lambda conv: None, "returned none", id="function"
        ),
    )  # fmt: skip

    @pytest.mark.parametrize(("conv", "to", "why"), CASES)
    def test_says_why(self, conv, to, why):
        net = stack(conv, nn.Conv2d(8, 8, 3, padding=1))
        report = found(net, {"0": to, "1": involution()})
        assert [row.path for row in report.kept] == ["0"]
        assert why in report.kept[0].why
        with pytest.raises(ValueError, match=r"^nothing can be replaced; 0: ") as raised:
            found(net, "0", to)
        assert why in str(raised.value)

    def test_hooks_would_be_lost(self):
        net = small()
        net[0].register_forward_hook(lambda *_: None)
        assert "hooks" in found(net, "*", involution()).kept[0].why

    def test_standardised_weights_do_not_matter_to_what_starts_anew(self):
        net = stack(ScaledStdConv2d(8, 8, 3, padding=1))
        assert isinstance(quietly(net, "0", lka())[0], LKA)


class TestChoosing:
    def test_classes_makers_and_functions(self):
        for to in (Involution2d, involution, involution()):
            assert isinstance(quietly(small(), "4", to)[4], Involution2d)

        def halve(conv):
            return nn.Conv2d(conv.in_channels, conv.out_channels, 1)

        new = quietly(small(), "4", halve)
        assert new[4].kernel_size == (1, 1)

    def test_the_first_pattern_that_matches_decides(self):
        new = quietly(small(), {"0": lka(), "?": involution()})
        assert [type(layer) for layer in new[0]] == [nn.Conv2d, LKA]
        assert isinstance(new[4], Involution2d)

    def test_several_patterns_and_predicates(self):
        def grouped(path, module):
            return path == "0" or getattr(module, "groups", 1) > 1

        for where in (["0", "4"], ("0", "4"), grouped):
            assert [row.path for row in found(small(), where, involution()).rows] == ["0", "4"]

    def test_patterns_are_case_sensitive_and_cross_dots(self):
        net = timm.create_model("resnet18", device="meta")
        assert len(found(net, "layer3.*conv2", lka()).rows) == 2
        with pytest.raises(ValueError, match=r"unknown module or pattern 'Layer3\.\*'"):
            found(net, "Layer3.*", lka())

    def test_nothing_matches(self):
        net = timm.create_model("resnet18", device="meta")
        with pytest.raises(ValueError, match=r"'layer3\.\*\.conf2'; nearest: layer3\.\d\.conv2"):
            found(net, {"layer3.*.conf2": lka()})
        with pytest.raises(ValueError, match="returned False for all"):
            found(net, lambda *_: False, lka())

    def test_something_matches_that_cannot_be_replaced(self):
        net = timm.create_model("resnet18", device="meta")
        with pytest.raises(ValueError, match=r"matches 4 modules, .*layer3\.0\.bn1 is a BatchNorm"):
            found(net, "layer3.*.bn?", lka())
        with pytest.raises(ValueError, match=r"layer3 is a Sequential; .* match 'layer3\.\*'"):
            found(net, "layer3", lka())

    @pytest.mark.parametrize(
        ("where", "to", "message"),
        [
            ({"0": lka()}, lka(), "to must be left out"),
            ("0", None, "to is missing"),
            ("0", "lka", "to must be one of Involution2d, GnConv, LKA, DMixer, Xvolution2d"),
            ({"0": 3}, None, "to must be one of"),
            ([0], lka(), "where must have strings"),
            ("0", lambda conv: "no module", "0: .* must return a torch.nn.Module"),
        ],
    )
    def test_wrong_kinds(self, where, to, message):
        with pytest.raises(TypeError, match=message):
            found(small(), where, to)

    def test_what_is_not_initialised(self):
        with pytest.raises(ValueError, match=r"got 0\.weight without a shape; run the network"):
            found(stack(nn.LazyConv2d(8, 3, padding=1)), "0", lka())

    def test_empty_mapping_and_image(self):
        with pytest.raises(ValueError, match="a pattern at least"):
            found(small(), {})
        with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
            quietly(small(), "0", lka(), image_size=0)

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (lambda conv: nn.Conv2d(16, 32, 3, padding=1), r"3: .* into \(1, 32, 8, 7\), as Conv"),
            (lambda conv: nn.Conv2d(3, 32, 3), "3: .* must take maps of shape .* and fails"),
            (lambda conv: Involution2d(5, groups=2), "3: groups must divide"),
        ],
        ids=["stride", "width", "own-error"],
    )
    def test_a_function_that_errs_leaves_the_network_whole(self, function, message):
        net = small()
        before = list(net)

        def only_third(conv):
            return function(conv) if conv.in_channels == 16 else nn.Conv2d(3, 16, 1)

        with pytest.raises(ValueError, match=message):
            quietly(net, "[03]", only_third, inplace=True)
        assert list(net) == before


class TestSharing:
    def test_one_layer_under_two_names_stays_one(self):
        conv = nn.Conv2d(8, 8, 3, padding=1)
        net = stack(conv, nn.ReLU(), conv)
        new = quietly(net, "*", involution())
        assert new[0] is new[2]
        assert [row.path for row in found(net, "*", involution()).rows] == ["0", "2"]

    def test_only_one_of_its_names_is_chosen(self):
        conv = nn.Conv2d(8, 8, 3, padding=1)
        new = quietly(stack(conv, nn.ReLU(), conv), "2", involution())
        assert isinstance(new[0], nn.Conv2d)
        assert isinstance(new[2], Involution2d)

    def test_a_shared_parent_is_one_place(self):
        block = stack(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        (row,) = found(stack(block, block), "1.0", involution()).rows
        assert row.path == "0.0, also 1.0"


class TestReport:
    def test_dry_run_changes_nothing(self):
        net = small()
        before, layers = copy.deepcopy(net.state_dict()), list(net.modules())
        state = torch.get_rng_state()
        report = found(net, "*", involution(), inplace=True)
        assert torch.equal(torch.get_rng_state(), state)
        assert list(net.modules()) == layers
        after = net.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert len(report.replaced) == 3

    def test_only_inplace_changes_the_network(self):
        net = small()
        assert quietly(net, "0", involution()) is not net
        assert isinstance(net[0], nn.Conv2d)
        assert quietly(net, "0", involution(), inplace=True) is net
        assert isinstance(net[0][1], Involution2d)

    def test_numbers_are_those_of_the_networks(self):
        net = timm.create_model("resnet18")
        report = quietly(net, "layer*.conv?", involution(), dry_run=True)
        new = quietly(net, "layer*.conv?", involution())
        assert report.image_size == (224, 224)
        assert report.macs_before == network_cost("resnet18").macs
        assert report.macs_after < report.macs_before
        for count, model in ((report.params_before, net), (report.params_after, new)):
            assert count == sum(parameter.numel() for parameter in model.parameters())
        change = sum(row.params_after - row.params_before for row in report.rows)
        assert report.params_after - report.params_before == change

    def test_what_cannot_be_counted_is_said(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 8, 3, padding=1)

            def forward(self, x, y):
                return self.conv(x) + y

        report = found(Two(), "conv", involution())
        assert report.macs_before is None
        assert "missing 1 required positional argument" in report.uncounted
        assert "not counted: TypeError" in str(report)

    def test_is_printed_unless_quiet(self, capsys):
        net = timm.create_model("resnet18", device="meta")
        convert(net, {"layer[34]*": involution()})
        text = capsys.readouterr().out
        assert "layer3.1.conv1" in text
        assert "Involution2d 7x7" in text
        assert "1 by 1" in text
        assert "8 replaced, 2 kept" in text
        assert "Parameters 11.69M to " in text
        quietly(net, {"layer[34]*": involution()})
        assert capsys.readouterr().out == ""

    def test_as_json_and_text(self):
        report = found(small(), {"0": involution(), "3": xvolution(), "5": lka()})
        record = json.loads(json.dumps(report.to_json()))
        assert record["params_after"] == report.params_after
        assert [row["carried"] for row in record["rows"]] == [False, True, False]
        assert "carried over" in str(report)
        assert "2 replaced, 1 kept" in str(report)


def test_both_ways_of_importing():
    """``volution.convert`` is the function; its settings are found beside it all the same."""
    assert volution.convert is convert
    assert sys.modules["volution.convert"].xvolution is xvolution
