"""Three hundred steps at each recipe's highest learning rate, without a loss that is no number."""

from dataclasses import replace

import networks
import pytest
import small

from volution.train import fit
from volution.train.config import read_config, recipes

SIDE, BATCH, EPOCHS = 64, 16, 4
STEPS = EPOCHS * (1438 // BATCH)  # digits to learn from

SHALLOW = {"depths": [1, 1, 4, 1]}
RUNS = [
    ("rednet_imagenet", "rednet26", {}),
    ("hornet_imagenet", "hornet_tiny_7x7", {}),
    ("hornet_imagenet", "hornet_tiny_gf", {}),
    ("hornet_22k", "hornet_large_7x7", SHALLOW),
    ("hornet_384_finetune", "hornet_large_gf_img384", SHALLOW),
    ("van_imagenet", "van_b0", {}),
    ("transxnet_imagenet", "transxnet_t", {}),
    ("xvolution_resnet_imagenet", "xvolution_resnet34", {}),
    ("xvolution_resnet_imagenet", "xvolution_resnet50", {}),
]


def test_every_recipe_is_run():
    # Those without a paper of ours start from weights, or have rates far below these.
    others = {"digits", "distill", "finetune"}
    assert {recipe for recipe, *_ in RUNS} == set(recipes()) - others
    assert STEPS >= 300


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize(("recipe", "model", "shape"), RUNS, ids=[model for _, model, _ in RUNS])
def test_it_stays_finite_at_the_peak(tmp_path, recipe, model, shape, precision):
    config = replace(
        read_config(recipes()[recipe]),
        model=model,
        data="digits",
        out=tmp_path / "run",
        model_args={"widths": networks.narrow(model), **shape},
        image_size=SIDE,
        batch_size=BATCH,
        accumulate=1,
        epochs=EPOCHS,
        # At the peak from the first step to the last, which is harder than the recipe.
        schedule="constant",
        warmup_epochs=0,
        cooldown_epochs=0,
        min_lr=0.0,
        precision=precision,
        workers=0,
        device="cpu",
    )
    # The engine raises at the first loss that is not finite.
    result = fit(config, show_progress=False)
    assert len(result.history) == EPOCHS
    state = small.newest_state(result.folder)
    assert state["global_step"] == STEPS
    assert all(t.isfinite().all() for t in state["state_dict"].values())
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
