"""Five hundred photos, five classes, no published weights: what each family makes of them."""

import pytest
import small

from volution.train import TrainConfig, fit

# Small networks, since there is little to learn from; 400 steps (HorNet, which has no batch
# statistics and learns more slowly, 500 on larger images).
NETWORKS = {
    "rednet26": {"model_args": {"widths": [32, 64, 128, 256], "group_channels": 8}, "lr": 3e-3},
    "xvolution_resnet34": {
        "model_args": {"depths": [1, 1, 2, 1], "widths": [32, 64, 128, 256], "heads": 4},
        "lr": 1e-3,
    },
    "van_b0": {"model_args": {"widths": [32, 64, 96, 128], "depths": [1, 1, 2, 1]}, "lr": 3e-3},
    "transxnet_t": {
        # From 1e-5 the branches would hardly take part in so few steps.
        "model_args": {
            "depths": [1, 1, 2, 1],
            "widths": [24, 48, 112, 160],
            "image_size": 64,
            "layer_scale_init_value": 0.1,
        },
        "lr": 2e-3,
    },
    "hornet_tiny_7x7": {
        "model_args": {
            "widths": [32, 64, 128, 256],
            "depths": [1, 1, 2, 1],
            "layer_scale_init_value": 0,
        },
        "lr": 2e-3,
        "image_size": 96,
        "batch_size": 20,
        "warmup_epochs": 3,
    },
}
RECIPE = {
    "image_size": 64,
    "epochs": 20,
    "batch_size": 25,
    "warmup_epochs": 2,
    "crop_scale": 0.35,
    "device": "cpu",
}


@pytest.mark.slow
@small.needs_flowers
@pytest.mark.parametrize("model", NETWORKS)
def test_flowers_are_learned_from_scratch(model, tmp_path):
    """The data's own README gives 43 % for nearest neighbours in colour."""
    settings = {**RECIPE, **NETWORKS[model]}
    found = [
        fit(
            TrainConfig(
                model=model,
                data=f"folder:{small.FLOWERS}",
                out=tmp_path / str(seed),
                seed=seed,
                **settings,
            ),
            show_progress=False,
        ).best_top1
        for seed in range(3)
    ]
    assert sum(found) / len(found) >= 0.55, found
