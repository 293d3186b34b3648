"""Measuring: calibration and intervals against other implementations, sizes, the command."""

import json

import numpy as np
import pytest
import small
import torch
from greys import brightness, greys
from scipy.stats import binomtest
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassCalibrationError

from volution import data, infer, tasks
from volution.cli import main


class TestCalibration:
    def test_it_agrees_with_torchmetrics(self):
        logits, labels = 2 * torch.randn(400, 6), torch.randint(6, (400,))
        ours = infer.Calibration()
        for part in (slice(0, 150), slice(150, 150), slice(150, 400)):
            ours.update(logits[part], labels[part])
        theirs = MulticlassCalibrationError(6, n_bins=15, norm="l1")(logits.softmax(1), labels)
        assert ours.ece == pytest.approx(float(theirs), abs=1e-6)
        assert ours.nll == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-6)
        assert ours.count == 400

    def test_confidences_on_the_border_belong_to_the_lower_bin(self):
        ours = infer.Calibration()
        ours.update(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([0]))  # a third: bin 5 of 15
        ours.update(torch.tensor([[900.0, 0.0, 0.0]]), torch.tensor([0]))  # certain: the last
        assert ours.bins[:, 0].nonzero().flatten().tolist() == [4, 14]

    def test_of_nothing_it_is_not_a_number(self):
        assert np.isnan([infer.Calibration().ece, infer.Calibration().nll]).all()


@pytest.mark.parametrize(("right", "count"), [(0, 7), (3, 6), (10, 10), (37_700, 50_000)])
def test_the_interval_is_wilsons(right, count):
    low, high = infer.wilson_interval(right / count, count)
    theirs = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert np.isnan(infer.wilson_interval(float("nan"), 0)).all()


def test_classes_calibration_and_interval_of_known_answers():
    images = greys([30, 90, 150, 220, 35, 95], [0, 1, 2, 3, 1, 1])
    found = infer.evaluate(brightness(), images, batch_size=4, show_progress=False)
    assert found.top1 == 5 / 6
    right = found.per_class
    assert right.tolist() == [1.0, pytest.approx(2 / 3), 1.0, 1.0]
    logits = brightness().model(torch.tensor([30, 90, 150, 220, 35, 95.0]).view(6, 1, 1, 1).expand(
        -1, -1, 8, 8) / 255)  # fmt: skip
    assert found.nll == pytest.approx(float(cross_entropy(logits, torch.tensor(images.labels))))
    assert found.bins[:, 0].sum() == 6
    assert found.interval == infer.wilson_interval(5 / 6, 6)
    assert found.standard_error == pytest.approx((5 / 6 * 1 / 6 / 6) ** 0.5)


def test_a_class_without_images_has_no_accuracy():
    found = infer.evaluate(brightness(), greys([30, 90], [0, 1]), show_progress=False)
    assert found.per_class[:2].tolist() == [1, 1]
    assert found.per_class[2:].isnan().all()


def test_outputs_that_are_no_numbers_are_not_measured():
    with pytest.raises(ValueError, match="outputs are not finite"):
        infer.evaluate(brightness(sharpness=float("nan")), greys([9], [0]), show_progress=False)


def test_a_batch_without_a_readable_image_changes_nothing(tmp_path):
    colours = small.colour_folder(tmp_path / "colours", per_class=2)
    bad = [small.break_image(colours / "blue" / f"0{i}.png") for i in range(2)]
    paths = [*bad, *sorted((colours / "red").iterdir())]
    grey = data.ImageFiles(paths, [0, 1, 2, 2], channels=1)
    found = infer.evaluate(brightness(), grey, batch_size=2, show_progress=False)
    alone = data.ImageFiles(paths[2:], [2, 2], channels=1)
    assert found.count == 2
    assert len(found.broken) == 2
    assert found.nll == infer.evaluate(brightness(), alone, show_progress=False).nll


class TestSizes:
    def test_every_size_is_measured_as_if_alone(self):
        images = greys([30, 90, 150, 220], [0, 1, 2, 2])
        swept = infer.evaluate_sizes(brightness(), images, [4, 16], show_progress=False)
        assert [result.size for result in swept] == [4, 16]
        assert [result.evaluation.top1 for result in swept] == [0.75, 0.75]

    def test_the_network_sees_the_size(self):
        seen = []
        classifier = brightness()
        classifier.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[2:]))
        infer.evaluate_sizes(classifier, greys([30], [0]), [6, 12], show_progress=False)
        assert {tuple(shape) for shape in seen} == {(6, 6), (12, 12)}

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ([8, 3], r"sizes: brightness does not take images of 3 by 3: images must be at least"),
            ([8, 0], "sizes must be at least 1, got 0"),
            ([8, 8], "sizes must differ, got 8, 8"),
            ([], "at least one size"),
        ],
    )
    def test_sizes_that_cannot_be_are_refused_before_an_image_is_read(self, sizes, message):
        class Unread(data.ImageArrays):
            def open(self, index):
                raise AssertionError("an image was read")

        images = Unread(np.zeros((1, 8, 8), np.uint8), [0])
        with pytest.raises(ValueError, match=message):
            infer.evaluate_sizes(brightness(), images, sizes, show_progress=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("eval")
    torch.manual_seed(1)
    tasks.save_classifier(root / "net.safetensors", small.colour_classifier())
    small.colour_folder(root / "colours", per_class=4)
    return root


class TestCommand:
    def call(self, capsys, place, *words, checkpoint="net.safetensors"):
        words = ["eval", str(place / checkpoint), f"--data=folder:{place / 'colours'}", *words]
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def test_json_has_everything(self, capsys, place):
        code, text, _ = self.call(capsys, place, "--json", "--sizes=32,64")
        found = json.loads(text)
        assert code == 0
        assert {row["name"]: row["count"] for row in found["per_class"]} == {
            "blue": 1, "green": 1, "red": 1,
        }  # fmt: skip
        assert sum(cell["times"] for cell in found["confusion"]) == found["count"] == 3
        assert [row["size"] for row in found["sizes"]] == [32, 64]
        assert found["sizes"][0]["top1"] == found["top1"]
        low, high = found["top1_interval"]
        assert low < found["top1"] < high or found["top1"] in (low, high)
        assert 0 <= found["ece"] <= 1 < found["nll"] + 1

    def test_tables_name_the_worst_classes_first(self, capsys, place):
        code, text, _ = self.call(capsys, place)
        assert code == 0
        lines = text.splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("class"))
        shares = [float(line.split()[-1]) for line in lines[start + 1 : start + 4]]
        assert shares == sorted(shares)
        assert "95 % interval" in text
        assert "calibration error" in text

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("--sizes=12x", "sizes must be written like 160,192,224, got 12x"),
            ("--sizes=0", "sizes must be at least 1, got 0"),
            ("--batch-size=0", "batch_size must be at least 1, got 0"),
            ("--workers=-1", "workers must be at least 0, got -1"),
        ],
    )
    def test_bad_options(self, capsys, place, word, message):
        code, text, errors = self.call(capsys, place, word)
        assert (code, text) == (2, "")
        assert message in errors

    def test_weights_without_names_take_those_of_the_data(self, capsys, place):
        net = tasks.create_model("resnet10t", num_classes=3)
        torch.save(net.state_dict(), place / "bare.pth")
        # The file does not say its classes, so the network's own thousand are assumed.
        code, _, errors = self.call(capsys, place, "--model=resnet10t", checkpoint="bare.pth")
        assert code == 2
        assert "does not fit resnet10t" in errors
        grown = tasks.create_model("resnet10t")
        torch.save(grown.state_dict(), place / "grown.pth")
        code, _, errors = self.call(capsys, place, "--model=resnet10t", checkpoint="grown.pth")
        assert code == 2
        assert "tells 1000 classes apart" in errors


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_are_measured_as_their_folder_is(tmp_path, workers):
    colours = small.colour_folder(tmp_path / "colours", per_class=10)
    folder = data.load(f"folder:{colours}")
    data.write_shards(folder, tmp_path / "shards", max_count=4, show_progress=False)
    torch.manual_seed(1)
    classifier = small.colour_classifier()
    settings = {"batch_size": 4, "workers": workers, "show_progress": False}
    found, expected = (
        infer.evaluate(classifier, images.val, **settings)
        for images in (data.load(f"wds:{tmp_path / 'shards'}"), folder)
    )
    assert found.count == expected.count == 6
    assert torch.equal(found.confusion, expected.confusion)
    assert found.nll == pytest.approx(expected.nll, rel=1e-6)
