"""Reported against measured: the statistics, and the command."""

import json
from dataclasses import replace

import pytest
import small
import torch

from volution import data, infer, tasks
from volution.cli import main
from volution.tasks import Accuracy


def measured(right, count):
    accuracy = Accuracy(2)
    accuracy.confusion[0, 0], accuracy.confusion[0, 1] = right, count - right
    return infer.Evaluation(count, right / count, 1.0, 1.0, accuracy.confusion)


@pytest.mark.parametrize(
    ("name", "share", "rounding"),
    [
        ("van_b0", 0.754, 0.0005),
        ("van_b0.in1k", 0.754, 0.0005),
        ("rednet50", 0.7835, 0.00005),
        ("hornet_tiny_gf", 0.83, 0.0005),
    ],
)
def test_what_is_reported_and_how_finely(name, share, rounding):
    assert infer.reported_share(name) == pytest.approx((share, rounding))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("van_b5", "the authors of van_b5 report no ImageNet-1k top-1"),
        ("hornet_tiny_gf.in22k", "report no ImageNet-1k top-1"),
        ("xvolution_resnet50", "report no ImageNet-1k top-1"),
        ("van_b00", "unknown network of volution 'van_b00'; nearest: van_b0"),
        ("resnet50", "unknown network of volution 'resnet50'"),
    ],
)
def test_networks_that_have_no_reported_figure(name, message):
    with pytest.raises(ValueError, match=message):
        infer.reported_share(name)


@pytest.mark.parametrize(
    ("right", "passed"),
    # 75.4 % of 50,000 are 37,700; two standard errors are 0.39 points, rounding 0.05.
    [(37_700, True), (37_510, True), (37_890, True), (37_470, False), (37_930, False)],
)
def test_a_difference_counts_when_chance_and_rounding_do_not_explain_it(right, passed):
    found = infer.verify("van_b0", measured(right, 50_000))
    assert found.passed is passed
    assert found.difference == pytest.approx(right / 50_000 - 0.754)


def test_rounding_widens_what_is_accepted():
    found = infer.verify("van_b0", measured(37_490, 50_000))
    assert found.passed
    assert not replace(found, rounding=0.0).passed


def test_few_images_prove_little():
    assert infer.verify("van_b0", measured(3, 6)).passed
    assert not infer.verify("van_b0", measured(3, 60)).passed


class TestCommand:
    def call(self, capsys, *words):
        code = main(["verify", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def test_it_measures_and_compares(self, capsys, tmp_path):
        torch.manual_seed(1)
        weights = tmp_path / "net.safetensors"
        tasks.save_classifier(weights, small.colour_classifier())
        colours = small.colour_folder(tmp_path / "colours", per_class=10)
        words = ["rednet26", f"--data=folder:{colours}", f"--checkpoint={weights}"]
        code, text, _ = self.call(capsys, *words, "--json")
        found = json.loads(text)
        images = data.load(f"folder:{colours}").val
        by_hand = infer.evaluate(tasks.load_classifier(weights), images, show_progress=False)
        assert found["measured_top1"] == by_hand.top1
        assert found["reported_top1"] == pytest.approx(0.7596)
        assert found["passed"] is (by_hand.interval[1] >= 0.75955)
        assert code == (0 if found["passed"] else 1)
        shown = self.call(capsys, *words)
        assert shown[0] == code
        assert "reported top-1  75.96%" in shown[1]
        assert f"measured top-1  {by_hand.top1:.2%}" in shown[1]

    def test_what_cannot_be_verified_is_said_before_work(self, capsys, tmp_path):
        colours = small.colour_folder(tmp_path / "colours", per_class=2)
        place = f"--data=folder:{colours}"
        code, _, errors = self.call(capsys, "van_b6", place)
        assert (code, "report no ImageNet-1k top-1" in errors) == (2, True)
        code, _, errors = self.call(capsys, "rednet26", place)
        assert (code, "https://github.com/d-li14/involution" in errors) == (2, True)
        code, _, errors = self.call(capsys, "van_b0", "--data=folder:nowhere")
        assert (code, "does not exist" in errors) == (2, True)
        code, _, errors = self.call(capsys, "van_b0", place, f"--checkpoint={tmp_path}/none.pth")
        assert (code, "no checkpoint at" in errors) == (2, True)
