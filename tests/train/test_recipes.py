"""The recipes that come with volution: read, checked, and held against what the authors did."""

import pytest
import timm
from timm.models import group_parameters

from volution import tasks, train
from volution.cli import main
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
AUTHORS = {
    "hornet_imagenet": (4096, HORNET),
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
         "drop_path_rate": 0.1, "clip_grad": None},
    ),
    "xvolution_resnet_imagenet": (
        256,
        {"lr": 0.1, "optimizer": "momentum", "momentum": 0.9, "weight_decay": 1e-4, "epochs": 100,
         "label_smoothing": 0.0, "random_erasing": 0.0, "auto_augment": None, "mixup": 0.0,
         "cutmix": 0.0, "ema_decay": None, "drop_path_rate": 0.0, "crop_scale": 0.08},
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
    assert config.batch_size * config.accumulate == batch
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
    args = {**config.model_args, "drop_path_rate": config.drop_path_rate, "device": "meta"}
    net = tasks.create_model(config.model, num_classes=5, model_args=args)
    rates = [getattr(module, "drop_prob", 0.0) for module in net.modules()]
    assert max(rates) == pytest.approx(config.drop_path_rate)


def test_the_first_lines_say_what_it_reproduces(recipe):
    about = recipes()[recipe].read_text(encoding="utf-8").partition("model:")[0]
    assert all(line.startswith("#") for line in about.splitlines())
    batch, _ = AUTHORS[recipe]
    for words in (
        "arXiv 2",
        "Reproduces",
        f"{batch} images per step",
        "GPUs",
        f"--config {recipe}",
    ):
        assert words in about


def test_a_reported_accuracy_is_called_reported(recipe):
    text = recipes()[recipe].read_text(encoding="utf-8")
    if any(char.isdigit() for char in text.partition("Top-1")[2][:80]):
        assert "as reported by the authors" in " ".join(text.replace("#", " ").split())


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
