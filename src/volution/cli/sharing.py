"""Commands that share networks: push and pull."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volution._support.console import out

if TYPE_CHECKING:
    from volution.tasks import Classifier

__all__ = ["pull", "push"]


def push(
    source: str,
    destination: str,
    *,
    model: str | None = None,
    license: str | None = None,
    private: bool = False,
    overwrite: bool = False,
) -> int:
    """Write a trained network to a folder or to the Hugging Face Hub, for timm and volution.

    Args:
        source: A run's folder, or a file of weights.
        destination: A folder, or hf-hub:USER/NAME.
        model: Name of the network, for weights that do not say it themselves.
        license: Licence of the weights, such as apache-2.0.
        private: Make a repository on the Hub that only its owner sees.
        overwrite: Replace the network's files in a folder that holds files already.
    """
    from volution import tasks

    sent = tasks.push(
        source, destination, model=model, license=license, private=private, overwrite=overwrite
    )
    _tell(sent, destination)
    return 0


def pull(source: str, destination: str, *, overwrite: bool = False) -> int:
    """Fetch a network from the Hugging Face Hub, or from a folder, into a folder.

    Args:
        source: hf-hub:USER/NAME, with @REVISION for another state than the newest; or a folder.
        destination: The folder.
        overwrite: Replace the network's files in a folder that holds files already.
    """
    from volution import tasks

    _tell(tasks.pull(source, destination, overwrite=overwrite), destination)
    return 0


def _tell(classifier: Classifier, destination: str) -> None:
    out.print(
        f"{classifier.name} with {len(classifier.classes)} classes is in {destination}; "
        f"use it: volution predict {destination} PHOTO.jpg",
        soft_wrap=True,
    )
