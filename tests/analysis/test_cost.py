"""What networks cost: multiplications as the authors' code has them, stages as they come out."""

import json

import pytest

import volution
from volution.analysis import network_cost
from volution.cli import main


def xvolution_resnet(expansion: int, depths: tuple[int, ...]) -> float:
    """Count by hand, in thousand millions, for networks that nobody published.

    In the third stage a 3 by 3 convolution also has queries at the pixels of its output, keys and
    values at those of its input, and 9 products per channel twice.
    """
    macs, channels = 49 * 3 * 64 * 112**2 + 512 * expansion * 1000, 64
    for stage, depth in enumerate(depths):
        width, side = 64 * 2**stage, 56 // 2**stage
        out = width * expansion
        for block in range(depth):
            before = 2 * side if stage and block == 0 else side
            spatial = [(width, before)]
            if expansion == 1:
                spatial = [(channels, before), (width, side)]
            else:
                macs += channels * width * before**2 + width * out * side**2
            for inputs, rows in spatial:
                macs += 9 * inputs * width * side**2
                if stage == 2:
                    macs += inputs * width * (side**2 + 2 * rows**2) + 2 * 9 * width * side**2
            if channels != out:
                macs += channels * out * side**2
            channels = out
    return macs / 1e9


# Thousand millions of multiplications, counted on the authors' code at the size in the name or
# 224. RedNet's second number is the weighted sum itself, which a general counter does not see.
MACS = {
    "hornet_tiny_7x7": 3.968,
    "hornet_tiny_gf": 3.889,
    "hornet_small_7x7": 8.814,
    "hornet_small_gf": 8.694,
    "hornet_base_7x7": 15.567,
    "hornet_base_gf": 15.408,
    "hornet_large_7x7": 34.796,
    "hornet_large_gf": 34.557,
    "hornet_base_gf_img384": 45.278,
    "hornet_large_gf_img384": 101.553,
    "transxnet_t": 1.807,
    "transxnet_s": 4.607,
    "transxnet_b": 8.353,
    "van_b0": 0.864,
    "van_b1": 2.495,
    "van_b2": 4.993,
    "van_b3": 8.925,
    "van_b4": 12.144,
    "van_b5": 17.129,
    "van_b6": 38.710,
    "rednet26": 1.651 + 0.034,
    "rednet38": 2.114 + 0.053,
    "rednet50": 2.577 + 0.071,
    "rednet101": 4.546 + 0.113,
    "rednet152": 6.515 + 0.165,
    "xvolution_resnet34": xvolution_resnet(1, (3, 4, 6, 3)),
    "xvolution_resnet50": xvolution_resnet(4, (3, 4, 6, 3)),
    "xvolution_resnet101": xvolution_resnet(4, (3, 4, 23, 3)),
}


def test_the_table_holds_every_network():
    assert set(MACS) == set(volution.models.list_models())


@pytest.mark.parametrize("name", volution.models.list_models())
def test_multiplications_are_those_of_the_authors_code(name):
    assert network_cost(name).macs / 1e9 == pytest.approx(MACS[name], rel=0.01)


@pytest.mark.parametrize("name", volution.models.list_models())
def test_stages_shrink_by_their_reduction(name):
    cost = network_cost(name)
    side = cost.image_size[0]
    for stage, tap in zip(cost.stages, cost.model.feature_info, strict=True):
        assert (stage.module, stage.channels) == (tap["module"], tap["num_chs"])
        assert stage.height == stage.width == side // tap["reduction"]


def test_cost_grows_with_the_image():
    small, large = (network_cost("rednet26", size) for size in (224, 448))
    assert small.params == large.params
    assert large.macs == pytest.approx(4 * small.macs, rel=0.01)  # but for the classifier


def test_networks_of_timm_have_a_cost_too():
    cost = network_cost("resnet18")
    assert cost.macs == pytest.approx(1.81e9, rel=0.01)
    assert [stage.height for stage in cost.stages] == [112, 56, 28, 14, 7]


def test_images_that_do_not_fit():
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        network_cost("rednet26", 0)
    with pytest.raises(ValueError, match="vit_tiny_patch16_224 does not take images of 100 by 100"):
        network_cost("vit_tiny_patch16_224", 100)


class TestCommand:
    def test_facts(self, capsys):
        assert main(["info", "rednet50"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        for words in (
            "15,540,806",
            "2.649 G for one image of 224 x 224",
            "layer4 2048 7 x 7",
            "licence mit",
            "78.35 % as reported by the authors, not measured here",
            "mean 0.485, 0.456, 0.406",
        ):
            assert words in text

    def test_json(self, capsys):
        assert main(["info", "rednet26", "--image_size=64", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["params"] == 9_233_166
        assert found["image_size"] == [64, 64]
        assert found["stages"][-1] == {
            "module": "layer4", "channels": 2048, "height": 2, "width": 2
        }  # fmt: skip
        assert found["weights"]["reported_top1"] == 75.96

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["rednet51"], "unknown model 'rednet51'; nearest: rednet"),
            (["rednet50", "--image_size=0"], "image_size must be at least 1, got 0"),
            (["--image_size=64"], "image_size goes with a network"),
        ],
    )
    def test_bad_input(self, capsys, words, message):
        assert main(["info", *words]) == 2
        assert message in capsys.readouterr().err
