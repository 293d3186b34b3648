"""A web page in one file: text, tables and pictures, and nothing loaded from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from volution._support.files import write_whole

__all__ = ["Page", "Photo"]


class Photo(NamedTuple):
    """A small image for :meth:`Page.gallery`.

    Args:
        data: The file's bytes.
        kind: Its media type, such as ``image/png``.
        alt: What it shows, for those who do not see it.
        head: The line below it.
        remark: A second line, in small print.
        good: Colours the first line; None leaves it as it is.
    """

    data: bytes
    kind: str
    alt: str
    head: str
    remark: str
    good: bool | None = None


class Page:
    """A page that grows from top to bottom.

    Text is text: whatever looks like markup in it is shown as it stands.

    Args:
        title: Heading, and name of the window.
        lead: What the page is about, in a sentence or two.

    Example:
        >>> page = Page("Result", "It went well.")
        >>> page.section("Numbers").table(["what", "how much"], [["loss", "0.1 < 0.2"]])
        >>> "0.1 &lt; 0.2" in page.html()
        True
    """

    def __init__(self, title: str, lead: str) -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(lead)}</p>']
        self._open = False

    def cards(self, cards: Sequence[tuple[str, str, str, bool | None]]) -> None:
        """Add the few numbers that matter: name, value, remark, and whether it is good."""
        tone = {True: ' class="good"', False: ' class="bad"', None: ""}
        items = (
            f"<div><dt>{escape(name)}</dt><dd{tone[good]}>{escape(value)}"
            f"<small>{escape(remark)}</small></dd></div>"
            for name, value, remark, good in cards
        )
        self._parts.append(f'<dl class="cards">{"".join(items)}</dl>')

    def section(self, title: str, text: str = "") -> Page:
        """Begin a section; what is added next belongs to it."""
        self._close()
        self._open = True
        self._parts.append(f"<section><h2>{escape(title)}</h2>")
        if text:
            self._parts.append(f"<p>{escape(text)}</p>")
        return self

    def heading(self, text: str) -> None:
        """Begin a part of a section."""
        self._parts.append(f"<h3>{escape(text)}</h3>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def picture(self, svg: bytes, alt: str) -> None:
        """Add a picture; ``alt`` says what it shows to those who do not see it."""
        self._parts.append(f"<figure>{_image(svg, 'image/svg+xml', alt)}</figure>")

    def gallery(self, photos: Sequence[Photo]) -> None:
        """Add small images side by side, each with a line or two below it."""
        tone = {True: ' class="good"', False: ' class="bad"', None: ""}
        items = (
            f"<figure>{_image(photo.data, photo.kind, photo.alt)}<figcaption{tone[photo.good]}>"
            f"{escape(photo.head)}<small>{escape(photo.remark)}</small></figcaption></figure>"
            for photo in photos
        )
        self._parts.append(f'<div class="gallery">{"".join(items)}</div>')

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], *, folded: str = ""
    ) -> None:
        """Add a table; columns that hold numbers line up on the right.

        Args:
            head: Names of the columns.
            rows: Cells.
            folded: What stands in the table's place until it is clicked at; nothing shows it.
        """
        right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(head))]

        def line(tag: str, cells: Sequence[str]) -> str:
            kinds = [' class="number"' if flag else "" for flag in right]
            inner = (
                f"<{tag}{kind}>{escape(cell)}</{tag}>"
                for kind, cell in zip(kinds, cells, strict=True)
            )
            return f"<tr>{''.join(inner)}</tr>"

        body = "".join(line("td", row) for row in rows)
        whole = (
            f'<div class="table"><table><thead>{line("th", head)}</thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
        if folded:
            whole = f"<details><summary>{escape(folded)}</summary>{whole}</details>"
        self._parts.append(whole)

    def code(self, text: str) -> None:
        """Add commands to copy."""
        self._parts.append(f"<pre><code>{escape(text)}</code></pre>")

    def footer(self, text: str) -> None:
        """Add small print at the end."""
        self._close()
        self._parts.append(f"<footer>{escape(text)}</footer>")

    def write(self, path: Path) -> None:
        """Write the page to a file, whole or not at all."""
        write_whole(path, self.html())

    def html(self) -> str:
        """Return the page."""
        self._close()
        style = resources.files("volution.report").joinpath("page.css").read_text()
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self._title)}</title>\n<style>\n{style}</style>\n</head>\n"
            "<body>\n<main>\n" + "\n".join(self._parts) + "\n</main>\n</body>\n</html>\n"
        )

    def _close(self) -> None:
        if self._open:
            self._parts.append("</section>")
            self._open = False


def _image(data: bytes, kind: str, alt: str) -> str:
    content = base64.b64encode(data).decode()
    return f'<img src="data:{kind};base64,{content}" alt="{escape(alt)}">'


def _is_number(text: str) -> bool:
    return text.lstrip("-−").replace(",", "")[:1].isdigit()
