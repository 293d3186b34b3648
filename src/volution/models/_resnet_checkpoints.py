"""Checkpoints of plain ResNets, torchvision's and timm's, for networks with X-volutions in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from volution.models.official import renames_official
from volution.ops import Xvolution2d


@renames_official
def rename_resnet(state_dict: dict[str, Any], prefix: str) -> None:
    """Accept the names of torchvision's and timm's ResNets, whose stem is the network's own."""
    marks = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight")
    if any(f"{prefix}{mark}" not in state_dict for mark in marks):
        return
    for theirs, ours in (("conv1.", "stem.conv1."), ("bn1.", "stem.bn1."), ("fc.", "head.fc.")):
        _move(state_dict, f"{prefix}{theirs}", f"{prefix}{ours}")


def absorb_norms(block: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Accept a plain ResNet's block: what is a convolution there may be an X-volution here.

    The norm that followed the convolution becomes the one of the convolution branch. The norm of
    the attention gets zero scale and shift, so that the block computes what the plain one did;
    what else the attention has stays as it is.
    """
    for i in (1, 2):
        layer, conv, norm = getattr(block, f"conv{i}"), f"{prefix}conv{i}.", f"{prefix}bn{i}."
        if not isinstance(layer, Xvolution2d) or f"{conv}weight" not in state_dict:
            continue
        _move(state_dict, f"{conv}weight", f"{conv}conv.weight")
        _move(state_dict, norm, f"{conv}conv_norm.")
        for key, value in layer.state_dict().items():
            if key.startswith("attention"):
                off = key in ("attention_norm.weight", "attention_norm.bias")
                state_dict[f"{conv}{key}"] = torch.zeros_like(value) if off else value


def _move(state_dict: dict[str, Any], start: str, new: str) -> None:
    for key in [key for key in state_dict if key.startswith(start)]:
        state_dict[new + key[len(start) :]] = state_dict.pop(key)
