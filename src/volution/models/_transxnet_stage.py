"""The stages of TransXNet with their tables of positions, and the authors' names for all of it.

A table is one for all blocks of a stage, so the stage owns it and hands it to each of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from volution.models._checkpointing import recompute
from volution.models.official import renames_official
from volution.ops import PositionTable
from volution.ops._shared.layout import strided


class StageTable(PositionTable):
    """The table of positions of a stage, which takes over one that is stored for another size.

    The function is then that of the network that was stored, since a table is resized to every
    map that is not of its size. From the numbers of queries and keys the size of the map can be
    told if it was square.
    """

    def __init__(
        self,
        num_heads: int,
        size: tuple[int, int],
        sr_ratio: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_heads, size, sr_ratio, device, dtype)
        # In the place of the base class's, which takes no other size.
        self._load_state_dict_pre_hooks.clear()
        self.register_load_state_dict_pre_hook(_check_table)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def resize(self, size: tuple[int, int]) -> None:
        """Become the table of maps of another size, as it was resized for them before."""
        height, width = size
        if size == self.size:
            return
        keys = strided(height, self.sr_ratio) * strided(width, self.sr_ratio)
        # The parameter stays the same object: optimisers may hold it.
        self.weight.data, self.weight.grad = self(height * width, keys).clone(), None
        self.size = size

    def fits_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether a stored parameter of this name can be taken over in another shape."""
        return name == "weight" and self._stored_size(shape) is not None

    def _stored_size(self, shape: Sequence[int]) -> tuple[int, int] | None:
        """Return the height and width of the map that a table of this shape is for, if any."""
        if tuple(shape) == tuple(self.weight.shape):
            return self.size
        if len(shape) != 4 or tuple(shape[:2]) != (1, self.num_heads):
            return None
        side = math.isqrt(shape[2])
        fits = side > 0 and shape[2:] == (side**2, strided(side, self.sr_ratio) ** 2)
        return (side, side) if fits else None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}weight")
        size = None if stored is None else self._stored_size(tuple(stored.shape))
        if stored is not None and size is not None and self.weight.shape != stored.shape:
            # The parameter stays the same object: optimisers may hold it.
            self.weight.data, self.weight.grad = self.weight.data.new_empty(stored.shape), None
            self.size = size
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _check_table(module: StageTable, state: dict[str, Any], prefix: str, *_: object) -> None:
    stored = state.get(f"{prefix}weight")
    if not isinstance(stored, Tensor):
        return
    # Another number of heads is another network: that is told with all its other differences.
    same_heads = stored.dim() == 4 and tuple(stored.shape[:2]) == (1, module.num_heads)
    if same_heads and not module.fits_shape("weight", tuple(stored.shape)):
        raise ValueError(
            f"the stored {prefix}weight is a table of another size: expected the shape "
            f"(1, heads, queries, keys) = {tuple(module.weight.shape)}, or that of a square map "
            f"with its keys reduced by {module.sr_ratio}, got {tuple(stored.shape)}; create the "
            f"network with the image_size=(height, width) that it was stored with"
        )


class Stage(nn.Module):
    """``downsample``, the blocks by number, and ``position``, the table that they share.

    Args:
        downsample: What makes the map smaller.
        position: The table, which is handed to each block.
        blocks: The blocks.

    Shape:
        ``(N, C_in, H, W)`` to ``(N, C_out, H / s, W / s)``.
    """

    def __init__(
        self, downsample: nn.Module, position: PositionTable, blocks: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.position = position
        for i, block in enumerate(blocks):
            self.add_module(str(i), block)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self._blocks():
            x = block(x, self.position)
        return x

    def forward_checkpointed(self, x: Tensor) -> Tensor:
        """Run the stage; what happens inside a layer is computed again in the backward pass."""
        x = recompute(self.downsample, x)
        for block in self._blocks():
            x = recompute(block, x, self.position)
        return x

    def _blocks(self) -> list[nn.Module]:
        return [child for name, child in self.named_children() if name.isdigit()]


# Of the copies for detection and segmentation, which normalise each output: no place here.
_OUTPUT_NORM = re.compile(r"norm[0246]\.")


@renames_official
def _rename_official_layers(state_dict: dict[str, Any], prefix: str) -> None:
    """Put the authors' layers in their places here."""
    if f"{prefix}relative_pos_enc.0" not in state_dict:
        return
    for key in [key for key in state_dict if key.startswith(prefix)]:
        value, name = state_dict.pop(key), key[len(prefix) :]
        if name == "classifier.2.weight":
            value = value.flatten(1)
        if not _OUTPUT_NORM.match(name):
            state_dict[prefix + _place(name)] = value


def _place(name: str) -> str:
    """Return our name of a parameter of the authors.

    >>> [_place(name) for name in ("network.1.proj.bn.bias", "network.4.8.norm1.bias")]
    ['stage2.downsample.proj.bn.bias', 'stage3.8.norm1.bias']
    >>> [_place(name) for name in ("relative_pos_enc.3", "classifier.2.bias")]
    ['stage4.position.weight', 'head.fc.bias']
    """
    name = re.sub(r"^patch_embed\.", "stage1.downsample.", name)
    name = re.sub(r"^classifier\.0\.", "head.norm.", name)
    name = re.sub(r"^classifier\.2\.", "head.fc.", name)
    name = re.sub(
        r"^relative_pos_enc\.(\d)$", lambda m: f"stage{int(m[1]) + 1}.position.weight", name
    )
    return re.sub(r"^network\.(\d)\.", lambda m: _stage_place(int(m[1])), name)


def _stage_place(number: int) -> str:
    # Stages have even numbers, what makes the map smaller before the next one odd ones.
    return f"stage{number // 2 + 1}." if number % 2 == 0 else f"stage{number // 2 + 2}.downsample."
