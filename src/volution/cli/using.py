"""Commands that use a trained network: predict."""

from __future__ import annotations

from pathlib import Path

from volution._support.console import log
from volution.cli._common import Device, find_device, tell_broken

__all__ = ["predict"]


def predict(
    checkpoint: str,
    images: list[str],
    *,
    top: int = 3,
    embeddings: bool = False,
    output: Path | None = None,
    json: bool = False,
    model: str | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: Device = "auto",
    max_pixels: int = 100_000_000,
    part_size: int = 10_000,
    rank: int | None = None,
    ranks: int | None = None,
) -> int:
    """Say what is in images.

    Args:
        checkpoint: Weights, such as runs/NAME/best.safetensors; the folder of a run or of a pushed
            network, or hf-hub:USER/NAME.
        images: Files, folders and patterns such as 'photos/**/*.jpg'; or wds:SHARDS.
        top: Classes to name for each image.
        embeddings: Give the pooled features, the classifier's input, as well.
        output: File to write (.csv, .json, .jsonl, .parquet), or a folder for parts in parquet,
            which several processes can share and a later run continues.
        json: Write JSON instead of a table.
        model: Name of the network, for weights that do not say it themselves.
        batch_size: Images per pass.
        workers: Processes that read images ahead.
        device: Where to compute; auto takes a GPU if there is one.
        max_pixels: Images of more pixels are refused, unread.
        part_size: Images of a part.
        rank: Which share of the images to write parts of, from 0; torchrun and SLURM say it too.
        ranks: How many shares there are; likewise.
    """
    from volution import tasks
    from volution.infer.inputs import find_inputs
    from volution.infer.shares import find_share
    from volution.report import predictions

    in_parts = output is not None and (output.is_dir() or not output.suffix)
    share = find_share(rank, ranks)
    where = find_device(device, share.local)
    settings = predictions.Settings(top, embeddings, batch_size, workers, where, max_pixels)
    predictions.check(settings, output, share, in_parts=in_parts, part_size=part_size, as_json=json)
    inputs = find_inputs(images)
    count = inputs.survey().count
    classifier = tasks.load_classifier(checkpoint, model)
    if not in_parts:
        found = predictions.show(classifier, inputs, count, settings, output, as_json=json)
        return tell_broken(found)
    assert output is not None
    try:
        found = predictions.write_parts(
            classifier, inputs, output, share, part_size, settings, as_json=json
        )
    except KeyboardInterrupt:
        log.print("the same command goes on after the last complete part")
        raise
    return tell_broken(found)
