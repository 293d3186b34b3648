"""The Hugging Face Hub: fetch and send the folder of a network, or say in one line why not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CARD", "CONFIG", "WEIGHTS", "fetch", "is_remote", "locate", "send"]

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
"""What a network's folder holds, under the names that timm and the Hub expect."""

_PREFIX = "hf-hub:"


def is_remote(name: str | os.PathLike[str]) -> bool:
    """Return whether a name means a repository of the Hugging Face Hub.

    Example:
        >>> is_remote("hf-hub:user/net"), is_remote("runs/net")
        (True, False)
    """
    return os.fspath(name).startswith(_PREFIX)


def locate(name: str | os.PathLike[str]) -> Path:
    """Return the local place that a name means; a repository of the Hub is fetched first.

    Args:
        name: A file, a folder, or ``hf-hub:USER/NAME``.

    Raises:
        ValueError: As :func:`fetch`.
        OSError: As :func:`fetch`.
    """
    return fetch(name) if is_remote(name) else Path(name)


def fetch(name: str | os.PathLike[str]) -> Path:
    """Download a network's folder from the Hugging Face Hub, or take it from the cache.

    Of all files only the configuration, the card and weights as safetensors are taken: nothing
    that could run code.

    Args:
        name: ``hf-hub:USER/NAME``, with ``@REVISION`` for another state than the newest.

    Returns:
        The folder in the cache, which belongs to the cache: copy it before changing it.

    Raises:
        ValueError: If the name cannot be one of the Hub's, or the repository holds no
            ``config.json`` or no ``model.safetensors``.
        OSError: If there is no such repository, or no way to it.
    """
    user_and_name, revision = _parts(name)
    from huggingface_hub import snapshot_download

    with _explained(name, "fetch"):
        folder = snapshot_download(
            user_and_name, revision=revision, allow_patterns=[WEIGHTS, CONFIG, CARD]
        )
    missing = [file for file in (CONFIG, WEIGHTS) if not (Path(folder) / file).is_file()]
    if missing:
        raise ValueError(
            f"{name} holds no {' and no '.join(missing)}; pickled weights are not read"
        )
    return Path(folder)


def send(folder: Path, name: str, *, private: bool = False, message: str = "Add weights") -> str:
    """Upload a folder to the Hugging Face Hub, in one commit.

    Args:
        folder: What to upload, with all that is in it.
        name: ``hf-hub:USER/NAME``; the repository is made if there is none.
        private: Make it visible to its owner only, if it has to be made.
        message: The commit's message.

    Returns:
        The address of the repository.

    Raises:
        ValueError: If the name cannot be one of the Hub's, or has a revision.
        OSError: If the Hub cannot be reached, or does not let this user write there.
    """
    user_and_name, revision = _parts(name)
    if revision is not None:
        raise ValueError(f"a push goes to the newest state; leave @{revision} out of {name}")
    from huggingface_hub import HfApi

    with _explained(name, "write to"):
        api = HfApi(library_name="volution")
        address = api.create_repo(user_and_name, private=private, exist_ok=True)
        api.upload_folder(repo_id=user_and_name, folder_path=folder, commit_message=message)
    return str(address)


def _parts(name: str | os.PathLike[str]) -> tuple[str, str | None]:
    user_and_name, _, revision = os.fspath(name).removeprefix(_PREFIX).partition("@")
    if user_and_name.count("/") != 1 or user_and_name.startswith("/") or user_and_name[-1] == "/":
        raise ValueError(f"a repository of the Hub is written hf-hub:USER/NAME, got {name}")
    return user_and_name, revision or None


@contextmanager
def _explained(name: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Turn the many errors of the Hub's client into one line each."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise ValueError(f"{name} cannot be a repository's name: {error}") from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name}: the repository has no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: there is no such repository, or it is private and this machine has no "
            f"access (log in with: hf auth login)"
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise PermissionError(
            f"cannot {doing} {name} without logging in; run: hf auth login"
        ) from error
    # Of the HTTP library in use, whose errors are not all OSErrors.
    except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        # With nothing in the cache the client says only that, and gives the answer as the cause.
        answer = next((e for e in (error, error.__cause__) if hasattr(e, "response")), None)
        status = getattr(getattr(answer, "response", None), "status_code", None)
        if status in (401, 403):
            raise PermissionError(
                f"cannot {doing} {name}: the Hub refuses this user (HTTP {status}); log in with "
                f"the rights for it: hf auth login"
            ) from error
        if status is not None:
            raise ConnectionError(
                f"cannot {doing} {name}: the Hub answers HTTP {status}"
            ) from error
        raise ConnectionError(
            f"cannot {doing} {name}: the Hugging Face Hub cannot be reached "
            f"({_first_line(error)}); a local folder works without network"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].removeprefix("Got: ") if lines else type(error).__name__
