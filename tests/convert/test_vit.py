"""Operators in the place of a ViT's attention: the map of its tokens, and what passes by."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from replacements import LAYERS, REPLACEMENTS
from torch import nn

from volution.convert import TokenMap, convert, involution, lka
from volution.ops import Involution2d


def quietly(*args, **kwargs):
    return convert(*args, quiet=True, **kwargs)


def vit(img_size=64, **settings):
    settings = {"global_pool": "avg", "num_classes": 10, "depth": 3, **settings}
    return timm.create_model("vit_tiny_patch16_224", img_size=img_size, **settings)


def shift(attention):
    """Each pixel becomes its neighbour to the right: wrong rows, columns or prefixes would show."""
    width = attention.qkv.in_features
    layer = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
    nn.init.zeros_(layer.weight)
    layer.weight.data[:, 0, 1, 2] = 1
    return layer


@pytest.mark.parametrize("operator", REPLACEMENTS)
def test_runs_trains_saves_and_loads(operator):
    net = quietly(vit(), {"blocks.*.attn": REPLACEMENTS[operator]})
    kinds = [type(block.attn.operator) for block in net.blocks]
    assert kinds == [LAYERS[operator]] * 3
    x = torch.randn(2, 3, 64, 64)
    net.train()(x).square().mean().backward()
    for name, parameter in net.named_parameters():
        # Nothing reaches the class token's part of the embedding: the head takes the mean.
        if name != "cls_token":
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    again = quietly(vit(), {"blocks.*.attn": REPLACEMENTS[operator]})
    again.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(x), net.eval()(x))


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)], ids=["square", "wide"])
def test_image_tokens_are_a_map_and_the_others_pass(size, registers):
    net = quietly(vit(size, reg_tokens=registers), "blocks.1.attn", shift)
    layer, grid = net.blocks[1].attn, net.patch_embed.grid_size
    prefix = 1 + registers
    tokens = torch.randn(2, prefix + grid[0] * grid[1], 192)
    got = layer(tokens)
    assert torch.equal(got[:, :prefix], tokens[:, :prefix])
    before, after = (t[:, prefix:].reshape(2, *grid, 192) for t in (tokens, got))
    assert torch.equal(after[:, :, :-1], before[:, :, 1:])
    assert (after[:, :, -1] == 0).all()


def test_images_of_any_size():
    """As many tokens in other rows: only the patch embedding knows which."""
    net = quietly(vit(dynamic_img_size=True), {"blocks.*.attn": shift}).eval()
    with pytest.raises(RuntimeError, match="call the network, not its block"):
        net.blocks[0].attn(torch.randn(1, 17, 192))
    for size in ((64, 64), (32, 128), (48, 80)):
        fixed = quietly(vit(size), {"blocks.*.attn": shift}).eval()
        state = {key: value for key, value in net.state_dict().items() if key != "pos_embed"}
        fixed.load_state_dict(state, strict=False)
        nn.init.zeros_(fixed.pos_embed)
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            nn.init.zeros_(net.pos_embed)
            torch.testing.assert_close(copy.deepcopy(net)(x), fixed(x))


def test_the_size_may_change_after_conversion():
    net = quietly(vit(), {"blocks.*.attn": involution()})
    net.set_input_size((48, 80))
    assert net.eval()(torch.randn(1, 3, 48, 80)).shape == (1, 10)
    with pytest.raises(ValueError, match=r"x must have 1 \+ 3 \* 5 tokens, got 17"):
        net.blocks[0].attn(torch.randn(1, 17, 192))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_and_checkpoints(dynamic):
    net = quietly(vit(dynamic_img_size=dynamic), {"blocks.[01].attn": lka()}).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = net(x)
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), want)
    net.set_grad_checkpointing()
    got = net.train()(x)
    torch.testing.assert_close(got, want)
    got.sum().backward()
    assert net.blocks[0].attn.operator.conv0.weight.grad.abs().sum() > 0


def test_converting_more_blocks_later():
    net = quietly(vit(dynamic_img_size=True), "blocks.0.attn", involution())
    net = quietly(net, "blocks.1.attn", lka())
    assert net.blocks[0].attn.grid is net.blocks[1].attn.grid
    assert len(net.patch_embed._forward_hooks) == 1
    assert net.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 10)


class TestClassToken:
    def test_a_warning_says_where_it_sees_nothing(self):
        net = vit(global_pool="token")
        with pytest.warns(UserWarning, match=r"class token.* in and after blocks 1, 2: "):
            quietly(net, {"blocks.[12].attn": involution()})

    def test_the_warning_is_right(self):
        """Without attention after it, a converted block does not change the logits."""
        net = vit(global_pool="token").eval()
        with pytest.warns(UserWarning, match="class token"):
            blind = quietly(net, {"blocks.*.attn": involution()})
        seeing = quietly(net, {"blocks.[01].attn": involution()})
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(blind(x)[0], blind(x)[1])
            assert not torch.allclose(seeing(x)[0], seeing(x)[1], atol=1e-4)


class TestRefused:
    @pytest.mark.parametrize("mask", [{"attn_mask": torch.zeros(17, 17)}, {"is_causal": True}])
    def test_masks(self, mask):
        net = quietly(vit(), "blocks.0.attn", lka())
        with pytest.raises(ValueError, match="attn_mask and is_causal must be left out"):
            net(torch.randn(1, 3, 64, 64), **mask)

    @pytest.mark.parametrize(
        ("make", "where", "message"),
        [
            pytest.param(
                lambda: timm.create_model("swin_tiny_patch4_window7_224", device="meta"),
                "layers.0.blocks.1.attn",
                r"^layers\.0\.blocks\.1\.attn \(WindowAttention\) cannot .* not those of a plain",
                id="swin",
            ),
            pytest.param(
                lambda: torchvision.models.vit_b_16(),
                "*self_attention",
                r"^encoder\.layers\.encoder_layer_0\.self_attention \(MultiheadAttention\)",
                id="torchvision-vit",
            ),
            pytest.param(
                lambda: nn.Sequential(timm.layers.Attention(64)),
                "0",
                r"^0 \(Attention\) .* not in a timm VisionTransformer",
                id="attention-alone",
            ),
            pytest.param(
                lambda: vit(patch_drop_rate=0.5),
                "blocks.0.attn",
                r"^blocks\.0\.attn \(Attention\) .*patch_drop_rate",
                id="patch-dropout",
            ),
        ],
    )
    def test_other_attention(self, make, where, message):
        with torch.device("meta"):
            net = make()
        with pytest.raises(ValueError, match=message):
            quietly(net, where, involution())

    def test_a_shape_that_does_not_come_back(self):
        with pytest.raises(ValueError, match=r"blocks\.0\.attn: .* into \(1, 192, 15, 14\)"):
            quietly(vit(), "blocks.0.attn", lambda _: nn.Conv2d(192, 192, 3, 2, 1))


def test_patch_embedding_is_kept_and_says_why():
    report = quietly(vit(), "*", Involution2d, dry_run=True)
    assert [row.path for row in report.replaced] == [f"blocks.{i}.attn" for i in range(3)]
    assert [(row.path, row.why) for row in report.kept] == [
        ("patch_embed.proj", "its kernel has an even side, 16, and no centre")
    ]
    assert report.image_size == (64, 64)
    assert report.macs_after is not None


def test_a_block_says_what_passes():
    net = quietly(vit(reg_tokens=4), "blocks.0.attn", lka())
    assert isinstance(net.blocks[0].attn, TokenMap)
    assert "num_prefix_tokens=5" in repr(net.blocks[0].attn)
