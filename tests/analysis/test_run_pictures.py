"""Pictures of a run: curves, schedule, receptive field, filters."""

import io
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import nn

from volution import analysis
from volution.ops import IDConv

ROW = {"train_loss": 1.0, "val_loss": 0.8, "val_top1": 0.6}
NAN = float("nan")


def paths(picture):
    """The points of every line that is drawn as a path."""
    root = ElementTree.parse(io.BytesIO(picture)).getroot()
    return [node.get("d", "") for node in root.iter("{http://www.w3.org/2000/svg}path")]


def test_curves_of_a_run_that_measured_nothing():
    steps = [{"epoch": 0.1 * i, "train_loss": 1.0 / i} for i in range(1, 5)]
    with_steps = analysis.curves_picture([], steps=steps)
    assert any(path.count("L") == 3 for path in paths(with_steps))
    analysis.curves_picture([{"epoch": 1, **ROW, "val_top1": NAN, "val_loss": NAN}])
    with pytest.raises(ValueError, match="at least one epoch"):
        analysis.curves_picture([])


def test_long_runs_have_small_pictures():
    rows = [{"epoch": i / 100, "lr": 1.0, "train_loss": 2.0} for i in range(1, 30_001)]
    assert len(analysis.schedule_picture(rows)) < 40_000
    assert len(analysis.curves_picture([], steps=rows)) < 80_000


def test_the_schedule_needs_a_row():
    with pytest.raises(ValueError, match="at least one row"):
        analysis.schedule_picture([])


@pytest.mark.filterwarnings("error")
def test_names_of_classes_are_text():
    confusion = torch.tensor([[2, 3], [0, 5]])
    plain = analysis.confusion_picture(confusion, ["$a_1$", "50 $"])
    assert plain.startswith(b"<?xml")
    # Letters that the font of the pictures has not are left to the reader's fonts.
    foreign = analysis.confusion_picture(confusion, ["みどり", "あか"])
    assert "みどり" in foreign.decode()


class Features(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.train()

    def forward_features(self, x):
        return self.layer(x)


def test_the_receptive_field_of_a_convolution_is_its_window():
    conv = nn.Conv2d(3, 4, 3, padding=2, dilation=2)
    with torch.no_grad():
        conv.bias.fill_(100.0)  # nothing is clipped
    net = Features(conv)
    field = analysis.effective_receptive_field(net, torch.randn(2, 3, 9, 9))
    assert field.shape == (9, 9)
    assert field.max() == 1
    seen = {tuple(place) for place in field.nonzero().tolist()}
    assert seen == {(row, column) for row in (2, 4, 6) for column in (2, 4, 6)}
    assert net.training
    assert analysis.receptive_field_picture(field).startswith(b"<?xml")


def test_networks_without_a_receptive_field():
    with pytest.raises(ValueError, match=r"maps \(N, C, H, W\) as features, got \(1, 12\)"):
        analysis.effective_receptive_field(Features(nn.Flatten()), torch.zeros(1, 3, 2, 2))
    deaf = nn.Conv2d(3, 4, 1)
    nn.init.zeros_(deaf.weight)
    with pytest.raises(ValueError, match="do not depend on the images"):
        analysis.effective_receptive_field(Features(deaf), torch.zeros(1, 3, 4, 4))


def test_filters_made_for_an_image_go_before_learned_ones():
    net = nn.Sequential(nn.Conv2d(8, 8, 9, groups=8, padding=4), IDConv(8, kernel_size=3)).eval()
    image = torch.randn(8, 12, 12)
    found = analysis.widest_filters(net, image)
    assert found.layer == "1"
    assert found.made_for_image
    expected, _ = net[1].generate(net[0](image[None]))
    assert torch.equal(found.kernels, expected[0])
    assert analysis.filters_picture(found).startswith(b"<?xml")
    learned = analysis.widest_filters(net[:1], image)
    assert torch.equal(learned.kernels, net[0].weight[:, 0])
    with pytest.raises(ValueError, match="no depthwise convolution"):
        analysis.widest_filters(nn.Sequential(nn.Conv2d(8, 8, 3)), image)
