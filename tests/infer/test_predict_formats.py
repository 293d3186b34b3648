"""Predictions in files: every format holds what was predicted, and appears when it is complete."""

import csv
import io
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import small
from PIL import Image

from volution import infer
from volution.infer import streaming, writing


@pytest.fixture(scope="module")
def classifier():
    return small.lively_classifier()


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Nine images of three colours and one that is cut off, in the second place."""
    root = small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=3)
    (root / "blue" / "00b.png").write_bytes((root / "blue" / "00.png").read_bytes()[:300])
    return root


def written(suffix, colours, classifier, tmp_path, *, embeddings=False):
    path = tmp_path / f"rows{suffix}"
    width = streaming.embedding_width(classifier) if embeddings else None
    rows = []
    with writing.open_writer(path, top=2, width=width) as writer:
        stream = infer.predict_stream(
            classifier, [str(colours)], top=2, batch_size=3, embeddings=embeddings
        )
        for batch in stream:
            writer.write(batch)
            rows += batch
        assert not path.exists()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    return path, rows


def test_csv(colours, classifier, tmp_path):
    path, rows = written(".csv", colours, classifier, tmp_path)
    lines = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    good = [row for row in rows if not row.error]
    assert [line["path"] for line in lines] == [row.path for row in good]
    assert [line["class2"] for line in lines] == [row.classes[1] for row in good]
    assert float(lines[0]["probability1"]) == round(good[0].probabilities[0], 6)


def test_json_has_the_shape_of_the_list(colours, classifier, tmp_path):
    path, rows = written(".json", colours, classifier, tmp_path)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert list(found) == ["predictions", "broken"]
    assert found["broken"] == [row.error for row in rows if row.error]
    assert [p["path"] for p in found["predictions"]] == [r.path for r in rows if not r.error]
    listed = infer.predict(classifier, [str(colours)], top=2, show_progress=False)
    assert json.loads(listed.to_json())["broken"] == found["broken"]


def test_json_lines_hold_every_image_in_order(colours, classifier, tmp_path):
    path, rows = written(".jsonl", colours, classifier, tmp_path, embeddings=True)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["path"] for line in lines] == [row.path for row in rows]
    assert lines[1] == {"path": rows[1].path, "error": rows[1].error}
    back = np.array(lines[0]["embedding"], np.float32)
    assert np.array_equal(back, rows[0].embedding)


def test_parquet_schema_and_values(colours, classifier, tmp_path):
    path, rows = written(".parquet", colours, classifier, tmp_path, embeddings=True)
    table = pq.read_table(path)
    width = streaming.embedding_width(classifier)
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("path", "string"),
        ("classes", "list<element: string>"),
        ("probabilities", "list<element: float>"),
        ("embedding", f"fixed_size_list<element: float>[{width}]"),
        ("error", "string"),
    ]
    found = table.to_pylist()
    assert [row["path"] for row in found] == [row.path for row in rows]
    assert found[1]["classes"] is found[1]["probabilities"] is found[1]["embedding"] is None
    assert [row["error"] or "" for row in found] == [row.error for row in rows]
    for row, want in zip(found[2:], rows[2:], strict=True):
        assert tuple(row["classes"]) == want.classes
        assert row["probabilities"] == pytest.approx(want.probabilities, abs=1e-7)
        assert np.array_equal(np.array(row["embedding"], np.float32), want.embedding)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_an_earlier_file_stays_when_something_goes_wrong(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_text("earlier")

    def fail():
        with writing.open_writer(path, top=1) as writer:
            writer.write([infer.Prediction("a.png", ("cat",), (1.0,))])
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_are_no_text(classifier, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    (row,) = infer.predict(classifier, [str(tmp_path)], show_progress=False).rows
    text = io.StringIO()
    writer = writing.JsonWriter(text)
    writer.write([row])
    writer.finish()
    text.getvalue().encode()
    assert json.loads(text.getvalue())["predictions"][0]["path"] == str(tmp_path / name)
    for suffix in (".csv", ".jsonl", ".parquet"):
        with writing.open_writer(tmp_path / f"rows{suffix}", top=3) as writer:
            writer.write([row])
    assert b"caf\xe9.png" in (tmp_path / "rows.csv").read_bytes()
