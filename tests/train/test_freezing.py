"""Stages that stay as they are, and the classifier that learns alone."""

import pytest
import small
import timm
import torch
from torch import nn

from volution import hub, tasks
from volution.train import TrainConfig, engine, fit
from volution.train.freezing import apply_freezing, frozen_modules, stages

STAGES = {
    "rednet26": 4,
    "xvolution_resnet34": 4,
    "van_b0": 4,
    "hornet_tiny_gf": 4,
    "transxnet_t": 4,
    "resnet18": 4,
    "convnext_atto": 4,
    "efficientnet_b0": 7,
    "vit_tiny_patch16_224": 12,
}
STEM = {"rednet26": "stem.0.conv.weight", "resnet18": "conv1.weight",
        "vit_tiny_patch16_224": "patch_embed.proj.weight"}  # fmt: skip


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "start.safetensors"
    tasks.save_classifier(path, small.colour_classifier())
    return path


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_counted_from_the_stem_and_leave_the_classifier_out(name):
    with torch.device("meta"):
        net = timm.create_model(name)
    found = stages(net)
    assert len(found) == STAGES[name]
    names = [key for stage in found for key in stage]
    assert len(set(names)) == len(names)
    assert STEM.get(name, names[0]) in found[0]
    head = {id(p) for p in net.get_classifier().parameters()}
    assert not any(id(net.get_parameter(key)) in head for key in names)


def test_a_stage_too_many_is_refused():
    with torch.device("meta"):
        net = timm.create_model("van_b0")
    with pytest.raises(ValueError, match="freeze must be at most 4, the stages of van_b0, got 5"):
        apply_freezing(net, TrainConfig(model="van_b0", freeze=5))


def test_the_largest_frozen_parts_are_found():
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    assert list(frozen_modules(net)) == [net[0]]


class TestRun:
    def after(self, colours, weights, out, **settings):
        config = small.colour_run(
            colours, out, weights=weights, epochs=2, ema_decay=0.5, **settings
        )
        run = engine.Run.build(config)
        learning = {id(p) for g in run.module.configure_optimizers()["optimizer"].param_groups
                    for p in g["params"]}  # fmt: skip
        names = {k for k, p in run.classifier.model.named_parameters() if id(p) in learning}
        return names, hub.read_checkpoint(fit(config, show_progress=False).best)

    @pytest.mark.parametrize("weight_decay", [0.05, 0.0])
    def test_frozen_stages_keep_weights_and_statistics(
        self, colours, weights, tmp_path, weight_decay
    ):
        names, kept = self.after(
            colours, weights, tmp_path / "run", freeze=2, weight_decay=weight_decay
        )
        before = hub.read_checkpoint(weights)
        frozen = ("stem.", "layer1.", "layer2.")
        assert not [name for name in names if name.startswith(frozen)]
        for name, value in kept.items():
            if name.startswith(frozen):
                assert torch.equal(value, before[name]), name
        assert not torch.equal(kept["layer3.0.conv1.weight"], before["layer3.0.conv1.weight"])
        assert not torch.equal(
            kept["layer3.0.bn1.running_mean"], before["layer3.0.bn1.running_mean"]
        )

    def test_a_linear_probe_trains_the_classifier_alone(self, colours, weights, tmp_path):
        names, kept = self.after(colours, weights, tmp_path / "run", linear_probe=True)
        assert names == {"head.fc.weight", "head.fc.bias"}
        before = hub.read_checkpoint(weights)
        changed = {name for name, value in kept.items() if not torch.equal(value, before[name])}
        assert changed == names

    def test_frozen_parts_do_not_wake_up_after_an_evaluation(self, colours, weights, tmp_path):
        config = small.colour_run(colours, tmp_path / "run", weights=weights, freeze=1)
        module = engine.Run.build(config).module
        module.eval()
        module.train()
        net = module.model
        assert net.layer2.training
        assert net.training
        assert not any(m.training for part in (net.stem, net.layer1) for m in part.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": -1}, "freeze must be at least 0, got -1"),
        ({"freeze": 1}, "freeze keeps what a network has learned; give weights or pretrained"),
        ({"linear_probe": True}, "linear_probe keeps what a network has learned; give weights"),
        (
            {"linear_probe": True, "freeze": 1, "pretrained": True},
            "linear_probe trains the classifier alone, which leaves nothing for freeze",
        ),
        (
            {"linear_probe": True, "layer_decay": 0.7, "pretrained": True},
            "nothing for layer_decay; leave it out, got 0.7",
        ),
        ({"linear_probe": True, "sync_bn": True, "pretrained": True}, "nothing for sync_bn"),
        (
            {"linear_probe": True, "grad_checkpointing": True, "pretrained": True},
            "nothing for grad_checkpointing",
        ),
        (
            {"linear_probe": True, "drop_path_rate": 0.1, "pretrained": True},
            "nothing for drop_path_rate",
        ),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings).check()
