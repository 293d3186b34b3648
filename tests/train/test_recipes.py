"""The recipes that come with volution: read, checked, and held against what the authors did."""

import json
import math
import re
from dataclasses import replace

import networks
import pytest
import small
import timm
from lightning.pytorch import Callback
from timm.models import group_parameters

from volution import hub, models, tasks, train
from volution.cli import main
from volution.train.catalogue import read_recipe
from volution.train.config import find_config, read_config, recipes, write_config

HORNET = {
    "lr": 4e-3,
    "weight_decay": 0.05,
    "epochs": 300,
    "warmup_epochs": 20,
    "mixup": 0.8,
    "cutmix": 1.0,
    "ema_decay": 0.9999,
    "drop_path_rate": 0.2,
    "clip_grad": 100.0,
}
RESNET = {"random_erasing": 0.0, "auto_augment": None, "mixup": 0.0, "cutmix": 0.0,
          "ema_decay": None, "drop_path_rate": 0.0, "crop_scale": 0.08, "color_jitter": 0.0,
          "weight_decay": 1e-4, "momentum": 0.9}  # fmt: skip
# Images per step, and what the papers or their repositories say; of the last three, their own.
AUTHORS = {
    "hornet_imagenet": (4096, HORNET),
    "rednet_imagenet": (
        2048,
        {**RESNET, "lr": 0.8, "optimizer": "sgd", "epochs": 130, "warmup_epochs": 5,
         "warmup_lr": 0.2, "cooldown_epochs": 0, "min_lr": 0.0},
    ),
    "hornet_384_finetune": (
        512,
        {"lr": 5e-5, "weight_decay": 1e-8, "epochs": 30, "warmup_epochs": 0, "mixup": 0.0,
         "cutmix": 0.0, "ema_decay": 0.9999, "drop_path_rate": 0.4, "clip_grad": 1.0,
         "layer_decay": 0.837, "image_size": 384, "crop_pct": 1.0},
    ),
    "hornet_22k": (
        4096,
        {**HORNET, "weight_decay": 0.1, "epochs": 90, "warmup_epochs": 5, "ema_decay": None,
         "clip_grad": 5.0},
    ),
    "van_imagenet": (
        1024,
        {"lr": 1e-3, "weight_decay": 0.05, "epochs": 310, "cooldown_epochs": 10,
         "warmup_epochs": 5, "mixup": 0.8, "cutmix": 1.0, "ema_decay": None,
         "drop_path_rate": 0.1, "clip_grad": None},
    ),
    "transxnet_imagenet": (
        1024,
        {"lr": 2e-3, "weight_decay": 0.05, "epochs": 310, "cooldown_epochs": 10,
         "warmup_epochs": 5, "mixup": 0.8, "cutmix": 1.0, "ema_decay": 0.9998,
         "drop_path_rate": 0.1, "clip_grad": None, "sync_bn": True},
    ),
    "xvolution_resnet_imagenet": (
        256,
        {**RESNET, "lr": 0.1, "optimizer": "momentum", "epochs": 100, "label_smoothing": 0.0},
    ),
    "distill": (
        1024,
        {"teacher": "regnety_160.deit_in1k", "distill": "hard", "distill_alpha": 0.5, "lr": 5e-4,
         "lr_base_batch": 512, "epochs": 300, "warmup_epochs": 5, "mixup": 0.8, "cutmix": 1.0,
         "repeats": 3, "drop_path_rate": 0.1, "ema_decay": None},
    ),
    "digits": (64, {"random_erasing": 0.0, "auto_augment": None, "data": "digits"}),
    "finetune": (
        256,
        {"pretrained": True, "layer_decay": 0.85, "lr": 2e-4, "random_erasing": 0.1,
         "ema_decay": 0.998},
    ),
}  # fmt: skip
EVERYWHERE = {"optimizer": "adamw", "schedule": "cosine", "label_smoothing": 0.1,
              "random_erasing": 0.25, "auto_augment": "rand-m9-mstd0.5-inc1"}  # fmt: skip


@pytest.fixture(params=sorted(recipes()))
def recipe(request):
    return request.param


def test_no_recipe_is_left_out_here():
    assert set(recipes()) == set(AUTHORS)


def test_the_settings_are_valid_and_the_authors(recipe):
    config = read_config(recipes()[recipe])
    config.check()
    batch, settings = AUTHORS[recipe]
    assert config.images_per_step == batch
    for name, value in {**EVERYWHERE, **settings}.items():
        assert getattr(config, name) == value, name


def test_layers_slow_down_as_in_the_authors_groups_of_two_blocks():
    config = read_config(recipes()["hornet_384_finetune"])
    assert config.layer_decay**2 == pytest.approx(0.7, abs=1e-3)
    net = tasks.create_model(config.model, model_args={"device": "meta"})
    groups = group_parameters(net, net.group_matcher(), reverse=True)
    blocks = [f"stage3.{i}.gamma1" for i in (4, 6)]
    assert [groups[b] - groups[blocks[0]] for b in blocks] == [0, 2]


def test_the_network_exists_and_takes_its_settings(recipe):
    config = read_config(recipes()[recipe])
    assert timm.is_model(config.model)
    rate = config.drop_path_rate or 0.0
    args = {**config.model_args, "drop_path_rate": rate, "device": "meta"}
    net = tasks.create_model(config.model, num_classes=5, model_args=args)
    rates = [getattr(module, "drop_prob", 0.0) for module in net.modules()]
    assert max(rates) == pytest.approx(rate)


def test_the_learning_rate_is_the_authors_at_their_number_of_images(recipe):
    config = read_config(recipes()[recipe])
    if recipe in ("digits", "finetune", "distill"):
        return
    assert (config.lr_scaling, config.lr_base_batch) == ("linear", AUTHORS[recipe][0])
    assert config.scaled_lr == pytest.approx(AUTHORS[recipe][1]["lr"])
    twice = replace(config, accumulate=2 * config.accumulate)
    assert twice.scaled_lr == pytest.approx(2 * config.lr)


def test_the_first_lines_say_what_it_reproduces(recipe):
    text = recipes()[recipe].read_text(encoding="utf-8")
    about = text.partition("model:")[0]
    assert all(line.startswith("#") for line in about.splitlines())
    for words in (f"{AUTHORS[recipe][0]} images per step", "GPUs", f"--config {recipe}"):
        assert words in about
    found = read_recipe(recipes()[recipe])
    published = recipe not in ("digits", "finetune")
    assert found.reproduces.startswith("nothing published") is not published
    assert bool(found.arxiv) is published
    cfg = timm.get_pretrained_cfg(found.config.model)
    if published and recipe != "distill":
        assert f"arXiv:{found.arxiv}" == cfg.paper_ids


def test_a_reported_accuracy_is_called_reported_and_is_the_models(recipe):
    found = read_recipe(recipes()[recipe]).reported_top1
    assert not found or found.endswith("(as reported by the authors, not measured here)")
    numbers = dict(re.findall(r"(\w+) (\d\d\.\d+)", found))
    assert numbers == {name: str(models.reported_top1(name)) for name in numbers}
    if recipe in ("rednet_imagenet", "hornet_imagenet", "van_imagenet", "transxnet_imagenet"):
        family = recipe.partition("_")[0]
        known = models.list_models(f"{family}_*" if family != "rednet" else "rednet*")
        assert set(numbers) == {name for name in known if models.reported_top1(name)}


def test_a_recipe_that_says_nothing_of_its_purpose_is_refused(tmp_path):
    (tmp_path / "mute.yaml").write_text("# Reproduces: nothing\nepochs: 3\n")
    with pytest.raises(ValueError, match="must say '# Paper: "):
        read_recipe(tmp_path / "mute.yaml")


class StopAfterTwo(Callback):
    """End a run after two steps of the optimizer."""

    steps = 0

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.steps = trainer.global_step
        trainer.should_stop = self.steps >= 2


def smoke(recipe, tmp_path, colours):
    """The recipe on a narrow, shallow twin and tiny images, two batches of four to a step."""
    config = read_config(recipes()[recipe])
    shape = {"depths": [1, 1, 1, 1], "widths": networks.narrow(config.model)}
    teacher = None
    if config.teacher is not None:
        teacher = str(tmp_path / "teacher.safetensors")
        tasks.save_classifier(teacher, small.colour_classifier())
    return replace(
        config,
        model_args={**config.model_args, **shape},
        data=f"folder:{colours}",
        out=tmp_path / "run",
        teacher=teacher,
        pretrained=False,
        image_size=32,
        batch_size=4,
        accumulate=2,
        lr_base_batch=8,
        workers=0,
        device="cpu",
    )


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=8)


def test_it_trains_two_steps(recipe, tmp_path, colours):
    stop = StopAfterTwo()
    config = smoke(recipe, tmp_path, colours)
    result = train.fit(config, show_progress=False, callbacks=[stop])
    assert stop.steps == 2
    kept = hub.read_checkpoint(result.best)
    assert all(tensor.isfinite().all() for tensor in kept.values() if tensor.is_floating_point())
    assert math.isfinite(result.history[0]["val_loss"])


class TestList:
    def test_every_recipe_is_shown_with_what_it_reproduces(self, capsys):
        assert main(["recipes", "--json"]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert set(rows) == set(recipes())
        row = rows["rednet_imagenet"]
        assert (row["images_per_step"], row["epochs"], row["arxiv"]) == (2048, 130, "2103.06255")
        assert (row["reported_of_model"], row["measured_here"]) == (78.35, False)
        assert rows["digits"]["reported_of_model"] is None

    def test_the_table_says_that_it_is_reported(self, capsys, monkeypatch):
        monkeypatch.setattr("volution._support.console.out.width", 200)
        assert main(["recipes"]) == 0
        shown = capsys.readouterr().out
        assert "as reported by the authors, not measured here" in " ".join(shown.split())
        assert all(name in shown for name in recipes())


def test_a_recipe_survives_being_written(recipe, tmp_path):
    config = read_config(recipes()[recipe])
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


class TestByName:
    def test_the_command_finds_it_and_options_come_after(self, monkeypatch, capsys):
        seen = []
        monkeypatch.setattr(train, "fit", lambda config, **_: seen.append(config) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["train", "--config", "van_imagenet", "--data=digits", "--lr=0.5"])
        (config,) = seen
        assert (config.model, config.epochs, config.data, config.lr) == (
            "van_b0", 310, "digits", 0.5,
        )  # fmt: skip

    def test_a_file_comes_before_a_recipe_of_its_name(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "van_imagenet").write_text("epochs: 3\n")
        assert read_config(find_config("van_imagenet")).epochs == 3

    def test_an_unknown_name_gets_the_nearest(self, capsys):
        assert main(["train", "--config=van_imagnet"]) == 2
        assert "unknown config 'van_imagnet'; nearest: van_imagenet" in capsys.readouterr().err
