"""The report of a run: one page with all there is to see of it."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import torch

from volution import analysis, data, tasks
from volution._support.console import log
from volution._support.extras import MissingExtra, needs
from volution.infer.review import Review, Sample, review
from volution.report import family, parts
from volution.report.page import Page, Photo
from volution.report.run_files import RunFiles, read_run
from volution.train import TrainConfig

__all__ = ["REPORT", "is_current", "write_run_report"]

REPORT = "report.html"

# Images that go through the network at once, at most.
_BATCH = 64
# Images whose receptive field is averaged.
_FIELD_IMAGES = 4

_STATES = {
    "finished": "finished",
    "interrupted": "broken off",
    "running": "still going on when this was written",
}


def write_run_report(
    folder: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    samples: int = 12,
    show_progress: bool = True,
) -> Path:
    """Write a page on a run, finished or not, into its folder.

    Curves and settings come from the run's files. The best weights then look at the validation
    images once more, for the confusion of classes and for single images; where the data cannot be
    read any more, the page says so instead.

    Args:
        folder: The run's folder.
        device: Where to look at the images.
        samples: How many of the worst images, and of the best, are shown.
        show_progress: Show a progress bar.

    Returns:
        The page, ``report.html``; it opens without network.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If a file of the run is damaged, or ``samples`` is not positive.
        MissingExtra: If matplotlib is not installed.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    run = read_run(folder)
    with needs("analysis"):
        import matplotlib  # noqa: F401 - before the network looks at thousands of images
    classifier = tasks.load_classifier(run.weights) if run.weights.is_file() else None
    found, problem = None, "There are no weights yet: no epoch was completed."
    if classifier is not None:
        found, problem = _look(run, classifier, device, samples, show_progress)
    page = _begin(run, classifier)
    _add_course(page, run)
    if classifier is not None and found is not None:
        _add_images(page, classifier, found)
    else:
        page.section("What it says", problem)
    _add_use(page, run)
    _add_settings(page, run.config)
    _add_environment(page, run)
    path = run.folder / REPORT
    page.write(path)
    return path


def is_current(folder: Path) -> bool:
    """Return whether a run's page is newer than all numbers of the run."""
    page = folder / REPORT
    return page.is_file() and page.stat().st_mtime >= read_run(folder).changed.timestamp()


def _look(
    run: RunFiles,
    classifier: tasks.Classifier,
    device: str | torch.device,
    samples: int,
    show_progress: bool,
) -> tuple[Review | None, str]:
    """Return what the network says of the validation images, or why it could not be asked."""
    config = run.config
    try:
        images = data.load(config.data, max_pixels=config.max_pixels)
        if images.classes != classifier.classes:
            raise ValueError(f"{config.data} has other classes now")
        found = review(
            classifier,
            images.val,
            samples=samples,
            # That of the training may be meant for many devices.
            batch_size=min(_BATCH, config.batch_size),
            workers=config.workers,
            device=device,
            show_progress=show_progress,
        )
    except (ValueError, OSError, MissingExtra) as error:
        if show_progress:
            log.print(f"report without validation images: {error}", markup=False, soft_wrap=True)
        return None, f"The validation images could not be looked at: {error}."
    return found, ""


def _begin(run: RunFiles, classifier: tasks.Classifier | None) -> Page:
    config, best = run.config, run.best
    done = int(run.history[-1]["epoch"]) if run.history else 0
    of = f"of {config.epochs} epochs" if done < config.epochs else "epochs"
    page = Page(
        run.folder.resolve().name,
        f"{config.model} learns from {config.data}: {_STATES[run.state]}, after {done} {of}.",
    )
    cards: list[tuple[str, str, str, bool | None]] = []
    if best is not None:
        cards.append(("Best top-1", f"{best['val_top1']:.2%}", f"epoch {best['epoch']:.0f}", None))
    cards.append(("Epochs", f"{done}", f"of {config.epochs}", None))
    if run.history:
        each = run.seconds / len(run.history)
        cards += [
            ("Time", parts.duration(run.seconds), f"{parts.duration(each)} for an epoch", None),
            ("Training", f"{run.images_per_second:,.0f}", "images per second", None),
        ]
    if classifier is not None:
        cards.append((classifier.name, parts.millions(classifier.model), "parameters", None))
    page.cards(cards)
    return page


def _add_course(page: Page, run: RunFiles) -> None:
    page.section("How it learned")
    if not run.history and not run.steps:
        page.text("Nothing was written down yet.")
        return
    if run.config.label_smoothing or run.config.mixup or run.config.cutmix:
        page.text(
            "The training loss is that of varied images with softened labels; the validation loss "
            "is that of plain ones, and may be the lower of the two."
        )
    parts.add_curves(page, run.history, steps=run.steps)
    page.picture(
        analysis.schedule_picture(run.steps or run.history),
        "Line chart of the learning rate over the epochs.",
    )
    if run.history:
        rows = [
            [f"{row['epoch']:.0f}"]
            + [f"{row[name]:.4f}" for name in ("train_loss", "val_loss")]
            + [f"{row[name]:.2%}" for name in ("val_top1", "val_top5")]
            + [f"{row['seconds']:.1f}"]
            for row in run.history
        ]
        head = ["epoch", "training loss", "validation loss", "top-1", "top-5", "seconds"]
        page.table(head, rows, folded="all epochs as a table")


def _add_images(page: Page, classifier: tasks.Classifier, found: Review) -> None:
    classes, evaluation = classifier.classes, found.evaluation
    low, high = evaluation.interval
    page.section(
        "What it says",
        f"The best weights are right on {evaluation.top1:.2%} of {evaluation.count:,} validation "
        f"images (95 % interval {low:.1%} to {high:.1%}); the right class is among the first five "
        f"on {evaluation.top5:.2%}. Its certainty is off by {evaluation.ece:.1%} on average "
        f"(expected calibration error).",
    )
    page.heading("Worst: the highest loss")
    page.gallery([_photo(sample, classifier) for sample in found.worst])
    page.heading("Best: the lowest loss")
    page.gallery([_photo(sample, classifier) for sample in found.best])
    parts.add_confusion(page, evaluation.confusion, classes)
    parts.add_classes(page, evaluation.confusion, classes)
    # A typical image: the one it is surest of.
    best = found.best[0]
    image = parts.picture_of(best.pixels, classifier.input)
    family.add_kernels(page, classifier.model, best.pixels, image)
    pixels = torch.stack([sample.pixels for sample in found.best[:_FIELD_IMAGES]])
    family.add_receptive_field(page, classifier.model, pixels, image)


def _photo(sample: Sample, classifier: tasks.Classifier) -> Photo:
    return parts.photo(
        parts.picture_of(sample.pixels, classifier.input),
        classifier.classes[sample.truth],
        classifier.classes[sample.answer],
        sample.probability,
        f"loss {sample.loss:.2f}",
    )


def _add_use(page: Page, run: RunFiles) -> None:
    if not run.weights.is_file():
        return
    folder = run.folder.resolve().name
    page.section(
        "Use it", f"In the folder of the run, {folder}; the file has all that is needed."
    ).code(
        f"volution predict {run.weights.name} PHOTO.jpg\n"
        f"volution eval {run.weights.name} --data folder:PATH\n"
        f"volution train --weights {run.weights.name} --data folder:PATH  # train it further"
    )


def _add_settings(page: Page, config: TrainConfig) -> None:
    given, usual = asdict(config), asdict(TrainConfig())
    rows = [[name, _value(value), _value(usual[name])] for name, value in given.items()]
    chosen = [row for row in rows if given[row[0]] != usual[row[0]]]
    page.section("Settings", "Those that are not the usual ones.").table(
        ["setting", "value", "usually"], chosen
    )
    page.table(["setting", "value", "usually"], rows, folded="all settings")


def _value(value: object) -> str:
    return "-" if value is None else str(value)


def _add_environment(page: Page, run: RunFiles) -> None:
    made_with = run.environment
    if not made_with:
        return
    machine, versions = made_with["machine"], made_with["versions"]
    rows = [[name, version or "not installed"] for name, version in versions.items()]
    rows += [[name, str(machine[name])] for name in ("system", "processor", "cores", "threads")]
    rows.append(["GPUs", ", ".join(machine["gpus"]) or "none"])
    page.section("Made with").table(["what", "which"], rows, folded="versions and machine")
    parts.add_kernel_table(page, made_with, folded="which kernel each operator got, and why")
    parts.add_footer(page, made_with)
