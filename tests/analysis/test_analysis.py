"""Pictures: well-formed, repeatable, and of the right numbers."""

import xml.etree.ElementTree as ET

import pytest
import small
import torch
from PIL import Image

from volution import analysis, ops

HISTORY = [
    {"epoch": i + 1, "train_loss": 1 / (i + 1), "val_loss": 0.9 / (i + 1), "val_top1": i / 3}
    for i in range(3)
]


def drawn(svg):
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    return svg.decode()


def test_pictures_are_svg_and_the_same_each_time():
    images = [Image.new("L", (8, 8), 30 * i) for i in range(3)]
    pictures = {
        "curves": lambda: analysis.curves_picture(HISTORY, goal=0.5),
        "confusion": lambda: analysis.confusion_picture(torch.eye(3).long() * 4, "abc"),
        "samples": lambda: analysis.samples_picture(images, "abc", "abd", [0.9, 0.8, 0.7]),
    }
    for draw in pictures.values():
        assert "prefers-color-scheme:dark" in drawn(draw())
        assert draw() == draw()


def test_a_users_own_settings_do_not_change_the_picture():
    import matplotlib

    before = analysis.curves_picture(HISTORY)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert analysis.curves_picture(HISTORY) == before


def test_kernel_maps_are_the_kernels_of_the_pixels():
    torch.manual_seed(0)
    net = small.colour_classifier().model
    image = torch.randn(3, 32, 32)
    maps = analysis.kernel_maps(net, image, [(0.0, 0.0), (0.99, 0.5)], layer="layer1.0.conv2")
    layer = net.layer1[0].conv2
    with torch.inference_mode():
        x = net.maxpool(net.stem(image[None]))
        block = net.layer1[0]
        inner = block.act1(block.bn1(block.conv1(x)))
        kernel = layer.kernel_generator(inner).reshape(layer.groups, 7, 7, 8, 8)
    torch.testing.assert_close(maps.kernels[0], kernel[..., 0, 0])
    torch.testing.assert_close(maps.kernels[1], kernel[..., 7, 4])
    assert maps.window == (7 / 8, 7 / 8)
    drawn(analysis.kernels_picture(maps, Image.new("RGB", (32, 32))))


def test_kernel_maps_take_the_widest_window_of_the_finest_map_and_leave_no_hook():
    net = small.colour_classifier().model.train()
    maps = analysis.kernel_maps(net, torch.randn(3, 32, 32), [(0.5, 0.5)])
    assert maps.layer == "layer1.0.conv2"
    assert net.training
    involutions = [m for m in net.modules() if isinstance(m, ops.Involution2d)]
    assert not any(m.kernel_generator._forward_hooks for m in involutions)


def test_bad_input():
    net = small.colour_classifier().model
    image = torch.randn(3, 32, 32)
    with pytest.raises(ValueError, match="pixels must be from 0 to 1"):
        analysis.kernel_maps(net, image, [(1.0, 0.0)])
    with pytest.raises(ValueError, match="layer must be an involution"):
        analysis.kernel_maps(net, image, [(0.0, 0.0)], layer="head")
    with pytest.raises(ValueError, match="it has none"):
        analysis.kernel_maps(torch.nn.Flatten(), image, [(0.0, 0.0)])
    with pytest.raises(ValueError, match="at least one epoch"):
        analysis.curves_picture([])
    with pytest.raises(ValueError, match="confusion must be 2 by 2"):
        analysis.confusion_picture(torch.eye(3).long(), "ab")
    with pytest.raises(ValueError, match="at least one, got 0 images"):
        analysis.samples_picture([], "", "", [])
