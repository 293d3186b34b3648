"""What computes, not what is computed: checkpointing, compilation, groups of the optimizer."""

import copy

import networks
import pytest
import small
import timm
import torch
from timm.data import Mixup
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from volution import hub, ops, tasks
from volution.data import Batch
from volution.train import TrainConfig, engine, fit
from volution.train.average import MovingAverage
from volution.train.optimisation import optimizer
from volution.train.synchronised import SyncBatchNorm, synchronise
from volution.train.together import filled

FAMILIES = ["rednet26", "xvolution_resnet34", "hornet_tiny_gf", "van_b0", "transxnet_t"]


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=10)


def shallow(name):
    return networks.liven(
        timm.create_model(name, **{**networks.small(name), "depths": [1, 1, 1, 1]}, num_classes=3)
    )


@pytest.mark.parametrize("name", FAMILIES)
class TestGradientCheckpointing:
    def test_running_statistics_move_once(self, name):
        plain = shallow(name).train()
        frugal = copy.deepcopy(plain)
        frugal.set_grad_checkpointing()
        for net in (plain, frugal):
            for step in range(2):
                net(networks.images(4, seed=step)).square().mean().backward()
        for (key, want), got in zip(plain.named_buffers(), frugal.buffers(), strict=True):
            assert torch.equal(got, want), key
        for (key, p), q in zip(plain.named_parameters(), frugal.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=0, atol=0, msg=key)
        has_norms = any(isinstance(module, _BatchNorm) for module in frugal.modules())
        assert has_norms == (name != "hornet_tiny_gf")


class TestWeightDecay:
    @pytest.mark.parametrize("name", FAMILIES)
    @pytest.mark.parametrize("layer_decay", [None, 0.8])
    def test_it_spares_norms_biases_and_what_the_network_names(self, name, layer_decay):
        net = shallow(name)
        made = optimizer(TrainConfig(layer_decay=layer_decay, weight_decay=0.1), net)
        decay = {id(p): g["weight_decay"] for g in made.param_groups for p in g["params"]}
        named = net.no_weight_decay()
        norms = nn.LayerNorm | nn.GroupNorm | _BatchNorm
        of_norms = {id(p) for m in net.modules() if isinstance(m, norms) for p in m.parameters()}
        for key, parameter in net.named_parameters():
            spared = key in named or key.endswith(".bias") or id(parameter) in of_norms
            assert decay[id(parameter)] == (0.0 if spared or parameter.ndim < 2 else 0.1), key
        assert set(decay.values()) == {0.0, 0.1}

    def test_layer_scales_and_filters_are_named_where_they_have_dimensions(self):
        assert any(
            k.endswith("complex_weight") for k in shallow("hornet_tiny_gf").no_weight_decay()
        )
        assert any("layer_scale" in k for k in shallow("van_b0").no_weight_decay())
        table = next(
            m for m in shallow("transxnet_t").modules() if isinstance(m, ops.PositionTable)
        )
        assert table.weight.ndim == 4


class TestSynchronised:
    def test_alone_it_is_a_batch_norm(self):
        plain = shallow("rednet26").train()
        other = synchronise(copy.deepcopy(plain), gpu=False)
        assert not any(type(m) is nn.BatchNorm2d for m in other.modules())
        assert list(other.state_dict()) == list(plain.state_dict())
        for net in (plain, other):
            for step in range(2):
                net(networks.images(4, seed=step)).sum().backward()
        for key, value in plain.state_dict().items():
            assert torch.equal(other.state_dict()[key], value), key
        for mode in (True, False):
            x = networks.images(2, seed=7)
            assert torch.equal(other.train(mode)(x), plain.train(mode)(x))

    def test_what_it_learned_folds_in_a_plain_network(self):
        net = synchronise(shallow("van_b0"), gpu=False).eval()
        plain = shallow("van_b0")
        plain.load_state_dict(net.state_dict())
        torch.testing.assert_close(
            plain.eval().fuse()(networks.images()), net(networks.images()), rtol=1e-4, atol=1e-4
        )

    @pytest.mark.parametrize("gpu", [False, True])
    def test_timms_norms_keep_their_activation(self, gpu):
        net = timm.create_model("mobilenetv3_small_050", num_classes=3).eval()
        x = networks.images(2)
        with torch.no_grad():
            want, got = net(x), synchronise(net, gpu=gpu)(x)
        torch.testing.assert_close(got, want)
        kind = nn.SyncBatchNorm if gpu else SyncBatchNorm
        assert sum(isinstance(m, kind) for m in net.modules()) > 10

    def test_on_one_device_nothing_is_changed(self, colours, tmp_path):
        run = engine.Run.build(small.colour_run(colours, tmp_path, sync_bn=True))
        assert not any(isinstance(m, SyncBatchNorm) for m in run.module.modules())


class TestAverage:
    def test_it_follows_parameters_and_buffers(self):
        net = shallow("rednet26").train()
        average = MovingAverage(net, decay=0.75)
        expected = {k: v.clone() for k, v in net.state_dict().items()}
        for step in range(3):
            net(networks.images(2, seed=step))
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.add_(0.1)
            average.update(net)
            for key, value in net.state_dict().items():
                whole = not value.is_floating_point()
                expected[key] = value.clone() if whole else 0.75 * expected[key] + 0.25 * value
        for key, value in average.module.state_dict().items():
            torch.testing.assert_close(value, expected[key], msg=key)


class TestOptions:
    def test_checkpointing_reaches_the_network_and_learns_the_same(self, colours, tmp_path):
        results = [
            fit(
                small.colour_run(colours, tmp_path / str(on), epochs=1, grad_checkpointing=on),
                show_progress=False,
            )
            for on in (False, True)
        ]
        kept = [hub.read_checkpoint(result.best) for result in results]
        assert all(torch.equal(kept[1][name], kept[0][name]) for name in kept[0])
        config = small.colour_run(colours, tmp_path / "looked", grad_checkpointing=True)
        assert engine.Run.build(config).classifier.model.grad_checkpointing

    def test_a_network_that_cannot_checkpoint_is_refused(self, colours, tmp_path):
        config = small.colour_run(
            colours, tmp_path / "run", model="dla34", model_args={}, grad_checkpointing=True
        )
        with pytest.raises(ValueError, match="grad_checkpointing: dla34 cannot compute"):
            fit(config)
        assert not (tmp_path / "run").exists()

    def test_compilation_reaches_network_and_average(self, colours, tmp_path, monkeypatch):
        compiled = []
        monkeypatch.setattr(nn.Module, "compile", lambda net: compiled.append(type(net).__name__))
        config = small.colour_run(colours, tmp_path, epochs=1, compile=True, ema_decay=0.5)
        fit(config, show_progress=False)
        assert compiled == ["RedNet", "RedNet"]

    @pytest.mark.slow
    def test_a_compiled_run_learns_what_a_plain_one_does(self, colours, tmp_path):
        results = {}
        for on in (False, True):
            # 6 images to measure with: a batch of 4, and one of 2.
            config = small.colour_run(
                colours,
                tmp_path / str(on),
                model_args={"widths": [32, 32, 32, 32], "depths": [1, 1, 1, 1]},
                batch_size=4,
                epochs=2,
                compile=on,
                ema_decay=0.5,
            )
            results[on] = fit(config, show_progress=False)
        for plain, other in zip(results[False].history, results[True].history, strict=True):
            assert other["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-3)
        kept = [hub.read_checkpoint(results[on].best) for on in (False, True)]
        assert kept[1].keys() == kept[0].keys()
        assert tasks.load_classifier(results[True].best).classes == ("blue", "green", "red")

    @pytest.mark.parametrize(
        ("rule", "line"),
        [
            ("none", None),
            ("linear", "learning rate 0.002 = 0.001 x 16 / 8 images per step (linear)"),
            ("sqrt", "learning rate 0.001414 = 0.001 x sqrt(16 / 8) images per step (sqrt)"),
        ],
    )
    def test_the_scaled_rate_is_used_and_said_once(self, colours, tmp_path, capsys, rule, line):
        config = small.colour_run(
            colours,
            tmp_path,
            epochs=1,
            batch_size=8,
            accumulate=2,
            lr=1e-3,
            image_size=16,
            lr_scaling=rule,
            lr_base_batch=8,
            schedule="constant",
        )
        result = fit(config)
        said = [line for line in capsys.readouterr().err.splitlines() if "images per step" in line]
        assert said == ([line] if line else [])
        assert result.history[0]["lr"] == pytest.approx(config.scaled_lr)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp16"}, "precision fp16 needs a GPU; choose bf16 or 32"),
        ({"devices": 3}, r"must be divisible by devices \* nodes = 3, got 8"),
        ({"devices": 8}, "batch_size must be at least 2 for each device, got 8 .1 for each of 8"),
        ({"nodes": 2}, "nodes 2: start the command on every machine with torchrun or srun"),
        ({"devices": 0}, "devices must be at least 1, got 0"),
    ],
)
def test_bad_places_are_told_before_anything_is_written(colours, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        fit(small.colour_run(colours, tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_the_only_readable_image_can_be_mixed_with_itself():
    """Of a process that could read no other; mixing writes into the batch."""
    batch = Batch(torch.rand(1, 3, 8, 8), torch.tensor([1]), torch.tensor([0]), [])
    two = filled(batch, (3, 8, 8))
    for mixup, cutmix in ((1.0, 0.0), (0.0, 1.0)):
        mixed, _ = Mixup(mixup, cutmix, num_classes=3)(two.images.clone(), two.labels)
        torch.testing.assert_close(mixed, batch.images.repeat(2, 1, 1, 1))
    Mixup(1.0, 0.0, num_classes=3)(two.images, two.labels)
