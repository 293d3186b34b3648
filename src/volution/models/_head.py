"""Classifiers with a norm: between pooling and the linear layer, or before both."""

from __future__ import annotations

import torch
from timm.layers import ClassifierHead
from torch import Tensor, nn


class NormClassifierHead(ClassifierHead):
    """Pool, normalise over channels, classify.

    timm's ``ClassifierHead`` with a norm; its ``NormMlpClassifierHead`` takes no pooling that
    changes the width.

    Args:
        in_features: Channels of the map.
        num_classes: Classes; 0 leaves the classifier out, not the norm.
        pool_type: Pooling, as in timm; without any, every pixel is normalised.
        drop_rate: Dropout before the classifier.
        eps: Of the norm.
        device: Where the parameters live.
        dtype: What the parameters are.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, num_classes, pool_type, drop_rate, device=device, dtype=dtype)
        # Registered before the classifier that follows it, so that names keep the running order.
        fc = self.fc
        del self.fc
        self.norm = nn.LayerNorm(self.num_features, eps=eps, device=device, dtype=dtype)
        self.fc = fc

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if self.global_pool.pool_type:
            x = self.norm(x)
        else:
            x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.drop(x)
        if not pre_logits:
            x = self.fc(x)
        return x


class NormPoolHead(ClassifierHead):
    """timm's ``ClassifierHead`` behind a norm of the whole map.

    Args:
        in_features: Channels of the map.
        num_classes: Classes; 0 leaves the classifier out, not the norm.
        pool_type: Pooling, as in timm.
        drop_rate: Dropout before the classifier.
        device: Where the parameters live.
        dtype: What the parameters are.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, num_classes, pool_type, drop_rate, device=device, dtype=dtype)
        # Registered before the classifier that follows it, so that names keep the running order.
        fc = self.fc
        del self.fc
        self.norm = nn.GroupNorm(1, in_features, device=device, dtype=dtype)
        self.fc = fc

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        logits: Tensor = super().forward(self.norm(x), pre_logits=pre_logits)
        return logits
