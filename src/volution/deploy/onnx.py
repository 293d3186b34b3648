"""Export to ONNX, and proof that the file computes the same."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from volution._support.extras import needs
from volution.deploy.windows import window_ops

__all__ = ["OnnxCheck", "check_onnx", "export_onnx"]


@dataclass(frozen=True)
class OnnxCheck:
    """How far an ONNX file is from the network it was made of.

    Args:
        max_difference: Greatest absolute difference of an output.
        scale: Greatest absolute output, to measure the difference by.
        tolerance: Greatest allowed difference for each unit of scale.
        batch_sizes: Numbers of images it was run with.
    """

    max_difference: float
    scale: float
    tolerance: float
    batch_sizes: tuple[int, ...]

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.max_difference <= self.tolerance * max(self.scale, 1.0)


def export_onnx(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    dynamic_size: bool = False,
) -> Path:
    """Write a network as an ONNX file that takes any number of images.

    The operators are exported as plain PyTorch, so any ONNX runtime can run the file.

    Args:
        model: The network; exported in evaluation mode, comes back in the mode it was in.
        example: Images, ``(N, C, H, W)``. The file is bound to their size, not their number.
        path: The file; its folder must exist.
        dynamic_size: Make a file that takes images of any size, from the network's
            ``smallest_image`` on where it has one. Its graph also computes what depends on the
            size, so it is larger.

    Returns:
        The path.

    Raises:
        ValueError: If ``example`` is not four-dimensional.
        FileNotFoundError: If there is no such folder.
        MissingExtra: If the ONNX packages are not installed.
    """
    with needs("deploy"):
        import onnx  # noqa: F401, torch's exporter needs both and names neither
        import onnxscript  # noqa: F401
    path = Path(path)
    if example.ndim != 4:
        raise ValueError(f"example must be (N, C, H, W), got {tuple(example.shape)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} to")
    # The exporter takes a dimension of size 1 for a constant.
    if example.shape[0] < 2:
        example = torch.cat([example, example])
    dynamic = {0: torch.export.Dim("batch")}
    if dynamic_size:
        smallest = getattr(model, "smallest_image", 1)
        dynamic[2] = torch.export.Dim("height", min=smallest)
        dynamic[3] = torch.export.Dim("width", min=smallest)
    with _evaluating(model), window_ops(), _quiet():
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=(dynamic,),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        program.save(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


@torch.inference_mode()
def check_onnx(
    model: nn.Module, images: Tensor, path: str | os.PathLike[str], *, tolerance: float = 1e-4
) -> OnnxCheck:
    """Run an ONNX file in onnxruntime and compare it with the network.

    Args:
        model: The network; run in evaluation mode, comes back in the mode it was in.
        images: What to run both on; all of them at once, and the first alone.
        path: The ONNX file.
        tolerance: Greatest allowed difference for each unit of the greatest output.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an ONNX file.
        MissingExtra: If onnxruntime is not installed.
    """
    with needs("deploy"):
        import onnxruntime
    if not Path(path).is_file():
        raise FileNotFoundError(f"no ONNX file at {path}")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its own exceptions derive from Exception alone
        raise ValueError(f"{path} is not an ONNX file: {str(error).splitlines()[0]}") from error
    difference, scale = 0.0, 0.0
    batches = (images, images[:1])
    with _evaluating(model):
        for batch in batches:
            expected = model(batch)
            (found,) = session.run(None, {session.get_inputs()[0].name: batch.cpu().numpy()})
            distance = (torch.from_numpy(found) - expected.cpu()).abs().max()
            # NaN must win here, which max() of Python does not promise.
            difference = float(torch.maximum(distance, torch.tensor(difference)))
            scale = max(scale, float(expected.abs().max()))
    return OnnxCheck(difference, scale, tolerance, tuple(len(batch) for batch in batches))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says of its own inner workings off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # torch's own use of what torch deprecates.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
