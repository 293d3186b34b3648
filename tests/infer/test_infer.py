"""Measuring and predicting: right numbers, borrowed networks given back, broken files listed."""

import json

import pytest
import small
import torch
from PIL import Image

from volution import data, infer


@pytest.fixture
def colours(tmp_path):
    return small.colour_folder(tmp_path / "colours", per_class=3)


@pytest.fixture
def classifier():
    torch.manual_seed(1)
    return small.colour_classifier()


def by_hand(classifier, path):
    with torch.inference_mode():
        image = data.open_image(path)
        return classifier.model(classifier.input.transform()(image)[None]).softmax(1)[0]


def test_evaluation_counts_what_the_network_says(colours, classifier):
    images = data.ImageFiles(data.find_images(colours), [0] * 3 + [1] * 3 + [2] * 3)
    found = infer.evaluate(classifier, images, batch_size=4, show_progress=False)
    answers = [int(by_hand(classifier, path).argmax()) for path in images.paths]
    right = sum(a == b for a, b in zip(answers, images.labels, strict=True))
    assert found.top1 == right / 9
    assert found.top5 == 1.0
    assert found.count == 9
    assert found.confusion.sum(0).tolist() == [answers.count(i) for i in range(3)]
    assert found.images_per_second > 0


def test_the_network_comes_back_as_it_was(colours, classifier):
    classifier.model.train()
    classifier.model.layer1.eval()
    before = {name: p.clone() for name, p in classifier.model.state_dict().items()}
    images = data.ImageFiles(data.find_images(colours), [0] * 9)
    infer.evaluate(classifier, images, show_progress=False)
    infer.predict(classifier, [str(colours)], show_progress=False)
    assert classifier.model.training
    assert not classifier.model.layer1.training
    assert all(torch.equal(before[n], p) for n, p in classifier.model.state_dict().items())


def test_labels_beyond_the_classes_are_refused(colours, classifier):
    images = data.ImageFiles(data.find_images(colours), [0] * 8 + [3])
    with pytest.raises(ValueError, match="at least 4 classes, the network 3"):
        infer.evaluate(classifier, images)


def test_unreadable_images_do_not_count(colours, classifier):
    bad = small.break_image(colours / "red" / "00.png")
    images = data.ImageFiles(data.find_images(colours), [0] * 9)
    found = infer.evaluate(classifier, images, show_progress=False)
    assert found.count == 8
    assert found.broken[0].startswith(str(bad))
    with pytest.raises(ValueError, match="none of the 1 images could be read"):
        infer.evaluate(classifier, data.ImageFiles([bad], [0]), show_progress=False)


def test_predictions_are_the_likeliest_classes(colours, classifier):
    found = infer.predict(classifier, [str(colours / "red")], top=2, show_progress=False)
    assert [row.path for row in found.rows] == [str(p) for p in data.find_images(colours / "red")]
    expected = by_hand(classifier, colours / "red" / "00.png").topk(2)
    row = found.rows[0]
    assert row.classes == tuple(classifier.classes[i] for i in expected.indices)
    assert row.probabilities == pytest.approx(expected.values.tolist(), abs=1e-5)


def test_files_folders_and_patterns_each_image_once(colours):
    red = sorted((colours / "red").iterdir())
    names = [str(red[1]), str(colours / "red"), str(colours / "*" / "00.png")]
    found = infer.find_paths(names)
    assert found[0] == red[1]
    assert len(found) == 5
    assert len(infer.find_paths([str(colours / "**" / "*.png")])) == 9


def test_names_that_stand_for_nothing(colours, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        infer.find_paths([str(tmp_path / "empty")])
    for name in ("nothing.png", "*.gif"):
        with pytest.raises(FileNotFoundError, match="no image at"):
            infer.find_paths([str(tmp_path / name)])


def test_one_broken_image_is_an_error_among_many_it_is_listed(colours, classifier):
    bad = small.break_image(colours / "red" / "00.png")
    with pytest.raises(ValueError, match=f"{bad} is not a readable image"):
        infer.predict(classifier, [str(bad)], show_progress=False)
    found = infer.predict(classifier, [str(colours)], show_progress=False)
    assert len(found.rows) == 8
    assert len(found.broken) == 1


def test_grey_networks_look_at_colour_files(tmp_path, classifier):
    from volution import tasks

    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "a.png")
    net = tasks.create_model("rednet26", num_classes=2, in_chans=1, model_args=small.WIDTHS)
    config = data.InputConfig(1, 16, (0.5,), (0.5,))
    grey = tasks.Classifier(net, "rednet26", ("a", "b"), config, small.WIDTHS)
    assert len(infer.predict(grey, [str(tmp_path)], show_progress=False).rows) == 1


def test_written_forms_agree(colours, classifier):
    found = infer.predict(classifier, [str(colours / "red")], top=2, show_progress=False)
    as_json = json.loads(found.to_json())["predictions"]
    header, *lines = [line.split(",") for line in found.to_csv().splitlines()]
    assert header == ["path", "class1", "probability1", "class2", "probability2"]
    for row, line in zip(as_json, lines, strict=True):
        assert line[:2] == [row["path"], row["classes"][0]["name"]]
        assert float(line[2]) == row["classes"][0]["probability"]
