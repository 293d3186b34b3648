"""The report: one file that loads nothing, readable by machines that read it aloud."""

import pytest
from pages import check_self_contained

from volution.report import Page, quickstart
from volution.report.quickstart import GOAL


def test_text_is_text():
    page = Page("<b>", "a & b")
    page.section("1 < 2", "<script>").table(["<i>"], [["</td>"]])
    page.code("a > b")
    reader = check_self_contained(page.html())
    assert reader.loaded == []
    assert "&lt;script&gt;" in page.html()


def test_numbers_line_up_on_the_right():
    page = Page("t", "l")
    page.section("s").table(["name", "value"], [["a", "1.5"], ["b", "-2"]])
    assert '<td class="number">1.5</td>' in page.html()
    assert "<td>a</td>" in page.html()


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A quickstart with one epoch: everything happens, but it learns too little."""
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    return folder, quickstart(folder, epochs=1)


def test_a_network_that_learned_too_little_fails(short):
    _, code = short
    assert GOAL == 0.97
    assert code == 1


def test_the_quickstart_leaves_everything_behind(short):
    folder, _ = short
    assert {path.name for path in folder.iterdir()} == {
        "best.safetensors", "checkpoints", "config.yaml", "environment.json", "metrics.csv",
        "rednet.onnx", "rednet.safetensors", "report.html", "steps.csv",
    }  # fmt: skip


def test_the_quickstarts_report_is_self_contained(short):
    folder, _ = short
    html = (folder / "report.html").read_text(encoding="utf-8")
    reader = check_self_contained(html)
    # Curves, sixteen digits, kernels, confusion.
    assert len(reader.loaded) == 3 + 16
    assert str(folder) not in html
    for words in ("onnxruntime", "confusion", "seconds", "kernel"):
        assert words in html.lower()


@pytest.mark.slow
def test_the_quickstart_reaches_its_goal(tmp_path):
    assert quickstart(tmp_path / "quickstart") == 0
