"""What four-stage networks share: a trunk with taps, a head, and timm's model interface."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, cast

import torch
from timm.layers import ClassifierHead, is_exportable
from timm.utils import reparameterize_model
from torch import Tensor, nn

from volution import ops
from volution.models._checkpointing import recompute
from volution.models.official import strip_official_names

# One call in traced graphs, which have no sizes to compare.
torch.fx.wrap("check_image")


def check_image(x: Tensor, smallest: int) -> None:
    """Raise if an image is smaller than a network takes; compiled and exported networks do not."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    height, width = x.shape[-2:]
    if height < smallest or width < smallest:
        raise ValueError(
            f"images must be at least {smallest} by {smallest} pixels, got {height} by {width}; "
            f"enlarge or pad them"
        )


class Pyramid(nn.Module):
    """Base of a network whose direct children run one after the other, the last being ``head``.

    Feature extractors of other libraries rebuild a network from its direct children, so these
    take one tensor, return one tensor, and are registered in the order in which they run. A
    subclass registers the children of its trunk, fills ``feature_info`` with the taps among them
    and calls :meth:`add_head` last. What families differ in beyond that are class attributes and
    :meth:`make_head`.

    A child other than ``stem`` that is an ``nn.Sequential`` is a stage: with gradient
    checkpointing, each of its children is recomputed on its own. A stage whose layers take more
    than the map has a method ``forward_checkpointed`` for that.

    Args:
        num_classes: Classes of the classifier; 0 leaves it out.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier.

    Attributes:
        feature_info: One ``dict(num_chs, reduction, module)`` per tap, in order.
        num_features: Channels of the trunk's output.
        head_hidden_size: Width of the classifier's input.
    """

    output_strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    """What ``output_stride`` may be."""

    rounds_up: ClassVar[bool] = True
    """Whether strides round odd sizes up; otherwise they drop the remainder."""

    smallest_image: ClassVar[int] = 1
    """The least height and width of an image."""

    head_init_std: ClassVar[float] = 0.01
    """Standard deviation of a fresh classifier's weights."""

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
        self.head = self.make_head(global_pool, device, dtype)
        self.head_hidden_size: int = self.head.num_features
        if isinstance(self.head.fc, nn.Linear):
            nn.init.normal_(self.head.fc.weight, std=self.head_init_std)
            nn.init.zeros_(self.head.fc.bias)

    def make_head(
        self,
        global_pool: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> ClassifierHead:
        """Make a head for ``num_features`` channels: pooling and classifier.

        Other heads derive from timm's ``ClassifierHead``. A norm in them is called ``norm``; it
        stays when the classifier is changed, and goes when the trunk it was made for is cut.
        """
        return ClassifierHead(
            self.num_features,
            self.num_classes,
            pool_type=global_pool,
            drop_rate=self.drop_rate,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        with ops.reference_ops() if self.exportable else nullcontext():
            return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Run the trunk: ``(N, in_chans, H, W)`` to ``(N, num_features, H / 32, W / 32)``."""
        check_image(x, self.smallest_image)
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
            norm: Ignored: taps are what the stages give, with their norm where they have one.
            stop_early: Do not run what follows the last wanted tap.
            output_fmt: Only ``"NCHW"``.
            intermediates_only: Return the list alone.

        Returns:
            The trunk's output and the list of taps in order, or the list alone.

        Raises:
            ValueError: If an index or ``output_fmt`` does not exist, or the images are too small.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        wanted = {self.feature_info[i]["module"] for i in self._taps(indices)}
        taps = []
        check_image(x, self.smallest_image)
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
            prune_norm: Ignored: a stage's norm belongs to its tap.
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
            if hasattr(self.head, "norm"):
                self.head.norm = nn.Identity()
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
        like, norm = next(self.parameters()), getattr(self.head, "norm", None)
        self.add_head(pool, like.device, like.dtype)
        fresh: Any = getattr(self.head, "norm", None)
        # It was made for the trunk, not for the classifier, but goes with either's width.
        if (
            norm is not None
            and type(norm) is type(fresh)
            and norm.weight.shape == fresh.weight.shape
        ):
            self.head.norm = norm
        self.head.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing what happens inside."""
        self.grad_checkpointing = enable

    def fuse(self) -> Pyramid:
        """Return a copy that computes the same with fewer layers, for inference.

        BatchNorms and scales fold into the convolutions beside them wherever that is exact. Each
        layer knows its own replacement (its method ``fuse``), so timm's ``reparameterize_model``
        does the same to a network that is part of another one. The copy trains, saves and loads
        like any network, under names of its own.

        Raises:
            ValueError: If a BatchNorm that would fold is in training mode.

        Example:
            >>> import timm
            >>> net = timm.create_model("rednet26", widths=(32, 32, 32, 32)).eval()
            >>> sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
            40
            >>> sum(isinstance(m, nn.BatchNorm2d) for m in net.fuse().modules())
            9
        """
        return cast(Pyramid, reparameterize_model(self))

    def no_weight_decay(self) -> set[str]:
        """Return parameters that weight decay spares, beside those of fewer than two dimensions."""
        return set()

    def _trunk(self) -> list[str]:
        return [name for name, _ in self.named_children() if name != "head"]

    def _run(self, name: str, x: Tensor) -> Tensor:
        module = getattr(self, name)
        if self.grad_checkpointing and name != "stem" and not torch.jit.is_tracing():
            if isinstance(module, nn.Sequential):
                for block in module:
                    x = recompute(block, x)
                return x
            if hasattr(module, "forward_checkpointed"):
                return cast(Tensor, module.forward_checkpointed(x))
        return cast(Tensor, module(x))

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
