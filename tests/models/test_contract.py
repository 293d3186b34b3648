"""What every registered network must do; a new one is tested by existing.

Networks run as small twins with random weights and statistics, see networks.py: a branch that is
switched off by its initialisation could not fail a test of equality. What rounds
differently is compared in float64: dozens of random layers amplify the rounding of float32.
"""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from networks import depths, images, skeleton, small, twin
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import volution
from volution.models.weights import WEIGHTS
from volution.ops import Involution2d

NAMES = volution.models.list_models()


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def net(name: str) -> nn.Module:
    """A twin that tests only read."""
    return twin(name)


@pytest.fixture(scope="module")
def exact(name: str) -> nn.Module:
    """The same in float64."""
    return twin(name).double()


def equal_up_to_rounding(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype == torch.float64
    assert_close(got, want, atol=1e-9, rtol=1e-9)


def taps_of(net: nn.Module, x: Tensor, **kwargs: object) -> list[Tensor]:
    with torch.no_grad():
        return net.forward_intermediates(x, intermediates_only=True, **kwargs)


class TestForward:
    def test_images_do_not_mix(self, exact):
        x = images(3).double()
        with torch.no_grad():
            together, apart = exact(x), torch.cat([exact(image[None]) for image in x])
        assert together.shape == (3, 7)
        assert (together[0] - together[1]).abs().max() > 1e-2
        equal_up_to_rounding(together, apart)

    def test_forward_is_features_then_head(self, net):
        x = images()
        with torch.no_grad():
            features = net.forward_features(x)
            pooled = net.forward_head(features, pre_logits=True)
            assert features.shape == (2, net.num_features, 2, 2)
            assert pooled.shape == (2, net.head_hidden_size)
            assert_close(net.get_classifier()(pooled), net(x), atol=0, rtol=0)

    def test_recording_gradients_changes_nothing(self, net):
        """Without them results are finished in place, by other kernels."""
        recorded = net(images()).detach()
        with torch.no_grad():
            quiet = net(images())
        assert (quiet - recorded).abs().max() < 1e-4 * recorded.abs().max()

    def test_channels_last_gives_the_same(self, exact):
        x = images().double()
        other = copy.deepcopy(exact).to(memory_format=torch.channels_last)
        with torch.no_grad():
            equal_up_to_rounding(other(x.to(memory_format=torch.channels_last)), exact(x))

    def test_odd_sizes(self, net):
        x = images()[:, :, :51, :37]
        taps = taps_of(net, x)
        for tap, info in zip(taps, net.feature_info, strict=True):
            up = info["reduction"] - 1 if net.rounds_up else 0
            rows, columns = ((side + up) // info["reduction"] for side in x.shape[2:])
            assert tap.shape == (2, info["num_chs"], rows, columns)

    def test_smallest_image(self, net):
        side = net.smallest_image
        with torch.no_grad():
            assert net(images(size=side)).shape == (2, 7)
            if side > 1:
                message = rf"at least {side} by {side} pixels, got {side - 1} by {side}"
                for run in (net, net.forward_intermediates):
                    with pytest.raises(ValueError, match=message):
                        run(images(size=side)[:, :, 1:])

    def test_every_parameter_has_a_gradient(self, name):
        net = twin(name)
        for training in (True, False):
            net.train(training).zero_grad(set_to_none=True)
            net(images()).square().sum().backward()
            grads = {key: p.grad for key, p in net.named_parameters()}
            assert not [key for key, grad in grads.items() if grad is None]
            assert not [key for key, grad in grads.items() if not grad.isfinite().all()]
            # In training a bias before a norm has none to speak of.
            assert training or not [key for key, grad in grads.items() if not grad.any()]

    def test_default_initialisation_is_sound(self, name):
        net = timm.create_model(name, **small(name), num_classes=7)
        loss = net.train()(images()).logsumexp(1).sum()
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in net.parameters())

    def test_autocast(self, name):
        net = twin(name)
        want = taps_of(net, images(), indices=[1])[0]
        with torch.autocast("cpu", torch.bfloat16):
            got = taps_of(net, images(), indices=[1])[0]
            logits = net.train()(images())
        # Later maps amplify the rounding too much to tell it from a mistake.
        assert (got.float() - want).norm() < 0.05 * want.norm()
        assert logits.dtype == torch.bfloat16
        logits.square().sum().backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())


class TestArguments:
    def test_no_classes(self, name):
        net = twin(name, num_classes=0)
        assert net(images()).shape == (2, net.num_features)
        assert not [key for key in net.state_dict() if key.startswith("head.fc")]

    def test_no_pooling(self, name):
        net = twin(name, num_classes=0, global_pool="")
        assert net(images()).shape == (2, net.num_features, 2, 2)

    @pytest.mark.parametrize("pool", ["max", "catavgmax"])
    def test_other_poolings(self, name, pool):
        net = twin(name, global_pool=pool)
        pooled = net.forward_head(net.forward_features(images()), pre_logits=True)
        assert pooled.shape == (2, net.head_hidden_size)
        assert net(images()).shape == (2, 7)

    @pytest.mark.parametrize("channels", [1, 4])
    def test_image_channels(self, name, channels):
        assert twin(name, in_chans=channels)(images(channels=channels)).shape == (2, 7)

    def test_output_stride(self, name):
        plain = twin(name)
        assert plain.output_strides[-1] == 32
        for stride in plain.output_strides:
            net = twin(name, output_stride=stride)
            assert net.state_dict().keys() == plain.state_dict().keys()
            assert [tap["reduction"] for tap in net.feature_info][-1] == stride
            assert taps_of(net, images())[-1].shape[2:] == (64 // stride, 64 // stride)

    def test_output_stride_that_does_not_exist(self, name):
        allowed = {(32,): "32", (8, 16, 32): "8, 16 or 32"}[skeleton(name).output_strides]
        for stride in {4, 8, 16, 64} - {*skeleton(name).output_strides}:
            message = f"output_stride must be {allowed}, got {stride}"
            with pytest.raises(ValueError, match=message):
                twin(name, output_stride=stride)

    def test_drop_path_is_for_training(self, name):
        net, plain = twin(name, drop_path_rate=0.5), twin(name)
        plain.load_state_dict(net.state_dict())
        x = images()
        with torch.no_grad():
            assert_close(net(x), plain(x), atol=0, rtol=0)
            # Norms in eval, drop path in training: what differs is then the dropping alone.
            for module in net.modules():
                if "droppath" in type(module).__name__.lower():
                    module.train()
            assert not torch.equal(net(x), net(x))

    def test_drop_rate(self, name):
        net = twin(name, drop_rate=0.5)
        assert not net.head.training
        features = net.forward_features(images())
        assert torch.equal(net.forward_head(features), net.forward_head(features))
        net.head.train()
        assert not torch.equal(net.forward_head(features), net.forward_head(features))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_dtype(self, name, dtype):
        net = timm.create_model(name, **small(name), dtype=dtype)
        assert {p.dtype for p in net.parameters()} == {dtype}
        assert {b.dtype for b in net.buffers() if b.is_floating_point()} <= {dtype}
        net.reset_classifier(3)
        assert net(images().to(dtype)).dtype == dtype

    def test_meta_device(self, name):
        net = timm.create_model(name, device="meta", drop_path_rate=0.1)
        assert {t.device.type for t in [*net.parameters(), *net.buffers()]} == {"meta"}
        with torch.device("meta"):
            within = timm.create_model(name, drop_path_rate=0.1)
        assert within.state_dict().keys() == net.state_dict().keys()
        assert net(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)

    def test_exportable_runs_on_plain_pytorch(self, name):
        net = twin(name).double()
        plain = twin(name, exportable=True).double()
        plain.load_state_dict(net.state_dict())
        for subject, namespaces in ((net, {"aten", "volution"}), (plain, {"aten"})):
            with torch.no_grad(), CalledNamespaces() as called:
                output = subject(images().double())
            assert called.names == namespaces
        with torch.no_grad():
            equal_up_to_rounding(output, net(images().double()))


class TestConfiguration:
    def test_statistics_and_provenance(self, name):
        cfg = skeleton(name).pretrained_cfg
        for key in ("origin_url", "license", "paper_ids", "mean", "std", "interpolation"):
            assert cfg.get(key), key
        assert cfg["architecture"] == name
        known = WEIGHTS.get(f"{name}.{cfg['tag']}")
        assert cfg.get("url") == (known and known.url)

    def test_names_of_the_outer_layers(self, name):
        net, cfg = skeleton(name), skeleton(name).pretrained_cfg
        assert net.get_submodule(cfg["classifier"]) is net.get_classifier()
        assert net.get_submodule(cfg["first_conv"]).weight.shape[1] == 3
        assert next(iter(net.state_dict())) == f"{cfg['first_conv']}.weight"

    def test_pool_size(self, name):
        net, cfg = skeleton(name), skeleton(name).pretrained_cfg
        x = torch.empty(2, *cfg["input_size"], device="meta")
        assert net.forward_features(x).shape[2:] == cfg["pool_size"]

    def test_pretrained_fetches_the_weights_or_says_where_they_are(self, name, monkeypatch):
        asked = []

        def offline(url, path, **rest):
            asked.append(url)
            raise ConnectionError(f"cannot download {url}")

        monkeypatch.setattr("volution.models.weights.cached_file", offline)
        cfg = skeleton(name).pretrained_cfg
        published = "no weights of|lie where no program|only as"
        with pytest.raises(OSError, match="cannot download" if cfg.get("url") else published):
            timm.create_model(name, pretrained=True, device="meta")
        assert asked == ([cfg["url"]] if cfg.get("url") else [])

    def test_parameter_groups(self, net):
        for coarse in (False, True):
            groups = group_parameters(net, net.group_matcher(coarse))
            assert sum(map(len, groups.values())) == len(list(net.parameters()))
            first, last = groups[0], groups[len(groups) - 1]
            assert all(key.startswith(net.feature_info[0]["module"]) for key in first)
            assert all(key.startswith("head.") for key in last)
            if coarse:
                assert len(groups) == len(net.feature_info) + 1
        assert net.no_weight_decay() <= {key for key, _ in net.named_parameters()}

    def test_layer_decay(self, net):
        optimizer = create_optimizer_v2(net, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
        scales = [group["lr_scale"] for group in optimizer.param_groups]
        assert min(scales) < 0.1
        assert max(scales) == 1


class TestClassifier:
    def test_reset(self, name):
        net = twin(name).train()
        net.reset_classifier(3)
        assert net(images()).shape == (2, 3)
        assert net.num_classes == 3
        assert net.head.training
        net.reset_classifier(0, "max")
        assert net(images()).shape == (2, net.head_hidden_size)
        net.reset_classifier(0, "")
        assert net(images()).shape == (2, net.num_features, 2, 2)
        net.reset_classifier(5, "avg")
        assert net(images()).shape == (2, 5)

    def test_reset_keeps_the_pooling(self, name):
        net = twin(name, global_pool="catavgmax")
        net.reset_classifier(3)
        assert net.head.global_pool.pool_type == "catavgmax"

    def test_reset_keeps_what_comes_before_the_classifier(self, name):
        net = twin(name)
        x = net.forward_features(images())
        want = net.forward_head(x, pre_logits=True)
        net.reset_classifier(3)
        assert_close(net.forward_head(x, pre_logits=True), want, atol=0, rtol=0)


class TestIntermediates:
    def test_all_of_them(self, net):
        with torch.no_grad():
            last, taps = net.forward_intermediates(images())
            assert_close(last, net.forward_features(images()), atol=0, rtol=0)
        assert [tap.shape[1] for tap in taps] == [info["num_chs"] for info in net.feature_info]

    @pytest.mark.parametrize("indices", [2, [0, 2], [-1], [-2, 1]])
    def test_selection_and_early_stop(self, net, indices):
        every = taps_of(net, images())
        wanted = range(-indices, 0) if isinstance(indices, int) else indices
        wanted = sorted(i % len(every) for i in wanted)
        for stop in (False, True):
            got = taps_of(net, images(), indices=indices, stop_early=stop)
            assert_close(got, [every[i] for i in wanted], atol=0, rtol=0)

    def test_indices_that_do_not_exist(self, net):
        count = len(net.feature_info)
        for indices in (0, count + 1, [count], [-count - 1], []):
            with pytest.raises(ValueError, match="indices"):
                net.forward_intermediates(images(), indices=indices)

    def test_other_formats(self, net):
        with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NHWC'"):
            net.forward_intermediates(images(), output_fmt="NHWC")

    @pytest.mark.parametrize("index", [0, 1, -2, -1])
    def test_prune(self, name, net, index):
        pruned = copy.deepcopy(net)
        want = taps_of(net, images())[index]
        kept = pruned.prune_intermediate_layers([index])
        assert kept == [index % len(net.feature_info)]
        assert_close(taps_of(pruned, images(), indices=kept), [want], atol=0, rtol=0)
        with torch.no_grad():
            assert_close(pruned(images()), want, atol=0, rtol=0)
        assert pruned.num_features == want.shape[1]
        assert len(list(pruned.parameters())) < len(list(net.parameters()))
        pruned.reset_classifier(3, "avg")
        assert pruned(images()).shape == (2, 3)

    def test_prune_may_leave_the_head(self, net):
        kept = copy.deepcopy(net)
        kept.prune_intermediate_layers(1, prune_head=False)
        assert_close(kept(images()), net(images()), atol=0, rtol=0)


class TestCheckpointing:
    def test_same_output_and_gradients(self, name):
        plain, frugal = twin(name).train(), twin(name).train()
        frugal.set_grad_checkpointing()
        outputs = [net(images()) for net in (plain, frugal)]
        assert_close(outputs[1], outputs[0], atol=0, rtol=0)
        for output in outputs:
            output.square().sum().backward()
        for p, q in zip(plain.parameters(), frugal.parameters(), strict=True):
            assert_close(q.grad, p.grad, atol=0, rtol=0)

    def test_stores_less(self, name):
        stored = []
        for frugal in (False, True):
            net = twin(name).train()
            net.set_grad_checkpointing(frugal)
            sizes: dict[int, int] = {}

            def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                output = net(images())
            stored.append(sum(sizes.values()))
            del output
        assert stored[1] < 0.8 * stored[0]


class TestFuse:
    def test_computes_the_same(self, exact):
        before = {key: value.clone() for key, value in exact.state_dict().items()}
        fused = exact.fuse()
        with torch.no_grad():
            for x in (images(), images(seed=3)[:, :, :51, :37]):
                got, want = fused(x.double()), exact(x.double())
                assert (got - want).abs().max() < 1e-10 * want.abs().max()
                assert not torch.equal(got, want), "nothing was folded"
        assert_close(dict(exact.state_dict()), before, atol=0, rtol=0)

    def test_taps_and_layouts_too(self, exact):
        x = images().double()
        fused = exact.to(memory_format=torch.channels_last).fuse()
        assert not fused.training
        for got, want in zip(taps_of(fused, x), taps_of(exact, x), strict=True):
            assert (got - want).abs().max() < 1e-10 * want.abs().max()

    def test_no_norm_is_left_where_it_folds(self, net):
        """Only between an involution and its activation there is no convolution to fold into."""
        fused = net.fuse()
        kinds = [type(module) for module in fused.modules()]
        assert kinds.count(nn.BatchNorm2d) == kinds.count(Involution2d)
        assert len(list(fused.parameters())) < len(list(net.parameters()))

    def test_timm_does_the_same_to_a_part(self, net):
        whole = nn.Sequential(net, nn.Flatten())
        with torch.no_grad():
            want = net.fuse()(images())
            assert_close(reparameterize_model(whole)(images()), want, atol=0, rtol=0)

    def test_state_dict_loads_into_another_one(self, name):
        fused, other = twin(name).fuse(), twin(name, seed=5).fuse()
        with torch.no_grad():
            assert not torch.allclose(other(images()), fused(images()))
            other.load_state_dict(fused.state_dict())
            assert_close(other(images()), fused(images()), atol=0, rtol=0)

    def test_is_a_network_like_any(self, net):
        fused = net.fuse()
        groups = group_parameters(fused, fused.group_matcher())
        assert sum(map(len, groups.values())) == len(list(fused.parameters()))
        assert fused.no_weight_decay() <= {key for key, _ in fused.named_parameters()}
        fused.train()(images()).square().sum().backward()
        assert all(p.grad.isfinite().all() for p in fused.parameters())
        fused.reset_classifier(3)
        assert fused(images()).shape == (2, 3)

    def test_refuses_training_mode(self, name):
        net = twin(name).train()
        if any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
            with pytest.raises(ValueError, match=r"evaluation mode.* call eval\(\) first"):
                net.fuse()

    def test_keeps_dtype(self, name):
        net = timm.create_model(name, **small(name), dtype=torch.bfloat16).eval()
        assert {p.dtype for p in net.fuse().parameters()} == {torch.bfloat16}


@pytest.mark.slow
def test_at_full_depth(name):
    """What depth could break: the others of a kind run with few blocks everywhere else."""
    net = twin(name, depths=depths(name)).double()
    fused, x = net.fuse(), images(3).double()
    with torch.no_grad():
        want = net(x)
        equal_up_to_rounding(torch.cat([net(image[None]) for image in x]), want)
        assert (fused(x) - want).abs().max() < 1e-10 * want.abs().max()


class TestStateDict:
    def test_round_trip(self, name, tmp_path):
        from volution import hub

        net = twin(name)
        hub.write_checkpoint(tmp_path / "net.safetensors", net.state_dict())
        again = twin(name, seed=5)
        with torch.no_grad():
            assert not torch.allclose(again(images()), net(images()))
            again.load_state_dict(hub.read_checkpoint(tmp_path / "net.safetensors"))
            assert_close(again(images()), net(images()), atol=0, rtol=0)

    def test_names_begin_with_children_in_order(self, net):
        firsts = dict.fromkeys(key.partition(".")[0] for key in net.state_dict())
        children = [key for key, child in net.named_children() if child.state_dict()]
        assert list(firsts) == children

    def test_copies_are_independent(self, net):
        other = copy.deepcopy(net)
        with torch.no_grad():
            next(other.parameters()).zero_()
            assert not torch.allclose(other(images()), net(images()))
            other.load_state_dict({f"backbone.{k}": v for k, v in net.state_dict().items()})
            assert_close(other(images()), net(images()), atol=0, rtol=0)


class CalledNamespaces(TorchDispatchMode):
    """Collects whose operators reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.namespace)
        return func(*args, **(kwargs or {}))
