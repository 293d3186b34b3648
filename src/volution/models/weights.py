"""The authors' weights: which can be downloaded, from where, and where the others are kept.

Every address stands in the authors' own repositories (their README or code); none publishes a
hash. The Hugging Face Hub, where VAN's lie, sends one along; for the others the hash of the first
download counts, see :func:`volution._support.download.cached_file`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import resolve_pretrained_cfg
from torch.hub import get_dir

from volution._support.download import cached_file

_GIVE = "checkpoint_path=FILE in Python, --weights FILE to train, --checkpoint FILE to measure"

__all__ = ["WEIGHTS", "Weights", "with_addresses", "with_weights"]


@dataclass(frozen=True)
class Weights:
    """A file of weights that can be downloaded.

    Args:
        url: Its address.
        filename: What to call it in the cache.
        sha256: Its hash, where one is published.
    """

    url: str
    filename: str
    sha256: str | None = None


def _van(size: str, top1: int) -> Weights:
    name = f"van_{size.lower()}_{top1}.pth.tar"
    host = "https://huggingface.co/Visual-Attention-Network"
    return Weights(f"{host}/VAN-{size}-original/resolve/main/{name}", name)


def _hornet(key: str, name: str) -> Weights:
    return Weights(f"https://cloud.tsinghua.edu.cn/f/{key}/?dl=1", f"{name}.pth")


def _transxnet(size: str) -> Weights:
    name = f"transx-{size}.pth.tar"
    return Weights(f"https://github.com/LMMMEng/TransXNet/releases/download/v1.0/{name}", name)


WEIGHTS: dict[str, Weights] = {
    "hornet_tiny_7x7.in1k": _hornet("1ca970586c6043709a3f", "hornet_tiny_7x7"),
    "hornet_tiny_gf.in1k": _hornet("511faad0bde94dfcaa54", "hornet_tiny_gf"),
    "hornet_small_7x7.in1k": _hornet("46422799db2941f7b684", "hornet_small_7x7"),
    "hornet_small_gf.in1k": _hornet("8405c984bf084d2ba85a", "hornet_small_gf"),
    "hornet_base_7x7.in1k": _hornet("5c86cb3d655d4c17a959", "hornet_base_7x7"),
    "hornet_base_gf.in1k": _hornet("6c84935e63b547f383fb", "hornet_base_gf"),
    "hornet_large_7x7.in22k": _hornet("a76f7ce114ad4e9c8ffb", "hornet_large_7x7_22k"),
    "hornet_large_gf.in22k": _hornet("12c99a79e77341e59681", "hornet_large_gf_22k"),
    "hornet_large_gf_img384.in22k": _hornet("9253bd0d50c84ab1b71e", "hornet_large_gf_img384_22k"),
    "transxnet_t.in1k": _transxnet("t"),
    "transxnet_s.in1k": _transxnet("s"),
    "transxnet_b.in1k": _transxnet("b"),
    "van_b0.in1k": _van("Tiny", 754),
    "van_b1.in1k": _van("Small", 811),
    "van_b2.in1k": _van("Base", 828),
    "van_b3.in1k": _van("Large", 839),
}
"""Weights by name and tag, as timm writes them."""


def with_addresses(cfgs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return timm's configurations by name and tag, with the addresses of their weights."""
    return {
        name: {**cfg, "url": WEIGHTS[name].url} if name in WEIGHTS else cfg
        for name, cfg in cfgs.items()
    }


def with_weights(variant: str, pretrained: bool, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments under which timm finds the weights in a file, checked by its hash.

    Args:
        variant: The network's name.
        pretrained: Whether weights are wanted; without, the arguments come back as they are.
        kwargs: Keyword arguments for :func:`timm.models.build_model_with_cfg`.

    Raises:
        FileNotFoundError: If there are no weights to download; the message says where the authors
            keep theirs.
        OSError: If the download fails.
        ValueError: If what came is not the expected file.
    """
    kwargs = dict(kwargs)
    if not pretrained:
        return kwargs
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
    # Whoever names a source of his own gets it from timm.
    if cfg.file or cfg.state_dict or cfg.hf_hub_id or cfg.source or isinstance(cfg.url, tuple):
        return kwargs
    if cfg.url is None:
        raise FileNotFoundError(_nowhere(variant, cfg))
    known = next((w for w in WEIGHTS.values() if w.url == cfg.url), None)
    known = known or Weights(cfg.url, cfg.url.partition("?")[0].rstrip("/").rpartition("/")[2])
    cache = kwargs.get("cache_dir")
    folder = Path(cache) if cache else Path(get_dir()) / "checkpoints"
    hint = f"the authors keep it at {cfg.origin_url}; to use a copy: {_GIVE}"
    path = cached_file(cfg.url, folder / known.filename, sha256=known.sha256, hint=hint)
    kwargs["pretrained_cfg_overlay"] = {**overlay, "file": str(path)}
    return kwargs


def _nowhere(variant: str, cfg: Any) -> str:
    if cfg.tag == "untrained":
        others = [name for name in WEIGHTS if name.startswith(f"{variant}.")]
        if others:
            return f"{variant} has published weights only as {', '.join(others)}; name it so"
        return f"no weights of {variant} were ever published; to start from others: {_GIVE}"
    return (
        f"the weights of {variant} lie where no program can fetch them; download them by hand "
        f"({cfg.origin_url}); to use the file: {_GIVE}"
    )
