"""ONNX: the file computes what the network computes, for any number of images."""

import onnx
import pytest
import timm
import torch
from networks import images, liven
from timm.utils import reparameterize_model
from torch import nn

from volution import deploy, ops
from volution.deploy.windows import correlate_windows, dynamic_rows, gather_windows, window_ops
from volution.ops.xvolution.static_dynamic import static_dynamic_conv2d

# torch's own exporter, in words of its own, about what it does inside.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_windows_compute_gather(size, dilation, stride):
    x = torch.randn(2, 6, 9, 10, dtype=torch.float64)
    h, w = -(-9 // stride), -(-10 // stride)
    kernel = torch.randn(2, 3, size * size, h, w, dtype=torch.float64)
    offsets = ops.window_offsets(size, dilation)
    expected = ops.gather(x, kernel, offsets, stride=stride)
    torch.testing.assert_close(gather_windows(x, kernel, offsets, stride), expected)
    with window_ops():
        torch.testing.assert_close(ops.gather(x, kernel, offsets, stride=stride), expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_windows_compute_correlate(size, dilation, stride):
    x = torch.randn(2, 6, 9, 10, dtype=torch.float64)
    query = torch.randn(2, 6, -(-9 // stride), -(-10 // stride), dtype=torch.float64)
    offsets = ops.window_offsets(size, dilation)
    expected = ops.correlate(query, x, offsets, 3, stride=stride)
    torch.testing.assert_close(correlate_windows(query, x, offsets, 3, stride), expected)
    with window_ops():
        found = ops.correlate(query, x, offsets, 3, stride=stride)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("offsets", [ops.window_offsets(3, 2), (0, 0, 1, 2, -3, 0)], ids=len)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("given", ["nothing", "all"])
def test_windows_compute_static_and_dynamic_kernels(given, stride, offsets):
    x = torch.randn(2, 6, 9, 10, dtype=torch.float64)
    size = -(-9 // stride), -(-10 // stride)
    kernel = torch.randn(2, 3, len(offsets) // 2, *size, dtype=torch.float64)
    shapes = {"weight": (6, 1, 5, 5), "scale": (6,), "bias": (6,), "residual": (2, 6, *size)}
    rest = {
        name: torch.randn(shape, dtype=torch.float64) if given == "all" else None
        for name, shape in shapes.items()
    }
    rest |= {"stride": stride, "dilation": 2}
    expected = static_dynamic_conv2d(x, kernel, offsets, **rest)
    with window_ops():
        found = static_dynamic_conv2d(x, kernel, offsets, **rest)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_rows_compute_kernels_of_each_images_own(size, dilation, stride):
    x = torch.randn(2, 3, 9, 10, dtype=torch.float64)
    kernel = torch.randn(2, 3, size, size, dtype=torch.float64)
    steps = {"stride": stride, "dilation": dilation}
    for bias in (None, torch.randn(2, 3, dtype=torch.float64)):
        expected = ops.dynamic_depthwise_conv2d(x, kernel, bias, **steps)
        torch.testing.assert_close(dynamic_rows(x, kernel, bias, **steps), expected)
        with window_ops():
            found = ops.dynamic_depthwise_conv2d(x, kernel, bias, **steps)
        torch.testing.assert_close(found, expected)


def test_other_neighbourhoods_stay_with_the_reference():
    offsets = [0, 0, 1, 2, -3, 0]
    x, kernel = torch.randn(1, 2, 5, 5), torch.randn(1, 1, 3, 5, 5)
    expected = ops.gather(x, kernel, offsets, stride=1)
    with window_ops():
        torch.testing.assert_close(ops.gather(x, kernel, offsets, stride=1), expected)
    with pytest.raises(ValueError, match="window_offsets"):
        gather_windows(x, kernel, offsets, 1)
    with pytest.raises(ValueError, match="window_offsets"):
        correlate_windows(x, x, offsets, 1, 1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    net = timm.create_model("rednet26", num_classes=3, widths=(32, 32, 32, 32))
    for parameter in net.parameters():  # a zero last norm would switch the blocks off
        torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    images = torch.randn(2, 3, 32, 32)
    net.train()
    net.layer1.eval()
    deploy.export_onnx(net, images[:1], path)
    return net, path


def test_the_file_computes_the_same_for_any_number_of_images(exported):
    net, path = exported
    check = deploy.check_onnx(net, torch.randn(5, 3, 32, 32), path)
    assert check.passed
    assert check.max_difference < 1e-4 * max(1, check.scale)
    assert check.batch_sizes == (5, 1)


def test_the_network_comes_back_in_the_mode_it_was_in(exported):
    net, _ = exported
    assert net.training
    assert not net.layer1.training


def test_the_file_stands_alone_and_holds_standard_operators(exported):
    _, path = exported
    graph = onnx.load(path)
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    assert len(graph.graph.node) < 600
    assert [p.name for p in path.parent.iterdir()] == ["net.onnx"]


def test_a_difference_is_found(exported):
    _, path = exported
    torch.manual_seed(1)
    other = timm.create_model("rednet26", num_classes=3, widths=(32, 32, 32, 32))
    assert not deploy.check_onnx(other, torch.randn(2, 3, 32, 32), path).passed
    assert not deploy.OnnxCheck(float("nan"), 1.0, 1e-4, (1,)).passed


@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("hornet_tiny_gf", False),
        pytest.param("hornet_tiny_gf", True, marks=pytest.mark.slow),
        ("van_b0", False),
        ("van_b0", True),
        ("xvolution_resnet34", False),
        ("xvolution_resnet34", True),
    ],
)
def test_a_file_for_any_size_and_number(name, fused, tmp_path):
    """Without complex numbers, which ONNX does not have, also where a filter is global."""
    options = {"widths": (8, 16, 32, 64), "depths": (1, 1, 1, 1), "num_classes": 3}
    net = liven(timm.create_model(name, **options))
    net = net.fuse() if fused else net
    check_any_size(net, net, tmp_path, ((2, 64, 64), (3, 75, 41), (1, 32, 120)))


def check_any_size(net, exported, folder, sizes):
    """The file of one form computes what the other does, for other numbers and sizes of images."""
    example = images(2, size=sizes[0][1])
    path = deploy.export_onnx(exported, example, folder / "net.onnx", dynamic_size=True)
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    assert [d.dim_param for d in graph.input[0].type.tensor_type.shape.dim[2:]] == [
        "height",
        "width",
    ]
    for count, height, width in sizes:
        x = images(count, size=120)[:, :, :height, :width]
        check = deploy.check_onnx(net, x, path)
        assert check.passed, check
        assert check.tolerance == 1e-4
        assert check.scale > 0.1


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_transxnet_for_any_size_and_number(fused, tmp_path):
    """Its tables are resized for each size; at their default of zero that would not show."""
    options = {"widths": (8, 16, 32, 64), "depths": (1, 1, 1, 1), "num_classes": 3}
    net = liven(timm.create_model("transxnet_t", image_size=64, **options))
    for stage in (net.stage1, net.stage2, net.stage3, net.stage4):
        torch.nn.init.normal_(stage.position.weight)
    exported = net.fuse() if fused else net
    check_any_size(net, exported, tmp_path, ((2, 64, 64), (3, 75, 41), (1, 32, 120)))


@pytest.mark.parametrize("folded", [False, True])
def test_every_form_of_x_volution(folded, tmp_path):
    net = nn.Sequential(
        ops.Xvolution2d(3, 16, stride=2, heads=2),
        ops.Xvolution2d(16, 16, 5, groups=16, heads=4, normalize="softmax"),
        ops.Xvolution2d(16, 16, groups=4, heads=4, offsets=[(0, 0), (-2, 1), (3, 0)]),
        ops.Xvolution2d(16, 32, stride=2, dilation=2, attention="involution"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    net = liven(net)
    exported = reparameterize_model(net) if folded else net
    kinds = {type(layer) for layer in exported[:4]}
    assert kinds == {ops.FoldedXvolution2d if folded else ops.Xvolution2d}
    check_any_size(net, exported, tmp_path, ((2, 32, 32), (3, 45, 21), (1, 17, 50)))


def test_bad_input(exported, tmp_path):
    net, path = exported
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), got \(3, 32, 32\)"):
        deploy.export_onnx(net, torch.randn(3, 32, 32), tmp_path / "a.onnx")
    with pytest.raises(FileNotFoundError, match="no folder"):
        deploy.export_onnx(net, torch.randn(1, 3, 32, 32), tmp_path / "no" / "a.onnx")
    with pytest.raises(FileNotFoundError, match="no ONNX file at"):
        deploy.check_onnx(net, torch.randn(1, 3, 32, 32), tmp_path / "a.onnx")
    (tmp_path / "bad.onnx").write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"bad.onnx is not an ONNX file"):
        deploy.check_onnx(net, torch.randn(1, 3, 32, 32), tmp_path / "bad.onnx")
