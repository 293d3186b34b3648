"""What four-stage networks share: a trunk with taps, a head, and timm's model interface."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from timm.layers import ClassifierHead, is_exportable
from timm.models import checkpoint_seq
from torch import Tensor, nn

from volution import ops
from volution.models.official import strip_official_names


class Pyramid(nn.Module):
    """Base of a network whose direct children run one after the other, the last being ``head``.

    Feature extractors of other libraries rebuild a network from its direct children, so these
    take one tensor, return one tensor, and are registered in the order in which they run. A
    subclass registers the children of its trunk, fills ``feature_info`` with the taps among them
    and calls :meth:`add_head` last.

    Args:
        num_classes: Classes of the classifier; 0 leaves it out.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier.

    Attributes:
        feature_info: One ``dict(num_chs, reduction, module)`` per tap, in order.
        num_features: Channels of the trunk's output.
        head_hidden_size: Width of the classifier's input.
    """

    def __init__(self, num_classes: int, in_chans: int, drop_rate: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.feature_info: list[dict[str, Any]] = []
        self.grad_checkpointing = False
        # timm's flag is read while a model is built, and holds for the model's life.
        self.exportable = bool(is_exportable())
        self.register_load_state_dict_pre_hook(strip_official_names)  # type: ignore[no-untyped-call]

    def add_head(
        self,
        global_pool: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Put a fresh head on the trunk, in the place of an earlier one."""
        self.num_features: int = self._trunk_channels()
        self.head = ClassifierHead(
            self.num_features,
            self.num_classes,
            pool_type=global_pool,
            drop_rate=self.drop_rate,
            device=device,
            dtype=dtype,
        )
        self.head_hidden_size: int = self.head.num_features
        if isinstance(self.head.fc, nn.Linear):
            nn.init.normal_(self.head.fc.weight, std=0.01)
            nn.init.zeros_(self.head.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        with ops.reference_ops() if self.exportable else nullcontext():
            return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Run the trunk: ``(N, in_chans, H, W)`` to ``(N, num_features, H / 32, W / 32)``."""
        for name in self._trunk():
            x = self._run(name, x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify a trunk's output; with ``pre_logits`` stop before the classifier."""
        logits: Tensor = self.head(x, pre_logits=pre_logits)
        return logits

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Run the trunk and collect what its taps give.

        Args:
            x: Images, ``(N, in_chans, H, W)``.
            indices: Which taps: all (None), the last ``n`` (an int), or these (a sequence, from
                the end where negative).
            norm: Ignored: taps have no norm of their own.
            stop_early: Do not run what follows the last wanted tap.
            output_fmt: Only ``"NCHW"``.
            intermediates_only: Return the list alone.

        Returns:
            The trunk's output and the list of taps in order, or the list alone.

        Raises:
            ValueError: If an index or ``output_fmt`` does not exist.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        wanted = {self.feature_info[i]["module"] for i in self._taps(indices)}
        taps = []
        for name in self._trunk():
            x = self._run(name, x)
            if name in wanted:
                taps.append(x)
                if stop_early and len(taps) == len(wanted):
                    break
        return taps if intermediates_only else (x, taps)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Empty what follows the last of the given taps; the names of the children stay.

        Args:
            indices: As in :meth:`forward_intermediates`.
            prune_norm: Ignored: taps have no norm of their own.
            prune_head: Also take the head's pooling and classifier away. They always go if the
                trunk is cut, since they were made for its end.

        Returns:
            The indices of the taps kept, counted from the start.
        """
        kept = self._taps(indices)
        names = self._trunk()
        last = names.index(self.feature_info[max(kept)]["module"])
        for name in names[last + 1 :]:
            setattr(self, name, nn.Sequential())
        if prune_head or last + 1 < len(names):
            self.reset_classifier(0, "")
        return kept

    def get_classifier(self) -> nn.Module:
        """Return the last layer, an identity where there are no classes."""
        fc: nn.Module = self.head.fc
        return fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a fresh classifier.

        Args:
            num_classes: Its classes; 0 leaves it out.
            global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, ``""`` for none, or
                None to keep the present one.
        """
        self.num_classes = num_classes
        pool = self.head.global_pool.pool_type if global_pool is None else global_pool
        like = next(self.parameters())
        self.add_head(pool, like.device, like.dtype)
        self.head.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing what happens inside."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return parameters that weight decay spares, beside those of fewer than two dimensions."""
        return set()

    def _trunk(self) -> list[str]:
        return [name for name, _ in self.named_children() if name != "head"]

    def _run(self, name: str, x: Tensor) -> Tensor:
        module = getattr(self, name)
        is_stage = isinstance(module, nn.Sequential) and name != "stem"
        if self.grad_checkpointing and is_stage and not torch.jit.is_tracing():
            x = checkpoint_seq(module, x)
        else:
            x = module(x)
        return x

    def _trunk_channels(self) -> int:
        """Return the channels at the end of the trunk: those of the last tap that is not cut."""
        for tap in reversed(self.feature_info):
            if next(getattr(self, tap["module"]).parameters(), None) is not None:
                return int(tap["num_chs"])
        raise ValueError("a network needs at least one tap with parameters")

    def _taps(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.feature_info)
        if indices is None:
            return list(range(count))
        if isinstance(indices, int):
            if not 0 < indices <= count:
                raise ValueError(f"indices, the last n taps, must be 1 to {count}, got {indices}")
            return list(range(count - indices, count))
        if not indices or not all(-count <= i < count for i in indices):
            raise ValueError(
                f"indices must be of the taps 0 to {count - 1}, or negative from the end, "
                f"got {list(indices)}"
            )
        return [i % count for i in indices]


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Return a drop-path rate for each block of each stage, rising linearly from 0 to ``rate``.

    >>> drop_path_rates(0.2, (1, 2))
    [[0.0], [0.1, 0.2]]
    """
    # Plain numbers: a tensor would be on the meta device where the network is built there.
    last = max(1, sum(depths) - 1)
    blocks = iter(range(sum(depths)))
    return [[rate * next(blocks) / last for _ in range(depth)] for depth in depths]


def stage_steps(output_stride: int, stages: int = 4) -> list[tuple[int, int, int]]:
    """Return stride, first block's dilation and other blocks' dilation for each stage.

    Stages beyond the output stride trade their stride for dilation, so that a weight meets the
    same neighbours as before. The first block keeps the dilation of the stage before it.

    >>> stage_steps(16)
    [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)]
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride!r}")
    steps, reduction, dilation = [], 4, 1
    for stage in range(stages):
        stride, before = 1 if stage == 0 else 2, dilation
        if reduction * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reduction *= stride
        steps.append((stride, before, dilation))
    return steps
