"""What a training step needs of memory, found out without using any."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.data.config import resolve_data_config
from timm.optim import create_optimizer_v2, list_optimizers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils import checkpoint as checkpointing

from volution import tasks
from volution._support.names import unknown

__all__ = ["TrainingMemory", "training_memory"]

Precision = Literal["32", "bf16", "fp16"]

# A GPU's casts in mixed precision differ from a processor's: its norms and softmaxes give float32.
_DEVICE = "cuda"


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that a training step needs on one device.

    Args:
        parameters: The network's weights and statistics.
        gradients: Of the weights that learn.
        optimizer: What the optimizer keeps from step to step.
        ema: The moving average of the weights.
        activations: What the forward pass keeps for the backward pass, images included; with
            gradient checkpointing also what the largest block makes a second time.

    Example:
        >>> memory = TrainingMemory(4, 4, 8, 0, 100)
        >>> memory.total
        116
    """

    parameters: int
    gradients: int
    optimizer: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        """All of it together."""
        kept = self.parameters + self.gradients + self.optimizer + self.ema
        return kept + self.activations


def training_memory(
    model: str | nn.Module,
    *,
    batch_size: int,
    image_size: int | None = None,
    optimizer: str = "adamw",
    ema: bool = False,
    precision: Precision = "32",
    grad_checkpointing: bool = False,
) -> TrainingMemory:
    """Tell what memory a training step needs on one GPU, by a dry run without numbers.

    Tensors have shapes and no content in it, so that networks and batches of any size are told in
    seconds. Counted is what is alive when the forward pass is over: that is the peak, but for what
    a kernel needs for itself, the CUDA context and what the allocator leaves unused between
    blocks; have a tenth to a fifth in hand.

    Args:
        model: A network, or the name of one of volution or timm. What has no gradient (frozen
            stages) needs no memory for learning. A network that is given stays as it is.
        batch_size: Images on this one device, in one pass.
        image_size: Side of the images; that of the network's published configuration by default.
        optimizer: Name of an optimizer of timm.
        ema: Keep a moving average of the weights.
        precision: 32, or bf16 or fp16 under autocast, with a GPU's rules of what is cast.
        grad_checkpointing: Compute the insides of blocks a second time instead of keeping them.

    Raises:
        ValueError: If a name is unknown, a number is not positive, the network has no gradient
            checkpointing or does not take such images, or nothing in it learns.

    Example:
        >>> memory = training_memory("rednet26", batch_size=8, image_size=64)
        >>> memory.parameters // 4, memory.optimizer // memory.gradients
        (9264398, 2)
    """
    for name, number in (("batch_size", batch_size), ("image_size", image_size)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if precision not in ("32", "bf16", "fp16"):
        raise ValueError(f"precision must be 32, bf16 or fp16, got {precision}")
    if optimizer not in list_optimizers():
        raise ValueError(unknown("optimizer", optimizer, map(str, list_optimizers())))
    with _as_trained(model, grad_checkpointing) as net:
        learning = [p for p in net.parameters() if p.requires_grad]
        if not learning:
            raise ValueError("model: nothing in it learns, all parameters are frozen")
        weights = _bytes([*net.parameters(), *net.buffers()])
        return TrainingMemory(
            weights,
            _bytes(learning),
            _optimizer_bytes(learning, optimizer),
            weights if ema else 0,
            _activation_bytes(net, batch_size, image_size, precision),
        )


@contextmanager
def _as_trained(model: str | nn.Module, grad_checkpointing: bool) -> Iterator[nn.Module]:
    """Give a copy of a network without content, set to what is asked for."""
    if isinstance(model, str):
        with torch.device("meta"):
            net = tasks.create_model(model).train()
    else:
        net = _without_content(model)
    if hasattr(net, "set_grad_checkpointing"):
        try:
            net.set_grad_checkpointing(grad_checkpointing)  # type: ignore[operator]
        # timm's way of saying that there is none.
        except AssertionError as error:
            raise ValueError(f"grad_checkpointing: {type(net).__name__} has none") from error
    elif grad_checkpointing:
        raise ValueError(f"grad_checkpointing: {type(net).__name__} has none")
    yield net


def _without_content(model: nn.Module) -> nn.Module:
    emptied: dict[int, Tensor] = {}
    for parameter in model.parameters():
        shape = torch.empty_like(parameter, device="meta")
        emptied[id(parameter)] = nn.Parameter(shape, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        emptied[id(buffer)] = torch.empty_like(buffer, device="meta")
    # What is in the memo counts as copied.
    return copy.deepcopy(model, dict(emptied))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _optimizer_bytes(learning: list[nn.Parameter], name: str) -> int:
    """Return what an optimizer keeps for these parameters, after a step on the meta device."""
    parameters = [nn.Parameter(torch.empty_like(p, device="meta")) for p in learning]
    optimizer = create_optimizer_v2(parameters, opt=name, lr=1e-3, momentum=0.9)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    try:
        optimizer.step()
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"optimizer: what {name} keeps cannot be told without numbers; take adamw or sgd"
        ) from error
    kept = [value for state in optimizer.state.values() for value in state.values()]
    return _bytes(value for value in kept if isinstance(value, Tensor) and value.is_meta)


def _activation_bytes(
    net: nn.Module, batch_size: int, image_size: int | None, precision: Precision
) -> int:
    channels, *sides = resolve_data_config(model=net)["input_size"]
    height, width = sides if image_size is None else (image_size, image_size)
    # The meta device is quicker, but knows no autocast; what pretends to be on a GPU does.
    device = "meta" if precision == "32" else _DEVICE
    with nullcontext() if precision == "32" else FakeTensorMode(allow_non_fake_inputs=True):
        state = {k: _empty(v, device) for k, v in net.state_dict(keep_vars=True).items()}
        images = torch.empty(batch_size, channels, height, width, device=device)
        images = images.to(memory_format=torch.channels_last)
        labels = torch.zeros(batch_size, dtype=torch.long, device=device)
        saved = _Saved(state.values())
        saved.add(images)
        again = _Recomputed(saved)
        try:
            with _cast_as_on_a_gpu(precision), again.installed(), saved.watch():
                cross_entropy(functional_call(net, state, (images,)), labels)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"{type(net).__name__} cannot be trained on {batch_size} images of {height} by "
                f"{width}: {error}"
            ) from error
    return saved.bytes + again.largest


def _empty(tensor: Tensor, device: str) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return empty.requires_grad_(tensor.requires_grad)


class _Saved:
    """Count what is kept for the backward pass, each piece of memory once.

    Args:
        besides: Tensors that are there anyway.
    """

    def __init__(self, besides: Iterable[Tensor]) -> None:
        # The tensors are held: otherwise the place of one could become that of another.
        self._besides = {_place(tensor): tensor for tensor in besides}
        self._kept: dict[int, Tensor] = {}

    @property
    def all(self) -> list[Tensor]:
        return [*self._besides.values(), *self._kept.values()]

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._kept.values())

    def add(self, tensor: Tensor) -> Tensor:
        if _place(tensor) not in self._besides:
            self._kept[_place(tensor)] = tensor
        return tensor

    def watch(self) -> AbstractContextManager[None]:
        return torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor)


class _Recomputed:
    """Stand in for PyTorch's checkpointing, which hides what a block saves for itself.

    Args:
        saved: Where the inputs of the blocks are counted.

    Attributes:
        largest: Bytes of the block that makes most of them a second time.
    """

    def __init__(self, saved: _Saved) -> None:
        self.saved = saved
        self.largest = 0

    def __call__(self, function: Any, *inputs: Any, **settings: Any) -> Any:
        around = self.saved
        for value in inputs:
            if isinstance(value, Tensor):
                around.add(value)
        self.saved = _Saved(around.all)
        try:
            with self.saved.watch():
                output = function(*inputs)
            self.largest = max(self.largest, self.saved.bytes)
        finally:
            self.saved = around
        return output

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand wherever the function was imported to."""
        real = checkpointing.checkpoint
        places = [m for m in list(sys.modules.values()) if vars(m).get("checkpoint") is real]
        try:
            for module in places:
                module.checkpoint = self  # type: ignore[attr-defined]
            yield
        finally:
            for module in places:
                module.checkpoint = real  # type: ignore[attr-defined]


def _place(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def _cast_as_on_a_gpu(precision: Precision) -> Iterator[None]:
    """Do what ``torch.autocast`` does, which refuses to where there is no GPU."""
    if precision == "32":
        yield
        return
    before = torch.is_autocast_enabled(_DEVICE), torch.get_autocast_dtype(_DEVICE)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    torch.set_autocast_enabled(_DEVICE, True)
    torch.set_autocast_dtype(_DEVICE, dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(_DEVICE, before[0])
        torch.set_autocast_dtype(_DEVICE, before[1])
