"""A converted network on photos: it learns, its attention joins in, and it folds."""

from __future__ import annotations

import pytest
import timm
import torch
from small import FLOWERS, needs_flowers
from torch.nn import functional as F

from volution import data
from volution.convert import convert, xvolution
from volution.ops import Xvolution2d

SIZE, BATCH, EPOCHS = 64, 16, 3


@pytest.mark.slow
@needs_flowers
def test_a_fine_tuned_resnet18_folds_to_the_same_predictions():
    photos = data.load(f"folder:{FLOWERS}")
    config = data.InputConfig(3, SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    plain = timm.create_model("resnet18", num_classes=len(photos.classes), zero_init_last=False)
    net = convert(plain, {"layer3.*.conv*": xvolution(heads=4)}, quiet=True)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    batches = data.loader(photos.train, config.transform(), batch_size=BATCH, shuffle_seed=0)
    for _ in range(EPOCHS):
        for batch in batches:
            loss = F.cross_entropy(net.train()(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    layers = [module for module in net.modules() if isinstance(module, Xvolution2d)]
    assert all(layer.attention_norm.weight.abs().max() > 1e-3 for layer in layers)
    folded = timm.utils.reparameterize_model(net.eval(), inplace=False)
    assert not any(isinstance(module, Xvolution2d) for module in folded.modules())
    right = count = 0
    for batch in data.loader(photos.val, config.transform(), batch_size=BATCH):
        with torch.inference_mode():
            want, got = net(batch.images), folded(batch.images)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert torch.equal(got.argmax(1), want.argmax(1))
        right += int((want.argmax(1) == batch.labels).sum())
        count += len(batch.labels)
    # Five kinds of flowers in equal numbers, and a network that starts from nothing.
    assert right / count > 0.3
