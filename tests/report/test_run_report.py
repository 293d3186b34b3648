"""The page of a run: whole, broken off, without its data; many classes; the families' pictures."""

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout

import networks
import pytest
import small
import torch
from lightning.pytorch import Callback
from pages import check_self_contained
from PIL import Image

from volution.cli import main
from volution.data import InputConfig
from volution.report import Page, family, parts, write_run_report
from volution.train import fit

# What markup, mathematics and fonts without such letters would stumble over.
NAMES = {"blue": "<b>blue & $x_1$", "green": "みどり", "red": "a red that is 'long' " * 2}


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    root = small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=10)
    for old, new in NAMES.items():
        (root / old).rename(root / new.strip())
    return root


def words(colours, folder, **more):
    settings = {"epochs": 2, "batch_size": 8, "image_size": 32, "device": "cpu", "lr": 5e-3, **more}
    return ["train", f"--data=folder:{colours}", f"--out={folder}",
            f"--model_args={json.dumps(small.WIDTHS)}",
            *(f"--{name}={value}" for name, value in settings.items())]  # fmt: skip


@pytest.fixture(scope="module")
def trained(colours, tmp_path_factory):
    """A run from the command line, and what the command said."""
    folder = tmp_path_factory.mktemp("runs") / "one & only"
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(io.StringIO()):
        assert main(words(colours, folder)) == 0
    return folder, said.getvalue()


def test_training_ends_with_a_page(trained):
    folder, said = trained
    page = folder / "report.html"
    assert str(page) in said
    html = page.read_text(encoding="utf-8")
    reader = check_self_contained(html)
    # Curves, schedule, six worst and six best of six images, confusion, kernels, field.
    assert len(reader.loaded) == 2 + 12 + 3
    for title in (
        "How it learned",
        "What it says",
        "Where it errs",
        "Class by class",
        "What involution does",
        "What it sees",
        "Use it",
        "Settings",
        "Made with",
    ):
        assert f"<h2>{title}</h2>" in html
    assert "&lt;b&gt;blue &amp; $x_1$" in html
    assert "<b>" not in html
    assert "みどり" in html
    assert "finished, after 2 epochs" in html
    best = max(float(row.split(",")[4]) for row in
               (folder / "metrics.csv").read_text().splitlines()[1:])  # fmt: skip
    assert f"<dd>{best:.2%}" in html


def test_the_page_is_not_made_again_for_nothing(trained, colours, capsys):
    folder, _ = trained
    before = (folder / "report.html").stat().st_mtime_ns
    assert main(words(colours, folder)) == 0
    assert (folder / "report.html").stat().st_mtime_ns == before
    assert main(["report", str(folder), "--samples=2", "--device=cpu"]) == 0
    assert capsys.readouterr().out.endswith(f"open {folder}/report.html in a browser\n")
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert len(check_self_contained(html).loaded) == 2 + 4 + 3


class PowerCut(Exception):
    pass


class CutPower(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.current_epoch == self.epoch:
            raise PowerCut


def test_a_run_that_was_broken_off(colours, tmp_path):
    config = small.colour_run(colours, tmp_path / "run", epochs=3)
    with pytest.raises(PowerCut):
        fit(config, show_progress=False, callbacks=[CutPower(epoch=0)])
    html = write_run_report(config.folder, show_progress=False).read_text(encoding="utf-8")
    reader = check_self_contained(html)
    assert len(reader.loaded) == 2
    assert "broken off, after 0 of 3 epochs" in html
    assert "There are no weights yet" in html
    assert "<h2>Use it</h2>" not in html


def test_a_run_whose_data_is_gone(trained, colours, tmp_path):
    folder, _ = trained
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.yaml", "metrics.csv", "best.safetensors"):
        text = (folder / name).read_bytes()
        (copy / name).write_bytes(text.replace(str(colours).encode(), b"/nowhere/colours"))
    html = write_run_report(copy, show_progress=False).read_text(encoding="utf-8")
    check_self_contained(html)
    assert "could not be looked at: data folder /nowhere/colours does not exist" in html
    assert "<h2>Settings</h2>" in html


def test_runs_that_cannot_be_shown(trained, tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"volution: error: no run at {tmp_path}")
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.yaml").write_bytes((trained[0] / "config.yaml").read_bytes())
    (copy / "metrics.csv").write_text("epoch,val_top1\n1,much\n")
    with pytest.raises(ValueError, match=r"metrics.csv is not a table of numbers"):
        write_run_report(copy)
    (copy / "metrics.csv").write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"metrics.csv has no column val_top1, seconds"):
        write_run_report(copy)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        write_run_report(trained[0], samples=0)
    assert not (copy / "report.html").exists()


def test_a_report_that_fails_is_no_failure_of_the_training(colours, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(words(colours, tmp_path / "run", epochs=1)) == 0
    captured = capsys.readouterr()
    assert "best top-1" in captured.out
    assert "no report: matplotlib is not installed; run: pip install 'volution[analysis]'" in (
        captured.err
    )
    assert f"volution report {tmp_path / 'run'}" in captured.err


def test_a_thousand_classes_are_readable():
    names = [f"class {i}" for i in range(1000)]
    confusion = 50 * torch.eye(1000, dtype=torch.long)
    confusion[3, 7], confusion[3, 3] = 20, 30
    confusion[5, 5] = confusion[6, 6] = 0
    confusion[5, 6] = 50
    page = Page("t", "l")
    parts.add_confusion(page, confusion, names)
    parts.add_classes(page, confusion, names)
    html = page.html()
    assert check_self_contained(html).loaded == []
    assert "70 mistakes in 49,950" in html
    rows = re.findall(r"<tr><td>class (\d+)</td>", html)
    # Pairs, most frequent first; then classes, worst first, each of them that has images.
    assert rows[:2] == ["5", "3"]
    assert rows[2:4] == ["5", "3"]
    assert len(rows) == 2 + 999
    assert "the other 979 classes" in html
    assert "1 class has no image here" in html


def test_no_mistake_at_all():
    page = Page("t", "l")
    parts.add_confusion(page, torch.eye(40, dtype=torch.long), [str(i) for i in range(40)])
    assert "No mistake in 40" in page.html()


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("van_b0", "What large-kernel attention does"),
        ("hornet_tiny_7x7", "The widest filters"),
        ("transxnet_t", "The widest filters"),
        ("xvolution_resnet34", "What X-volution does"),
    ],
)
def test_every_family_has_its_picture(name, title):
    net = networks.twin(name)
    page = Page("t", "l")
    family.add_kernels(page, net, networks.images(1)[0], Image.new("RGB", (64, 64)))
    html = page.html()
    assert len(check_self_contained(html).loaded) == 1
    assert f"<h2>{title}</h2>" in html
    assert ("mixes for each image" in html) == (name == "transxnet_t")


def test_networks_without_maps_and_filters_have_no_picture():
    import timm

    net = timm.create_model("test_vit", num_classes=3).eval()
    page, image = Page("t", "l"), Image.new("RGB", (160, 160))
    pixels = torch.zeros(1, 3, 160, 160)
    family.add_kernels(page, net, pixels[0], image)
    family.add_receptive_field(page, net, pixels, image)
    assert "<section>" not in page.html()


@pytest.mark.parametrize(("side", "kind"), [(8, "image/png"), (300, "image/jpeg")])
def test_thumbnails_show_what_the_network_saw(side, kind):
    inputs = InputConfig(3, side, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    colour = torch.tensor([200, 100, 50]) / 255
    pixels = (colour - torch.tensor(inputs.mean)) / torch.tensor(inputs.std)
    image = parts.picture_of(pixels.view(3, 1, 1).expand(3, side, side), inputs)
    assert image.getpixel((0, 0)) == (200, 100, 50)
    photo = parts.photo(image, "cat", "cow", 0.75, "loss 3.00")
    assert photo.kind == kind
    assert photo.head == "✗ cow"
    assert photo.remark == "is cat; 75% sure, loss 3.00"
    small_image = Image.open(io.BytesIO(photo.data))
    assert small_image.size == (176, 176)
    assert small_image.getpixel((80, 80)) == pytest.approx((200, 100, 50), abs=3)
