"""A whole network on photos, and what becomes of it when it is folded."""

from dataclasses import replace

import pytest
import small
import torch

from volution import data, tasks
from volution.infer import evaluate
from volution.train import TrainConfig, fit


@pytest.mark.slow
@small.needs_flowers
def test_transxnet_learns_flowers_and_folds_without_changing_its_mind(tmp_path):
    """Five classes and no published weights: learned from scratch, at a quarter of the side."""
    config = TrainConfig(
        model="transxnet_t",
        # From 1e-5 the branches would hardly take part in so few steps.
        model_args={"layer_scale_init_value": 0.1},
        data=f"folder:{small.FLOWERS}",
        out=tmp_path / "flowers",
        image_size=64,
        epochs=6,
        batch_size=25,
        lr=1e-3,
        device="cpu",
    )
    result = fit(config, show_progress=False)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    # The data's own README gives 43 % for nearest neighbours in colour.
    assert result.best_top1 > 0.35

    trained = tasks.load_classifier(result.best)
    folded = replace(trained, model=trained.model.eval().fuse())
    assert not [m for m in folded.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    photos = data.load(config.data).val
    measured = [evaluate(c, photos, show_progress=False).top1 for c in (trained, folded)]
    assert measured[0] == measured[1] == pytest.approx(result.best_top1)
    for batch in data.loader(photos, trained.input.transform(), batch_size=50):
        with torch.inference_mode():
            want, got = trained.model(batch.images), folded.model(batch.images)
        assert torch.equal(got.argmax(1), want.argmax(1))
        assert (got - want).abs().max() < 1e-4 * want.abs().max()
