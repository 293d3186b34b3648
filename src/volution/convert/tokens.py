"""Operators in the place of a plain ViT's attention: image tokens are a map, the others pass."""

from __future__ import annotations

from typing import Any

import timm.layers
import torch
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

__all__ = ["TokenGrid", "TokenMap", "grid_of", "is_token_attention", "misfit", "unseen_blocks"]

# Older releases of timm do not have the second one.
_PLAIN = (Attention, getattr(timm.layers, "DiffAttention", Attention))


class TokenGrid:
    """Rows and columns of the map that a ViT's image tokens make, as they are at the moment.

    One object serves all converted blocks of a network. It is no module and holds no tensor, so
    it leaves the state dict alone, and it is copied and pickled with the network.

    Args:
        patch_embed: Cuts the image into tokens.
        dynamic: Whether the network takes images of any size; the patch embedding then tells
            the size of its map at every call.
    """

    def __init__(self, patch_embed: nn.Module, dynamic: bool) -> None:
        self.patch_embed = patch_embed
        self.dynamic = dynamic
        self.last: tuple[int, int] | None = None
        if dynamic:
            patch_embed.register_forward_hook(self.watch)

    def watch(self, module: nn.Module, args: object, output: Tensor) -> None:
        """Note the size of a map, shape ``(N, H, W, C)``."""
        self.last = output.shape[1], output.shape[2]

    def size(self) -> tuple[int, int]:
        """Return rows and columns.

        Raises:
            RuntimeError: If images of any size are taken, and none has been seen yet.
        """
        size: Any = self.last if self.dynamic else self.patch_embed.grid_size
        if size is None:
            raise RuntimeError(
                "the size of the map is not known before the network's patch embedding has run; "
                "call the network, not its block"
            )
        height, width = size
        return height, width


def grid_of(network: VisionTransformer) -> TokenGrid:
    """Return the grid of a network: that of its converted blocks, if it has some."""
    for module in network.modules():
        if isinstance(module, TokenMap):
            return module.grid
    return TokenGrid(network.patch_embed, network.dynamic_img_size)


class TokenMap(nn.Module):
    """Run an operator on the map that image tokens make; let the prefix tokens pass.

    Args:
        operator: Maps ``(N, C, H, W)`` to ``(N, C_out, H, W)``.
        grid: Tells ``H`` and ``W``.
        num_prefix_tokens: Tokens before those of the image (class, registers); their output is
            their input.

    Shape:
        ``(N, num_prefix_tokens + H * W, C)`` to the same with ``C_out``; the two are equal where
        there are prefix tokens.

    Raises:
        ValueError: If there is an attention mask, or the number of tokens is another.
    """

    def __init__(self, operator: nn.Module, grid: TokenGrid, num_prefix_tokens: int) -> None:
        super().__init__()
        self.operator = operator
        self.grid = grid
        self.num_prefix_tokens = num_prefix_tokens

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        if attn_mask is not None or is_causal:
            raise ValueError(
                "attn_mask and is_causal must be left out, got one of them; an operator that "
                "stands in for attention has no attention to mask"
            )
        prefix = self.num_prefix_tokens
        y = self.operator(tokens_to_map(x, prefix, self.grid.size()))
        tokens = y.flatten(2).transpose(1, 2)
        return torch.cat([x[:, :prefix], tokens], 1) if prefix else tokens

    def extra_repr(self) -> str:
        return f"num_prefix_tokens={self.num_prefix_tokens}"


def tokens_to_map(tokens: Tensor, num_prefix_tokens: int, size: tuple[int, int]) -> Tensor:
    """Return the image tokens as a map ``(N, C, H, W)``, channels-last in memory."""
    height, width = size
    if tokens.shape[1] != num_prefix_tokens + height * width:
        raise ValueError(
            f"x must have {num_prefix_tokens} + {height} * {width} tokens, got {tokens.shape[1]}"
        )
    image = tokens[:, num_prefix_tokens:].reshape(tokens.shape[0], height, width, -1)
    return image.permute(0, 3, 1, 2)


# One call in traced graphs, so that symbolic tracing does not stop at the check.
torch.fx.wrap("tokens_to_map")


def is_token_attention(module: nn.Module) -> bool:
    """Return whether a module is attention between tokens, of a plain ViT or of any other kind."""
    # Attention between the channels or pixels of a map is made of convolutions: leave it alone.
    named_so = type(module).__name__.endswith(("Attention", "Attn"))
    return named_so and any(isinstance(child, nn.Linear) for child in module.modules())


def misfit(attention: nn.Module, network: nn.Module | None) -> str | None:
    """Return why an attention cannot be replaced, or None.

    Args:
        attention: The attention.
        network: The nearest module around it that is a :class:`VisionTransformer`.
    """
    if not isinstance(attention, _PLAIN):
        return "its tokens are not those of a plain ViT"
    if not isinstance(network, VisionTransformer):
        return "it is not in a timm VisionTransformer, which would say what map its tokens make"
    if not isinstance(network.patch_drop, nn.Identity):
        return "its network drops patches (patch_drop_rate), and what is left is not a map"
    if network.num_prefix_tokens and attention.qkv.in_features != attention.proj.out_features:
        return "it changes the width, which prefix tokens that pass through cannot follow"
    return None


def unseen_blocks(network: VisionTransformer) -> list[int]:
    """Return the blocks of a network whose work on the image does not reach its classifier.

    Only attention carries anything from the image to the class token, so of a network that
    classifies by it, the converted blocks after the last attention are idle.
    """
    pools: nn.Module | None = getattr(network, "attn_pool", None)
    if network.global_pool != "token" or pools is not None:
        return []
    kinds = [{type(module) for module in block.modules()} for block in network.blocks]
    attending = [index for index, types in enumerate(kinds) if types.intersection(_PLAIN)]
    last = max(attending, default=-1)
    return [index for index, types in enumerate(kinds) if index > last and TokenMap in types]
