"""What a page must be: one file that loads nothing, with whole tags and described pictures."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Reader(HTMLParser):
    """Collect what a page loads, what has no description, and whether tags match."""

    def __init__(self):
        super().__init__()
        self.loaded, self.undescribed, self.open, self.heads = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert tag not in ("script", "iframe", "link", "object", "embed")
        self.loaded += [attrs[name] for name in ("src", "href", "srcset") if name in attrs]
        if tag == "img" and not attrs.get("alt"):
            self.undescribed.append(tag)
        if tag in ("h1", "h2"):
            self.heads.append(tag)
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_self_contained(html):
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    assert all(link.startswith("data:image/") for link in reader.loaded)
    assert reader.undescribed == []
    assert reader.heads[0] == "h1"
    assert reader.heads.count("h1") == 1
    assert not re.search(r"url\(|@import", html)
    assert '<html lang="en">' in html
    return reader
