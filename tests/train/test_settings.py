"""Each setting of a run does what it says, and all of them together survive an interruption."""

import math

import pytest
import small
import torch
from lightning.pytorch import Callback
from torch import nn

from volution import data, hub, infer, tasks
from volution.train import engine, fit, resume

# No batch statistics: what a batch does then is the mean of what its halves do.
NORMED_BY_LAYER = {
    "model": "convnext_atto",
    "model_args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]},
}
PLAIN_SGD = {
    "optimizer": "momentum",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
}


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=10)


def build(colours, tmp_path, **settings):
    return engine.Run.build(small.colour_run(colours, tmp_path / "run", **settings))


class Watch(Callback):
    """Keep copies of the weights: before the first step and after each."""

    def __init__(self):
        self.weights, self.steps, self.rates = [], 0, []

    def _copy(self, module):
        self.weights.append({k: p.detach().clone() for k, p in module.model.named_parameters()})

    def on_train_start(self, trainer, module):
        self._copy(module)

    def on_train_batch_start(self, trainer, module, batch, index):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.steps = trainer.global_step
        self._copy(module)


def watched(colours, out, **settings):
    watch = Watch()
    config = small.colour_run(colours, out, **{"epochs": 1, **settings})
    return watch, fit(config, show_progress=False, callbacks=[watch])


class TestMixing:
    def mixed(self, colours, tmp_path, **settings):
        module = build(colours, tmp_path, **settings).module
        module.on_train_epoch_start = lambda: None
        torch.manual_seed(0)
        images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 32, 32).clone()
        return module.objective.mix(images, torch.tensor([0, 1, 2, 0]))

    def test_mixup_blends_whole_images_with_their_labels(self, colours, tmp_path):
        images, targets = self.mixed(colours, tmp_path, mixup=1.0, label_smoothing=0.0)
        assert all(len(image.unique()) == 1 for image in images)
        share = 1 - images[0, 0, 0, 0].item() / 3  # of image 0 against image 3
        assert 0 < share < 1
        torch.testing.assert_close(targets[1], torch.tensor([0, share, 1 - share]))

    def test_cutmix_pastes_a_rectangle(self, colours, tmp_path):
        images, targets = self.mixed(colours, tmp_path, cutmix=1.0, label_smoothing=0.0)
        assert set(images[0].unique().tolist()) <= {0.0, 3.0}
        share = (images[1] == 1).float().mean()
        torch.testing.assert_close(targets[1], torch.stack([torch.tensor(0.0), share, 1 - share]))

    def test_labels_are_smoothed_as_without_mixing(self, colours, tmp_path):
        module = build(colours, tmp_path, mixup=1e-9, label_smoothing=0.3).module.eval()
        plain = build(colours, tmp_path, label_smoothing=0.3).module.eval()
        images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
        module.objective.mix.mixup_enabled = False
        ours, theirs = (m.objective(m, images.clone(), labels) for m in (module, plain))
        torch.testing.assert_close(ours, theirs)

    def test_a_batch_that_lost_an_image_is_still_mixed(self, tmp_path):
        images = small.colour_folder(tmp_path / "colours", per_class=5)
        small.break_image(images / "red" / "00.png")
        result = fit(
            small.colour_run(images, tmp_path / "run", mixup=0.8, batch_size=12),
            show_progress=False,
        )
        assert len(result.broken) == 1
        assert math.isfinite(result.history[-1]["train_loss"])


def test_gradients_are_shortened_to_the_norm_that_is_given(colours, tmp_path):
    lengths = []
    for name, clip in (("free", None), ("clipped", 0.01)):
        watch, _ = watched(
            colours, tmp_path / name, lr=0.5, clip_grad=clip, warmup_epochs=0, **PLAIN_SGD
        )
        before, after = watch.weights[:2]
        step = torch.cat([(after[k] - before[k]).flatten() for k in before])
        lengths.append(step.norm().item() / 0.5)
    assert lengths[0] > 0.1
    assert lengths[1] == pytest.approx(0.01, rel=1e-3)


def test_accumulated_batches_are_one_batch(colours, tmp_path):
    whole, _ = watched(colours, tmp_path / "whole", batch_size=8, **NORMED_BY_LAYER, **PLAIN_SGD)
    parts, _ = watched(
        colours, tmp_path / "parts", batch_size=4, accumulate=2, **NORMED_BY_LAYER, **PLAIN_SGD
    )
    assert whole.steps == parts.steps == 3
    for name, weight in whole.weights[-1].items():
        torch.testing.assert_close(parts.weights[-1][name], weight, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(w, whole.weights[0][k]) for k, w in whole.weights[-1].items())


def test_a_last_step_of_fewer_batches_is_their_mean(colours, tmp_path):
    settings = {**NORMED_BY_LAYER, **PLAIN_SGD}
    whole, _ = watched(colours, tmp_path / "whole", batch_size=24, **settings)
    # Three batches, where a step would have four.
    parts, _ = watched(colours, tmp_path / "parts", batch_size=8, accumulate=4, **settings)
    assert whole.steps == parts.steps == 1
    for name, weight in whole.weights[-1].items():
        torch.testing.assert_close(parts.weights[-1][name], weight, rtol=1e-4, atol=1e-6)


def test_the_schedule_counts_steps_not_batches(colours, tmp_path):
    settings = {"schedule": "linear", "warmup_epochs": 0, "epochs": 2}
    whole, _ = watched(colours, tmp_path / "whole", batch_size=8, **settings)
    parts, _ = watched(colours, tmp_path / "parts", batch_size=4, accumulate=2, **settings)
    assert parts.rates[::2] == pytest.approx(whole.rates)
    assert parts.rates[0] == parts.rates[1]


def test_earlier_layers_learn_more_slowly(colours, tmp_path):
    module = build(colours, tmp_path, layer_decay=0.5).module
    made = module.configure_optimizers()
    scales = {}
    for group in made["optimizer"].param_groups:
        for parameter in group["params"]:
            scales[parameter] = group["lr_scale"]
    net = module.model
    assert scales[net.head.fc.weight] == 1.0
    last, first = net.layer4[0].conv1.weight, net.layer1[0].conv1.weight
    assert scales[first] < scales[last] <= 0.5
    assert scales[net.stem[0].conv.weight] < scales[first]
    made["lr_scheduler"]["scheduler"].step_update(2)
    rates = {g["lr_scale"]: g["lr"] for g in made["optimizer"].param_groups}
    assert all(rate == pytest.approx(scale * rates[1.0]) for scale, rate in rates.items())


def test_the_history_shows_the_rate_before_layer_decay(colours, tmp_path):
    settings = {"epochs": 1, "schedule": "constant", "lr": 1e-3}
    _, result = watched(colours, tmp_path / "run", layer_decay=0.5, **settings)
    assert result.history[0]["lr"] == pytest.approx(1e-3)


class TestAverage:
    def test_it_is_what_the_formula_says_and_what_is_measured_and_kept(self, colours, tmp_path):
        watch, result = watched(
            colours, tmp_path / "run", ema_decay=0.7, model="rednet26", batch_size=4
        )
        average = watch.weights[0]
        for weights in watch.weights[1:]:
            average = {k: 0.7 * average[k] + 0.3 * weights[k] for k in average}
        kept = hub.read_checkpoint(result.best)
        for name, value in average.items():
            torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6)
        assert any(not torch.equal(kept[k], v) for k, v in watch.weights[-1].items())
        classifier = tasks.load_classifier(result.best)
        images = data.load(f"folder:{colours}").val
        found = infer.evaluate(classifier, images, show_progress=False)
        assert found.top1 == pytest.approx(result.best_top1)

    def test_it_moves_with_steps_not_with_batches(self, colours, tmp_path):
        watch, result = watched(
            colours, tmp_path / "run", ema_decay=0.7, batch_size=4, accumulate=3
        )
        average = watch.weights[0]
        for weights in watch.weights[3::3]:
            average = {k: 0.7 * average[k] + 0.3 * weights[k] for k in average}
        kept = hub.read_checkpoint(result.best)
        for name, value in average.items():
            torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6)


class TestSchedule:
    def rates(self, colours, tmp_path, **settings):
        module = build(colours, tmp_path, batch_size=8, **settings).module
        made = module.configure_optimizers()
        steps = len(module.loaders[0])
        assert steps == 3
        found = [made["optimizer"].param_groups[0]["lr"]]
        for step in range(1, module.config.epochs * steps):
            made["lr_scheduler"]["scheduler"].step_update(step)
            found.append(made["optimizer"].param_groups[0]["lr"])
        return found

    @pytest.mark.parametrize("schedule", ["cosine", "linear"])
    def test_warm_up_fall_and_cool_down(self, colours, tmp_path, schedule):
        rates = self.rates(
            colours,
            tmp_path,
            schedule=schedule,
            epochs=6,
            lr=1.0,
            warmup_epochs=1,
            warmup_lr=0.25,
            min_lr=0.1,
            cooldown_epochs=2,
        )
        assert rates[:3] == pytest.approx([0.25, 0.5, 0.75])
        falling = rates[3:12]
        assert falling == sorted(falling, reverse=True)
        assert falling[-1] > 0.1
        assert rates[12:] == pytest.approx([0.1] * 6)

    def test_the_warm_up_starts_at_a_hundredth(self, colours, tmp_path):
        rates = self.rates(colours, tmp_path, epochs=3, lr=1.0, warmup_epochs=1)
        assert rates[0] == pytest.approx(0.01)


def test_momentum_is_nesterovs(colours, tmp_path):
    module = build(colours, tmp_path, optimizer="sgd", momentum=0.8).module
    optimizer = module.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(group["momentum"] == 0.8 and group["nesterov"] for group in optimizer.param_groups)


def test_drop_path_reaches_the_network_and_no_checkpoint(colours, tmp_path):
    config = small.colour_run(
        colours,
        tmp_path / "run",
        epochs=1,
        drop_path_rate=0.3,
        model_args={"widths": [32, 32, 32, 32]},
    )
    run = engine.Run.build(config)
    assert run.classifier.model.layer4[0].drop_path.drop_prob == pytest.approx(0.3)
    loaded = tasks.load_classifier(fit(config, show_progress=False).best)
    assert isinstance(loaded.model.layer4[0].drop_path, nn.Identity)


def test_crops(colours, tmp_path):
    run = build(colours, tmp_path, crop_pct=0.5, crop_scale=0.08)
    assert run.classifier.input.crop_pct == 0.5
    (crop,) = (t for t in run.module.loaders[0].dataset.transform.transforms if hasattr(t, "scale"))
    assert crop.scale == (0.08, 1.0)


class TestPrecision:
    def seen(self, colours, tmp_path, precision):
        kinds = set()

        class Listen(Callback):
            def on_fit_start(self, trainer, module):
                for net in (module.model, module.average.module):
                    net.register_forward_hook(lambda net, args, out: kinds.add(out.dtype))

        config = small.colour_run(colours, tmp_path, epochs=1, precision=precision, ema_decay=0.5)
        result = fit(config, show_progress=False, callbacks=[Listen()])
        kept = hub.read_checkpoint(result.best)
        assert {t.dtype for t in kept.values() if t.is_floating_point()} == {torch.float32}
        assert math.isfinite(result.history[0]["train_loss"])
        return kinds

    def test_bf16_computes_in_bfloat16_and_keeps_float32(self, colours, tmp_path):
        assert self.seen(colours, tmp_path, "bf16") == {torch.bfloat16}

    def test_32_computes_in_float32(self, colours, tmp_path):
        assert self.seen(colours, tmp_path, "32") == {torch.float32}


class TestWeights:
    @pytest.fixture
    def saved(self, tmp_path):
        path = tmp_path / "start.safetensors"
        tasks.save_classifier(path, small.colour_classifier(("a", "b", "c", "d", "e")))
        return path

    def test_the_trunk_starts_from_the_file(self, colours, tmp_path, saved):
        fresh = build(colours, tmp_path).classifier.model.state_dict()
        net = build(colours, tmp_path, weights=saved).classifier.model.state_dict()
        stored = hub.read_checkpoint(saved)
        for name, value in net.items():
            expected = fresh if name.startswith("head.") else stored
            assert torch.equal(value, expected[name]), name

    def test_a_classifier_of_the_same_classes_is_taken(self, colours, tmp_path):
        path = tmp_path / "same.safetensors"
        tasks.save_classifier(path, small.colour_classifier())
        net = build(colours, tmp_path, weights=path).classifier.model
        assert torch.equal(net.head.fc.weight, hub.read_checkpoint(path)["head.fc.weight"])

    def test_another_architecture_is_refused(self, colours, tmp_path, saved):
        with pytest.raises(ValueError, match="does not fit rednet38"):
            build(colours, tmp_path, model="rednet38", weights=saved)

    def test_a_run_resumes_without_the_file(self, colours, tmp_path, saved):
        config = small.colour_run(colours, tmp_path / "run", epochs=1, weights=saved)
        fit(config, show_progress=False)
        saved.unlink()
        assert resume(config.folder, show_progress=False).history


class Stop(Exception):
    pass


class StopIn(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.current_epoch == self.epoch and index == 1:
            raise Stop


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_resumed_run_equals_an_unbroken_one_with_all_of_it_on(colours, tmp_path, precision):
    settings = {
        "epochs": 4,
        "batch_size": 4,
        "accumulate": 4,  # 6 batches an epoch: the last step is of 2
        "mixup": 0.8,
        "cutmix": 1.0,
        "clip_grad": 1.0,
        "layer_decay": 0.8,
        "ema_decay": 0.9,
        "min_lr": 1e-5,
        "warmup_epochs": 1,
        "cooldown_epochs": 1,
        "random_erasing": 0.25,
        "precision": precision,
    }
    whole = fit(small.colour_run(colours, tmp_path / "whole", **settings), show_progress=False)
    config = small.colour_run(colours, tmp_path / "broken", **settings)
    with pytest.raises(Stop):
        fit(config, show_progress=False, callbacks=[StopIn(epoch=2)])
    result = resume(config.folder, show_progress=False)
    assert [r["val_loss"] for r in result.history] == [r["val_loss"] for r in whole.history]
    last, other = (small.newest_state(r.folder)["state_dict"] for r in (result, whole))
    assert any(name.startswith("average.") for name in last)
    assert all(torch.equal(last[name], other[name]) for name in other)
    ours, theirs = (hub.read_checkpoint(r.best) for r in (result, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"cooldown_epochs": -1}, "cooldown_epochs must be at least 0, got -1"),
        ({"cooldown_epochs": 2}, "must be fewer than epochs = 2, got 2"),
        ({"mixup": -0.1}, "mixup must be at least 0, got -0.1"),
        ({"cutmix": float("nan")}, "cutmix must be at least 0, got nan"),
        ({"cutmix": 1.0, "batch_size": 7}, "batch_size must be even, got 7"),
        ({"clip_grad": 0.0}, "clip_grad must be above 0 and finite, got 0.0"),
        ({"layer_decay": 1.5}, "layer_decay must be above 0 and at most 1, got 1.5"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and below 1, got 1.0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        ({"crop_pct": 0.0}, "crop_pct must be above 0 and at most 1, got 0.0"),
        ({"crop_scale": 2.0}, "crop_scale must be above 0 and at most 1, got 2.0"),
        ({"warmup_lr": 1.0}, "warmup_lr must be from 0 to lr = 0.005, got 1.0"),
        ({"min_lr": -1.0}, "min_lr must be from 0 to lr = 0.005, got -1.0"),
        ({"min_lr": 1e-4, "schedule": "step"}, "go with schedule cosine or linear, got step"),
        ({"drop_path_rate": 1.0, "model_args": {}}, "drop_path_rate must be at least 0 and below"),
        ({"drop_path_rate": 0.1}, "drop_path_rate is given twice"),
    ],
)
def test_bad_settings_are_told_before_anything_is_written(colours, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        fit(small.colour_run(colours, tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()
