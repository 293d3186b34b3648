"""Predictions as a stream: in order, with any workers; memory that does not grow."""

import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from PIL import Image

from volution import data, infer, tasks
from volution.infer import broken, inputs, reading, streaming


@pytest.fixture(scope="module")
def classifier():
    return small.lively_classifier()


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Nine images of three colours and one that is cut off, in the second place."""
    root = small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=3)
    (root / "blue" / "00b.png").write_bytes((root / "blue" / "00.png").read_bytes()[:300])
    return root


def rows_of(stream):
    return [row for batch in stream for row in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_order_is_that_of_the_paths_and_unreadable_images_keep_their_place(
    colours, classifier, workers
):
    batches = list(
        infer.predict_stream(classifier, [str(colours)], batch_size=4, top=2, workers=workers)
    )
    assert [len(batch) for batch in batches] == [4, 4, 2]
    rows = [row for batch in batches for row in batch]
    assert [row.path for row in rows] == [str(path) for path in data.find_images(colours)]
    assert [bool(row.error) for row in rows] == [False, True] + [False] * 8
    assert rows[1].error.startswith(f"{rows[1].path} is not a readable image")
    assert rows[1].classes == rows[1].probabilities == ()
    assert len({row.probabilities for row in rows}) == 10
    transform = classifier.input.transform()
    with torch.inference_mode():
        for row in rows[:1] + rows[2:]:
            pixels = transform(data.open_image(Path(row.path)))[None]
            best = classifier.model(pixels).softmax(1)[0].topk(2)
            assert row.classes == tuple(classifier.classes[i] for i in best.indices)
            assert row.probabilities == pytest.approx(best.values.tolist(), abs=1e-5)


def test_embeddings_are_what_the_classifier_sees(colours, classifier):
    rows = rows_of(infer.predict_stream(classifier, [str(colours / "red")], embeddings=True, top=3))
    plain = rows_of(infer.predict_stream(classifier, [str(colours / "red")], top=3))
    net = classifier.model
    assert not np.allclose(rows[0].embedding, rows[1].embedding, rtol=1e-3)
    assert all(np.abs(row.embedding).max() > 1e-3 for row in rows)
    for row, other in zip(rows, plain, strict=True):
        assert row.embedding.dtype == np.float32
        assert row.embedding.shape == (streaming.embedding_width(classifier),)
        with torch.inference_mode():
            logits = net.get_classifier()(torch.from_numpy(row.embedding)[None].flatten(1))
        best = logits.softmax(1)[0].topk(3)
        assert row.classes == tuple(classifier.classes[i] for i in best.indices)
        assert row.probabilities == pytest.approx(best.values.tolist(), abs=1e-5)
        assert row == other
        assert other.embedding is None


def test_a_share_begins_and_ends_where_it_is_told(colours, classifier):
    everything = rows_of(infer.predict_stream(classifier, [str(colours)]))
    share = infer.predict_stream(classifier, [str(colours)], start=3, stop=8, batch_size=2)
    share = rows_of(share)
    assert [row.path for row in share] == [row.path for row in everything[3:8]]
    for row, other in zip(share, everything[3:8], strict=True):
        assert row.classes == other.classes
        assert row.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_a_stream_that_is_left_early_gives_the_network_back(colours, classifier):
    classifier.model.train()
    try:
        stream = infer.predict_stream(classifier, [str(colours)], batch_size=2)
        next(stream)
        assert not classifier.model.training
        stream.close()
        assert classifier.model.training
    finally:
        classifier.model.eval()


def test_numbers_that_cannot_be_are_refused_before_any_work(colours, classifier):
    for name, value in {"top": 0, "batch_size": 0, "max_pixels": 0, "workers": -1}.items():
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            infer.predict_stream(classifier, [str(colours)], **{name: value})
    with pytest.raises(ValueError, match="no image is named"):
        infer.predict_stream(classifier, [])
    with pytest.raises(ValueError, match="wds:x stands alone, got 2"):
        infer.predict_stream(classifier, ["wds:x", str(colours)])


def test_large_images_are_refused(colours, classifier):
    rows = rows_of(infer.predict_stream(classifier, [str(colours / "red")], max_pixels=1000))
    assert all("--max_pixels" in row.error for row in rows)
    assert len(rows) == 3


def test_a_network_that_gives_no_numbers_is_an_error(colours):
    net = small.colour_classifier()
    with torch.no_grad():
        net.model.get_classifier().bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="is not a number"):
        rows_of(infer.predict_stream(net, [str(colours)]))


def test_embeddings_of_a_network_without_features(colours):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2))
    config = data.InputConfig(3, 32, (0.5,) * 3, (0.5,) * 3)
    plain = tasks.Classifier(net, "flat", ("a", "b"), config)
    with pytest.raises(TypeError, match="flat has none"):
        infer.predict_stream(plain, [str(colours)], embeddings=True)


def test_walking_a_folder_is_sorting_its_paths(tmp_path):
    names = ["b/1.png", "b.png", "b-1.png", "a/z/2.jpg", "a/z.jpg", "a/B.JPG", "c/.hidden/3.png"]
    for name in [*names, ".git/4.png", "a/notes.txt", "é/5.png", "b 2/6.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "link.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    found = infer.find_paths([str(tmp_path)])
    assert found == data.find_images(tmp_path)
    assert len(found) == 9


def test_every_path_comes_once(colours, tmp_path, monkeypatch):
    monkeypatch.chdir(colours)
    once = infer.find_paths(["red"])
    assert infer.find_paths(["red", "red/00.png", "red/*.png", "red"]) == once
    assert infer.find_paths(["red/01.png", "red"]) == [once[1], once[0], once[2]]
    assert infer.find_paths(["red/*1.png", "red"]) == [once[1], once[0], once[2]]
    # A file that walking passes over counts when it is named.
    Path("red/note.txt").write_text("no image")
    try:
        assert infer.find_paths(["red", "red/note.txt"]) == [*once, Path("red/note.txt")]
    finally:
        Path("red/note.txt").unlink()


def test_a_dead_worker_is_an_error_of_one_line(tmp_path):
    def die(item):
        os._exit(1)

    items = iter([inputs.Item("a"), inputs.Item("b")])
    with pytest.raises(OSError, match="use fewer workers than 1"):
        list(reading.read_batches(items, die, lambda image: image, batch_size=1, workers=1))


def test_the_list_of_broken_images_goes_to_a_file():
    many = broken.BrokenList()
    lines = [f"image {i} \n of many, " + "x" * 1000 for i in range(3000)]
    gc.collect()
    tracemalloc.start()
    for line in lines:
        many.add(line)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 2 << 20
    assert list(zip(many, many, strict=True)) == [(line, line) for line in lines]
    assert len(many) == 3000
    assert lines[7] in many


def peak_of(names, classifier, rows):
    """Return the highest memory that Python and NumPy allocated for a stream over images."""
    gc.collect()
    gc.freeze()  # so that collecting is quick
    tracemalloc.start()
    try:
        count = 0
        for batch in infer.predict_stream(classifier, names, top=1, batch_size=64):
            count += len(batch)
            gc.collect()  # Pillow leaves cycles
        assert count == rows
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.unfreeze()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    config = data.InputConfig(3, 8, (0.5,) * 3, (0.5,) * 3)
    tiny = tasks.Classifier(net, "mean", ("r", "g", "b"), config)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "one.png")
    for n in range(10):
        (tmp_path / "many" / f"{n:02d}").mkdir(parents=True)
        for i in range(200):
            os.link(tmp_path / "one.png", tmp_path / "many" / f"{n:02d}" / f"{i:03d}.png")
    few = [str(tmp_path / "many" / "00")]
    peak_of(few, tiny, 200)  # imports and caches
    one, many = peak_of(few, tiny, 200), peak_of([str(tmp_path / "many")], tiny, 2000)
    # The paths of 1,800 images alone would be more than 200,000 bytes.
    assert many < one + 60_000, f"{one:,} bytes for 200 images, {many:,} for 2,000"
