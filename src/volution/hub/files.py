"""Files of weights: read without running code, written whole or not at all."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from volution.models.official import unwrap

__all__ = ["read_checkpoint", "write_checkpoint"]


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights of a file, safetensors or PyTorch's own format, told by its content.

    No code of a file is ever run: PyTorch files are read with ``weights_only=True``, and of all
    Python objects only :class:`argparse.Namespace`, in which training scripts keep their options,
    is let through.

    Args:
        path: The file.

    Returns:
        Tensors by name, on the CPU; out of ``state_dict`` or ``model`` if the file wraps them
        (averaged weights, ``state_dict_ema`` or ``model_ema``, are preferred), names without a
        leading ``module.``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, holds no weights, or holds Python objects that could
            run code; the message names the file and what is wrong.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_checkpoint(f"{folder}/net.safetensors", {"fc.bias": torch.zeros(2)})
        ...     read_checkpoint(f"{folder}/net.safetensors")
        {'fc.bias': tensor([0., 0.])}
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if not path.is_file():
        raise ValueError(f"a checkpoint must be a file, {path} is a folder")
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file is the length of its JSON header in 8 bytes, then the header.
    read = _read_safetensors if start[8:] == b"{" else _read_torch
    checkpoint = read(path)
    try:
        return unwrap(checkpoint)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"{path} is not a checkpoint: {error}") from error


def write_checkpoint(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights as safetensors: the whole file, or nothing.

    The file is written beside its place and then moved there, so an interruption leaves the
    earlier file as it was. Tensors that share memory are written out one by one.

    Args:
        path: The file; its folder must exist.
        state_dict: Tensors by name, on any device.
        metadata: Text to keep with them.

    Raises:
        FileNotFoundError: If the folder does not exist.
        TypeError: If ``state_dict`` or ``metadata`` hold something else.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} to")
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"state_dict[{name!r}] must be a tensor, got {type(value).__name__}")
    for name, text in (metadata or {}).items():
        if not isinstance(text, str):
            raise TypeError(f"metadata[{name!r}] must be a str, got {type(text).__name__}")
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state_dict.items()
    }
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        # safetensors lets only the owner read; the file is to be as readable as any new one.
        unfinished.touch()
        mode = unfinished.stat().st_mode
        safetensors.torch.save_file(tensors, unfinished, dict(metadata or {}))
        unfinished.chmod(mode)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read_safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is a damaged safetensors file: {error}") from error


def _read_torch(path: Path) -> object:
    try:
        # An open file: given a name, torch.load would go by its ending.
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            path.open("rb") as file,
            warnings.catch_warnings(),
        ):
            # A plain pickle is refused below; what torch would rather have is no help then.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can trip the reader up in any way
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found and isinstance(error, pickle.UnpicklingError):
            raise ValueError(
                f"{path} is refused: beside tensors it holds Python objects that could run code "
                f"({found[1]}); save its state_dict alone"
            ) from error
        if isinstance(error, pickle.UnpicklingError):
            # Not quoted: PyTorch's message advises to switch the safe reader off.
            raise ValueError(
                f"{path} is refused: it is damaged, or a pickle that cannot be read without "
                f"running code; save the state_dict with torch.save or as safetensors"
            ) from error
        raise ValueError(f"{path} is not a checkpoint, or a damaged one: {error}") from error
