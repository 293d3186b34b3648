"""Commands that use a trained network: predict."""

from __future__ import annotations

from pathlib import Path

from volution.cli._common import Device, find_device, tell_broken

__all__ = ["predict"]


def predict(
    checkpoint: Path,
    images: list[str],
    *,
    top: int = 3,
    output: Path | None = None,
    json: bool = False,
    model: str | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: Device = "auto",
) -> int:
    """Say what is in images.

    Args:
        checkpoint: Weights, such as runs/NAME/best.safetensors.
        images: Files, folders and patterns such as 'photos/**/*.jpg'.
        top: Classes to name for each image.
        output: File to write, .csv or .json.
        json: Write JSON instead of a table.
        model: Name of the network, for weights that do not say it themselves.
        batch_size: Images per pass.
        workers: Processes that read images.
        device: Where to compute; auto takes a GPU if there is one.
    """
    from volution import infer, tasks
    from volution.report.terminal import show_predictions

    if output is not None and output.suffix not in (".csv", ".json"):
        raise ValueError(f"output must end in .csv or .json, got {output}")
    if output is not None and not output.parent.is_dir():
        raise FileNotFoundError(f"output: no folder {output.parent}")
    classifier = tasks.load_classifier(checkpoint, model)
    predictions = infer.predict(
        classifier,
        images,
        top=top,
        batch_size=batch_size,
        workers=workers,
        device=find_device(device),
    )
    if output is not None:
        text = predictions.to_csv() if output.suffix == ".csv" else predictions.to_json() + "\n"
        output.write_text(text, encoding="utf-8")
    show_predictions(predictions, as_json=json)
    return tell_broken(predictions.broken)
