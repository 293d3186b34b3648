"""The authors' checkpoints: from any of their wrappings to the names used here.

A file of theirs may hold the network under ``state_dict`` or ``model``, averaged weights beside
it, names that begin with ``module.`` (their parallel training) or ``backbone.`` (their
classifiers, detectors and segmenters), and layers other than the backbone's. Renaming inside a
layer is that layer's own business: it happens in load hooks (``Module.register_load_state_dict
_pre_hook``), which run here too, so that nothing is written twice. A family whose layers have
other places in the authors' networks says so with :func:`renames_official`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

# In this order: where a file holds averaged weights, those are what it is evaluated with.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_BACKBONE = "backbone."
_HEAD = "head."
_SHOWN = 5

Rename = Callable[[dict[str, Any], str], None]
_RENAMES: list[Rename] = []


def renames_official(rename: Rename) -> Rename:
    """Let a function rename the keys of a family's checkpoints, before they are loaded.

    It gets a state dict and the prefix of the network in it, and changes the dict in place if it
    recognises its family by the names; otherwise it leaves the dict alone.
    """
    _RENAMES.append(rename)
    return rename


def load_official(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load a checkpoint of the authors, unchanged, into one of volution's networks.

    Args:
        model: A network of :mod:`volution.models`, or a timm feature extractor made of one.
        state_dict: What the file holds: a state dict, bare or wrapped in ``state_dict`` or
            ``model`` (averaged weights, ``state_dict_ema`` or ``model_ema``, are preferred where
            present), names with or without ``module.`` and ``backbone.`` in front. The
            classifier is passed over where the model has none, and so are the necks and heads
            beside a ``backbone.``. It is not modified.

    Raises:
        ValueError: If the weights are not this architecture's; the message says which keys are
            missing, unexpected or of another shape. The model is then as it was.
        TypeError: If there is no state dict in ``state_dict``.

    Example:
        >>> import timm, volution
        >>> theirs = timm.create_model("rednet26", num_classes=10, widths=(32, 64, 96, 128))
        >>> saved = {f"backbone.{k}": v for k, v in theirs.state_dict().items()}
        >>> ours = timm.create_model("rednet26", num_classes=0, widths=(32, 64, 96, 128))
        >>> volution.models.load_official(ours, {"state_dict": saved})
    """
    state = official_state(state_dict, model)
    problems = _differences(model, state)
    if problems:
        raise ValueError(
            f"the checkpoint does not fit {_describe(model)}, nothing was loaded:\n"
            + "\n".join(problems)
        )
    model.load_state_dict(state)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Prepare a checkpoint for timm's ``pretrained=True``, which adapts input and classifier.

    timm loads loosely where the number of classes differs, so missing and unexpected keys are
    reported here; shapes are left to timm, which changes some on purpose.

    Raises:
        ValueError: If keys outside the classifier are missing or unexpected.
        TypeError: If there is no state dict in ``state_dict``.
    """
    state = official_state(state_dict, model)
    problems = [
        line for line in _differences(model, state, but=_HEAD) if not line.startswith("  other")
    ]
    if problems:
        raise ValueError(f"the checkpoint does not fit {_describe(model)}:\n" + "\n".join(problems))
    return state


def official_state(checkpoint: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a checkpoint under the names that ``model`` gives them.

    Raises:
        TypeError: If there is no state dict in ``checkpoint``.
    """
    state = unwrap(checkpoint)
    strip_official_names(model, state, "")
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for hook in module._load_state_dict_pre_hooks.values():
            hook(state, prefix, {}, True, [], [], [])
    return state


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict inside a checkpoint, names without the marks of a wrapped model.

    Example:
        >>> import torch
        >>> unwrap({"epoch": 3, "state_dict": {"module.fc.bias": torch.zeros(2)}})
        {'fc.bias': tensor([0., 0.])}

    Raises:
        TypeError: If it has none: not a mapping, or entries that are not tensors.
    """
    if not isinstance(checkpoint, Mapping):
        raise TypeError(f"a checkpoint must be a dict, got {type(checkpoint).__name__}")
    inner = next((checkpoint[k] for k in _WRAPPERS if isinstance(checkpoint.get(k), Mapping)), None)
    state = checkpoint if inner is None else inner
    bad = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if bad or not state:
        got = f"entries that are not tensors: {', '.join(bad[:_SHOWN])}" if bad else "nothing"
        raise TypeError(
            f"a checkpoint must hold tensors by name, bare or under {', '.join(_WRAPPERS)}; "
            f"got {got}"
        )
    return {_strip(key, _WRAPPER_PREFIXES): value for key, value in state.items()}


def strip_official_names(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """Take ``backbone.`` off the names, and drop what is not the backbone's or has no place.

    Serves as a load hook of the networks: what it does not recognise stays, to be reported.
    """
    backbone = f"{prefix}{_BACKBONE}"
    keys = [key for key in state_dict if key.startswith(prefix)]
    if any(key.startswith(backbone) for key in keys):
        for key in keys:
            if key.startswith(backbone):
                state_dict[prefix + key[len(backbone) :]] = state_dict.pop(key)
            elif not key.startswith(f"{prefix}{_HEAD}"):
                del state_dict[key]  # a neck, or the head of a detector
    for rename in _RENAMES:
        rename(state_dict, prefix)
    _fit_head(getattr(model, "head", None), state_dict, f"{prefix}{_HEAD}")


def _fit_head(head: nn.Module | None, state_dict: dict[str, Any], prefix: str) -> None:
    """Drop what a head has no place for; a norm that dense copies do not have stays as it is."""
    own = set() if head is None else {name for name, _ in head.named_parameters()}
    if not any(name.startswith("fc.") for name in own):
        found = any(key.startswith(prefix) for key in state_dict)
        for key in [key for key in state_dict if key.startswith(prefix)]:
            if not own or key.startswith(f"{prefix}fc."):
                del state_dict[key]
        if head is not None and own and not found:
            state_dict.update({f"{prefix}{k}": v for k, v in head.state_dict().items()})


def _differences(
    model: nn.Module, state: Mapping[str, Tensor], but: str | None = None
) -> list[str]:
    """Describe how a state dict differs from a model's, a line for each kind of difference."""
    own = {key: tensor.shape for key, tensor in model.state_dict().items()}
    if but is not None:
        own = {key: shape for key, shape in own.items() if not key.startswith(but)}
        state = {key: tensor for key, tensor in state.items() if not key.startswith(but)}
    # Files of old PyTorch versions have no such counters; loading fills them in.
    missing = [k for k in own if k not in state and not k.endswith(".num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k} is {tuple(state[k].shape)}, not {tuple(own[k])}"
        for k in own
        if k in state and not _same_shape(state[k].shape, own[k]) and not _fits(model, k, state[k])
    ]
    lines = [
        _line("missing", missing),
        _line("unexpected", unexpected),
        _line("other shapes", shapes),
    ]
    if missing and all(key.startswith(_HEAD) for key in missing):
        lines.append("  the checkpoint has no classifier: create the model with num_classes=0")
    return [line for line in lines if line]


def _same_shape(theirs: Sequence[int], ours: Sequence[int]) -> bool:
    # Old files keep counters in one dimension; PyTorch loads them into none.
    return tuple(theirs) == tuple(ours) or (tuple(theirs) == (1,) and not ours)


def _fits(model: nn.Module, key: str, stored: Tensor) -> bool:
    """Return whether the layer of a parameter takes it over in its stored shape."""
    place, _, name = key.rpartition(".")
    fits = getattr(model.get_submodule(place), "fits_shape", None)
    return fits is not None and bool(fits(name, tuple(stored.shape)))


def _line(kind: str, items: list[str]) -> str:
    if not items:
        return ""
    rest = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"  {kind} ({len(items)}): {', '.join(items[:_SHOWN])}{rest}"


def _describe(model: nn.Module) -> str:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return str(cfg.get("architecture") or type(model).__name__)


def _strip(key: str, prefixes: tuple[str, ...]) -> str:
    while key.startswith(prefixes):
        key = key.partition(".")[2]
    return key
