"""What a network's answer at one place depends on: its effective receptive field."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

from volution.analysis.style import INK, figure, plain, styled, svg

__all__ = ["effective_receptive_field", "receptive_field_picture"]

_STEPS = 20


def effective_receptive_field(model: nn.Module, images: Tensor) -> Tensor:
    """Measure how much each pixel of an image changes the middle of the last feature map.

    Args:
        model: A network of timm's kind, whose ``forward_features`` gives maps. It comes back in
            the mode it was in.
        images: ``(N, C, H, W)``, prepared as the network expects.

    Returns:
        ``(H, W)``: the mean over images of the size of the derivative, relative to the greatest.

    Raises:
        ValueError: If the network's features are not maps, or nothing depends on the image.

    References:
        Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural
        Networks", NeurIPS 2016. https://arxiv.org/abs/1701.04128
    """
    modes = [(module, module.training) for module in model.modules()]
    x = images.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            features = model.eval().forward_features(x)  # type: ignore[operator]
            if features.ndim != 4:
                raise ValueError(
                    f"model must give maps (N, C, H, W) as features, got {tuple(features.shape)}"
                )
            height, width = features.shape[-2:]
            middle = features[:, :, height // 2, width // 2].clamp_min(0).sum()
            (grad,) = torch.autograd.grad(middle, x)
    finally:
        for module, training in modes:
            module.training = training
    field = grad.abs().sum(1).mean(0).float().cpu()
    greatest = float(field.max())
    if not greatest > 0:
        raise ValueError("model's features do not depend on the images")
    return field / greatest


@styled
def receptive_field_picture(field: Tensor, example: Image.Image | None = None) -> bytes:
    """Draw an effective receptive field, on a logarithmic scale.

    Args:
        field: As of :func:`effective_receptive_field`.
        example: An image of the same size to show beside it.

    Returns:
        SVG.
    """
    from matplotlib import colormaps

    fig = figure(7.6 if example is not None else 4.2, 3.9)
    places = fig.subplots(1, 2 if example is not None else 1, squeeze=False)[0]
    # The middle is far larger than the rest, which would vanish on a linear scale.
    levels = field.clamp_min(1e-4).log10().numpy()
    steps = colormaps["Oranges"].resampled(_STEPS)
    axes = plain(places[0], title="What the middle sees")
    drawn = axes.imshow(levels, cmap=steps, vmin=-4, vmax=0, interpolation="none")
    bar = fig.colorbar(drawn, ax=axes, shrink=0.8, ticks=[-4, -2, 0])
    bar.ax.set_yticklabels(["1/10,000", "1/100", "most"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelcolor=INK, length=0, labelsize=8.5)
    if example is not None:
        plain(places[1], title="An image of the same size")
        places[1].imshow(example, cmap="gray")
    for axes in places:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
    return svg(fig)
