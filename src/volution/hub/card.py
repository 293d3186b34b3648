"""The card of a network: what it is, how good it is, how it was made and how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from volution.hub.provenance import Provenance

__all__ = ["write_card"]

_SHOWN_CLASSES = 20
_SHARES = ("top1", "top5")


def write_card(
    title: str,
    *,
    model: str,
    classes: Sequence[str],
    parameters: int,
    input_text: str,
    source: Mapping[str, Any],
    provenance: Provenance,
    address: str,
    license: str | None,
) -> str:
    """Return a model card in Markdown, with the header that the Hugging Face Hub reads.

    Args:
        title: What the network is called.
        model: Its name in timm.
        classes: Names of its classes.
        parameters: How many it has.
        input_text: What it takes, in words.
        source: Paper and code of the architecture: ``paper_name``, ``paper_ids``, ``origin_url``.
        provenance: How its weights came to be.
        address: Where it lies: ``hf-hub:USER/NAME`` or ``local-dir:FOLDER``.
        license: The weights' licence, if it is known.
    """
    parts = [
        f"# {title}",
        f"`{model}`, a network for image classification with {parameters:,} "
        f"parameters and {len(classes)} classes, made with "
        f"[volution](https://volution.readthedocs.io) and timm.",
        _facts(classes, input_text, source, license),
        "## How good it is",
        _measured(provenance),
        "## How to use it",
        _usage(address),
        "## How it was made",
        _made(provenance),
    ]
    return _header(provenance, license) + "\n" + "\n\n".join(parts) + "\n"


def _header(provenance: Provenance, license: str | None) -> str:
    header: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "volution"],
    }
    if license:
        header["license"] = license
    data = provenance.settings.get("data")
    if isinstance(data, str) and data.startswith("hf:"):
        header["datasets"] = [data.removeprefix("hf:")]
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n"


def _facts(
    classes: Sequence[str], input_text: str, source: Mapping[str, Any], license: str | None
) -> str:
    shown = ", ".join(classes[:_SHOWN_CLASSES])
    if len(classes) > _SHOWN_CLASSES:
        shown += f" and {len(classes) - _SHOWN_CLASSES} more, see `label_names` in config.json"
    lines = [f"- Input: {input_text}", f"- Classes: {shown}"]
    paper = [str(source[key]) for key in ("paper_name", "paper_ids") if source.get(key)]
    if paper:
        lines.append(f"- Paper: {', '.join(paper)}")
    if source.get("origin_url"):
        lines.append(f"- Architecture: {source['origin_url']}")
    lines.append(f"- Licence of the weights: {license or 'none was stated'}")
    return "\n".join(lines)


def _measured(provenance: Provenance) -> str:
    rows = {k: v for k, v in provenance.metrics.items() if k.startswith("val_")}
    for key, text in provenance.remarks.items():
        if key.startswith("val_") and key not in rows:
            rows[key] = float(text)
    if not rows:
        return "Nothing is recorded with these weights. Measure them: `volution eval`."
    lines = ["| measure | value |", "|---|---|"]
    for key, value in rows.items():
        name = key.removeprefix("val_")
        shown = f"{value:.2%}" if name in _SHARES else f"{value:.4f}"
        lines.append(f"| {name.replace('top', 'top-')} | {shown} |")
    data = provenance.settings.get("data")
    where = f" of `{data}`" if data else ""
    return f"Measured on the validation images{where} during training.\n\n" + "\n".join(lines)


def _usage(address: str) -> str:
    place = address if address.startswith("hf-hub:") else address.removeprefix("local-dir:")
    return (
        "With timm (`import volution` makes its networks known):\n\n"
        "```python\n"
        "import timm, volution\n\n"
        f'net = timm.create_model("{address}", pretrained=True).eval()\n'
        "config = timm.data.resolve_model_data_config(net)\n"
        "transform = timm.data.create_transform(**config)\n"
        "```\n\n"
        "With volution:\n\n"
        "```\n"
        f"volution predict {place} PHOTO.jpg\n"
        f"volution eval {place} --data folder:PATH\n"
        "```"
    )


def _made(provenance: Provenance) -> str:
    lines = []
    environment = provenance.environment
    versions = environment.get("versions", {})
    known = [f"{name} {version}" for name, version in versions.items() if version]
    if known:
        lines.append(f"- Versions: {', '.join(known)}")
    if environment.get("commit"):
        lines.append(f"- Commit of volution: {environment['commit']}")
    for key, value in provenance.remarks.items():
        if not key.startswith("val_"):
            lines.append(f"- {key.replace('_', ' ').capitalize()}: {value}")
    text = "\n".join(lines)
    if provenance.settings:
        settings = yaml.safe_dump(provenance.settings, sort_keys=True, allow_unicode=True)
        text += f"\n\nSettings of the run:\n\n```yaml\n{settings}```"
    return text.strip() or "Nothing is recorded with these weights."
