"""The position table of an attention: a learned number for each pair of query and key.

Paper: https://arxiv.org/abs/2310.19380, authors' code: LMMMEng/TransXNet. The authors
keep the tables as parameters of the network and resize them whole, in each block; the parameter
here is the same tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from volution.ops import _checks, _library
from volution.ops._shared.layout import accumulation_dtype, strided
from volution.ops.dmixer.bicubic import bicubic_matrix, cached_matrix, resize_side

# For each table, what its keys are resized to for each size of map, as long as it does not change.
_KEPT: Any = WeakTensorKeyDictionary()
_SIZES = 4
_NOTHING: tuple[Tensor | None, int, Tensor | None] = (None, -1, None)


class PositionTable(nn.Module):
    r"""Numbers added to the logits of an attention, learned for a map of one size.

    A map of :math:`h \times w` pixels has :math:`N_0 = hw` queries, and
    :math:`M_0 = \lceil h/r \rceil \lceil w/r \rceil` keys where those are reduced by
    :math:`r`. For maps of other sizes the table :math:`T` is resized as an image of
    :math:`N_0 \times M_0` pixels, bicubically. That is separable,

    .. math::
        T' = A\, T\, B^\top ,

    with four numbers in each row of :math:`A` and :math:`B`, so attention never needs all of it:
    :meth:`key_side` gives :math:`T B^\top`, and the product with :math:`A` is taken for a few
    queries at a time.

    Args:
        num_heads: Heads of the attention.
        size: Side of the map, or its height and width.
        sr_ratio: The reduction :math:`r` of the keys, see :class:`OSRA`.
        device: Where the table lives.
        dtype: What it is.

    Attributes:
        weight: :math:`T`, shape ``(1, num_heads, N_0, M_0)``, zero at first.

    Shape:
        A number of queries and one of keys to ``(1, num_heads, queries, keys)``.

    Raises:
        ValueError: If an argument is not positive; in :meth:`load_state_dict`, if the table
            stored is of another size or has other heads.

    Example:
        >>> table = PositionTable(num_heads=2, size=(14, 10), sr_ratio=4)
        >>> table.weight.shape, table(35, 6).shape
        (torch.Size([1, 2, 140, 12]), torch.Size([1, 2, 35, 6]))

    References:
        Lou et al., "TransXNet: Learning Both Global and Local Dynamics with a Dual Dynamic Token
        Mixer for Visual Recognition", TNNLS 2025. https://arxiv.org/abs/2310.19380
    """

    def __init__(
        self,
        num_heads: int,
        size: int | tuple[int, int],
        sr_ratio: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        sides = {"height": height, "width": width}
        for name, value in {"num_heads": num_heads, **sides, "sr_ratio": sr_ratio}.items():
            _checks.check_positive(name, value)
        self.num_heads = num_heads
        self.size = (height, width)
        self.sr_ratio = sr_ratio
        keys = strided(height, sr_ratio) * strided(width, sr_ratio)
        shape = (1, num_heads, height * width, keys)
        self.weight = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        self.register_load_state_dict_pre_hook(_check_stored)  # type: ignore[no-untyped-call]

    def forward(self, queries: int, keys: int) -> Tensor:
        table = self.weight.to(accumulation_dtype(self.weight.dtype))
        if not _same(queries, table.shape[2]):
            table = resize_side(table, 2, queries)
        if not _same(keys, table.shape[3]):
            table = resize_side(table, 3, keys)
        return table.to(self.weight.dtype)

    def key_side(self, keys: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return the table resized to ``keys``, with its own queries: ``(num_heads, N_0, keys)``.

        Where gradients are not recorded, it is kept for the next map of that size. Changes in
        place are noticed, but for those made through ``.data``, which PyTorch hides.

        Args:
            keys: How many.
            dtype: Of the result; that of the table if None. It is computed in float32 at least.
        """
        dtype = self.weight.dtype if dtype is None else dtype
        if _same(keys, self.weight.shape[3]):
            return self.weight[0].to(dtype)
        device = self.weight.device.type
        if _library.autocasts(device):
            # In half precision the product would lose digits of the positions.
            with torch.autocast(device, enabled=False):
                return _kept(self.weight, keys, dtype)
        return _kept(self.weight, keys, dtype)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, size={self.size}, sr_ratio={self.sr_ratio}"


def _same(count: int, own: int) -> bool:
    # Where sizes are symbols they are not compared: resizing to the own size changes nothing.
    return isinstance(count, int) and count == own


def _kept(weight: Tensor, keys: int, dtype: torch.dtype) -> Tensor:
    """Return what :func:`_resize_keys` makes of a table, from an earlier call if that is right."""
    if not _library.runs_directly(weight):
        return _resize_keys(weight, keys, dtype)
    # What inference mode made has no count of its changes; what is no parameter has other owners.
    if type(weight) is not nn.Parameter or weight.is_inference():
        return _resize_keys(weight, keys, dtype)
    entries: dict[Any, tuple[Tensor | None, int, Tensor | None]] = _KEPT.setdefault(weight, {})
    alias, version, made = entries.get((keys, dtype), _NOTHING)
    # The alias keeps the memory, so that no other table can come to lie at the same address.
    current = (
        alias is not None
        and version == weight._version
        and alias.data_ptr() == weight.data_ptr()
        and alias.dtype == weight.dtype
        and alias.shape == weight.shape
    )
    if made is None or not current:
        # What inference mode makes could not be used in training later.
        with torch.inference_mode(False), torch.no_grad():
            made = _resize_keys(weight, keys, dtype)
        entries.pop((keys, dtype), None)
        while len(entries) >= _SIZES:
            entries.pop(next(iter(entries)))
        entries[keys, dtype] = (weight.detach(), weight._version, made)
    return made


def _resize_keys(weight: Tensor, keys: int, dtype: torch.dtype) -> Tensor:
    table = weight[0].to(accumulation_dtype(weight.dtype))
    tracing = torch.compiler.is_compiling() or type(weight) not in (Tensor, nn.Parameter)
    make = bicubic_matrix if tracing else cached_matrix
    matrix = make(keys, table.shape[2], table.dtype, table.device)
    return torch.matmul(table, matrix.t()).to(dtype)


def _check_stored(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Say what a table of another size is good for, where PyTorch would only refuse it."""
    stored, own = state_dict.get(prefix + "weight"), module.weight
    if isinstance(stored, Tensor) and isinstance(own, Tensor) and stored.shape != own.shape:
        raise ValueError(
            f"the stored {prefix}weight must have shape (1, heads, queries, keys) = "
            f"{tuple(own.shape)}, got {tuple(stored.shape)}; build the table with the num_heads, "
            f"size and sr_ratio it was stored with: it is resized for maps of any other size"
        )
