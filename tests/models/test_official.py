"""Checkpoints of the authors, in every wrapping, into models and through timm."""

from __future__ import annotations

import argparse
from typing import Any

import parity
import pytest
import safetensors.torch
import timm
import torch
from networks import images, liven
from torch import Tensor, nn
from torch.testing import assert_close

from volution.models import load_official
from volution.models.official import unwrap
from volution.ops import Involution2d

SMALL = {"depths": (1, 1, 1, 1), "widths": (32, 64, 96, 128)}


def make(**kwargs: Any) -> nn.Module:
    return timm.create_model("rednet26", **{"num_classes": 5, **SMALL, **kwargs}).eval()


@pytest.fixture(scope="module")
def source() -> nn.Module:
    return liven(make())


@pytest.fixture
def theirs(source: nn.Module) -> dict[str, Tensor]:
    """What the authors' classifier would save."""
    names = {k: k if k.startswith("head.") else f"backbone.{k}" for k in source.state_dict()}
    return {parity.official_name(names[k]): v for k, v in source.state_dict().items()}


def dense(theirs: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The backbone alone."""
    pairs = ((k.partition("backbone."), v) for k, v in theirs.items())
    return {prefix + k[2]: v for k, v in pairs if k[1]}


def outputs(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net(images())


WRAPPINGS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"meta": {"epoch": 1}, "state_dict": state, "optimizer": {}},
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
    "averaged": lambda state: {"state_dict": _zeros(state), "state_dict_ema": state},
    "averaged-model": lambda state: {"model": _zeros(state), "model_ema": state},
    "not-averaged": lambda state: {"state_dict": state, "state_dict_ema": None},
    "parallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "compiled": lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
    "old-pytorch": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    "long-counters": lambda state: {k: v if v.dim() else v[None] for k, v in state.items()},
}
wrappings = pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)


def _zeros(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros_like(value) for key, value in state.items()}


class TestLoading:
    @wrappings
    def test_classifier(self, source, theirs, wrap):
        checkpoint = wrap(theirs)
        before = repr(checkpoint)
        net = make()
        load_official(net, checkpoint)
        assert torch.equal(outputs(net), outputs(source))
        assert repr(checkpoint) == before, "the caller's checkpoint was modified"

    @wrappings
    @pytest.mark.parametrize("prefix", ["", "backbone."])
    def test_dense_copy(self, source, theirs, wrap, prefix):
        net = make(num_classes=0)
        load_official(net, wrap(dense(theirs, prefix)))
        want = source.forward_head(source.forward_features(images()), pre_logits=True)
        assert torch.equal(outputs(net), want)

    def test_whole_detector(self, source, theirs):
        others = {"neck.conv.weight": torch.ones(1), "rpn_head.bias": torch.ones(1)}
        net = make(num_classes=0)
        load_official(net, {"state_dict": {**dense(theirs, "backbone."), **others}})
        assert torch.equal(net.state_dict()["stem.2.bias"], source.state_dict()["stem.2.bias"])

    def test_classifier_into_a_network_without_one(self, source, theirs):
        net = make(num_classes=0)
        load_official(net, theirs)
        assert_close(net.forward_features(images()), source.forward_features(images()))

    def test_feature_extractor(self, source, theirs):
        net = make(features_only=True, num_classes=None)
        load_official(net, theirs)
        want = source.forward_intermediates(images(), intermediates_only=True)
        assert_close(net(images()), want, atol=0, rtol=0)

    def test_layer(self, source, theirs):
        layer = Involution2d(16)
        prefix = "backbone.layer2.0.conv2."
        layer.load_state_dict(
            {k.removeprefix(prefix): v for k, v in theirs.items() if k.startswith(prefix)}
        )
        want = source.layer2[0].conv2.state_dict()
        assert_close(dict(layer.state_dict()), dict(want), atol=0, rtol=0)

    def test_own_names(self, source):
        net = make()
        load_official(net, source.state_dict())
        assert torch.equal(outputs(net), outputs(source))

    def test_as_part_of_a_larger_model(self, source, theirs):
        task = nn.ModuleDict({"backbone": make(), "neck": nn.Linear(2, 2)})
        state = {f"backbone.{k}": v for k, v in theirs.items()}
        state.update({f"neck.{k}": v for k, v in task["neck"].state_dict().items()})
        task.load_state_dict(state)
        assert torch.equal(outputs(task["backbone"]), outputs(source))


class TestRefusal:
    def refused(self, net: nn.Module, checkpoint: Any) -> str:
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with pytest.raises(ValueError, match="nothing was loaded") as caught:
            load_official(net, checkpoint)
        assert_close(dict(net.state_dict()), before, atol=0, rtol=0)
        return str(caught.value)

    def test_deeper_network(self, theirs):
        message = self.refused(make(depths=(2, 1, 1, 1)), theirs)
        assert "does not fit rednet26" in message
        assert "missing (21): layer1.1.conv1.weight, layer1.1.bn1.weight" in message
        assert "and 16 more" in message
        assert "unexpected" not in message

    def test_shallower_network(self, theirs):
        extra = {"backbone.layer4.1.conv1.weight": torch.ones(1)}
        message = self.refused(make(), {**theirs, **extra})
        assert "unexpected (1): layer4.1.conv1.weight" in message

    def test_stem_of_the_dense_copies(self, theirs):
        message = self.refused(make(stem_kernel_size=7), theirs)
        assert (
            "other shapes (2): stem.1.kernel_generator.conv2.conv.weight is (9, 1, 1, 1)" in message
        )
        assert "not (49, 1, 1, 1)" in message

    def test_other_number_of_classes(self, theirs):
        message = self.refused(make(num_classes=3), theirs)
        assert "other shapes (2): head.fc.weight is (5, 128), not (3, 128)" in message

    def test_no_classifier_where_one_is_needed(self, theirs):
        message = self.refused(make(), dense(theirs))
        assert "missing (2): head.fc.weight, head.fc.bias" in message
        assert "create the model with num_classes=0" in message

    def test_other_architecture(self):
        resnet = timm.create_model("resnet18", device="meta").state_dict()
        message = self.refused(make(), resnet)
        assert "missing (" in message
        assert "unexpected (" in message

    @pytest.mark.parametrize(
        ("checkpoint", "message"),
        [
            ({}, "got nothing"),
            ({"state_dict": {}}, "got nothing"),
            ({"epoch": 3}, "entries that are not tensors: epoch"),
            ([1, 2], "a checkpoint must be a dict, got list"),
        ],
    )
    def test_no_state_dict(self, checkpoint, message):
        with pytest.raises(TypeError, match=message):
            load_official(make(), checkpoint)


class TestThroughTimm:
    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    @wrappings
    def test_checkpoint_path(self, source, theirs, tmp_path, wrap, suffix):
        path = tmp_path / f"theirs.{suffix}"
        if suffix == "pth":
            torch.save(wrap(theirs), path)
        else:
            safetensors.torch.save_file(unwrap(wrap(theirs)), path)
        net = make(checkpoint_path=str(path))
        assert torch.equal(outputs(net), outputs(source))

    def test_checkpoint_path_without_classifier(self, source, theirs, tmp_path):
        torch.save(theirs, tmp_path / "theirs.pth")
        net = make(num_classes=0, checkpoint_path=str(tmp_path / "theirs.pth"))
        assert_close(net.forward_features(images()), source.forward_features(images()))

    def test_checkpoint_path_of_another_architecture(self, theirs, tmp_path):
        torch.save(theirs, tmp_path / "theirs.pth")
        with pytest.raises(RuntimeError, match=r"layer1\.1\.conv1\.weight"):
            make(depths=(2, 1, 1, 1), checkpoint_path=str(tmp_path / "theirs.pth"))

    def pretrained(self, path: Any, **kwargs: Any) -> nn.Module:
        overlay = {"file": str(path), "num_classes": 5}
        return make(pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)

    @pytest.fixture
    def path(self, theirs, tmp_path):
        torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")
        return tmp_path / "theirs.pth"

    def test_pretrained(self, source, path):
        assert torch.equal(outputs(self.pretrained(path)), outputs(source))

    @pytest.mark.parametrize("classes", [0, 3])
    def test_pretrained_with_other_classes(self, source, path, classes):
        net = self.pretrained(path, num_classes=classes)
        assert_close(net.forward_features(images()), source.forward_features(images()))
        assert net(images()).shape == (2, classes or net.num_features)

    def test_pretrained_in_grey(self, source, path):
        net = self.pretrained(path, in_chans=1)
        x = images(channels=1)
        want = source(x.expand(-1, 3, -1, -1))
        assert_close(net(x), want, atol=1e-4, rtol=1e-4)

    def test_pretrained_features(self, source, path):
        net = self.pretrained(path, features_only=True, out_indices=(1, 4))
        want = source.forward_intermediates(images(), [1, 4], intermediates_only=True)
        assert_close(net(images()), want, atol=0, rtol=0)

    @pytest.mark.parametrize("classes", [3, 5])
    def test_pretrained_of_another_architecture(self, path, classes):
        with pytest.raises(ValueError, match=r"missing \(21\): layer1\.1\.conv1\.weight"):
            self.pretrained(path, depths=(2, 1, 1, 1), num_classes=classes)


@parity.needs_fixtures
def test_manifest_of_the_authors():
    """The real names, at full size."""
    state = parity.load("rednet26").weights()
    net = timm.create_model("rednet26")
    load_official(net, state)
    assert torch.equal(
        net.layer3[2].conv2.kernel_generator.conv2.conv.bias,
        state["backbone.layer3.2.conv2.conv2.conv.bias"],
    )
