"""Where data comes from besides torchvision: ImageNet, Hugging Face; and classes that are none."""

from pathlib import Path

import pytest
import small
from PIL import Image
from timm.data import ImageNetInfo

from volution import data


@pytest.fixture(scope="module")
def imagenet_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    image = root / "one.jpeg"
    Image.new("RGB", (4, 4)).save(image)
    for wnid in ImageNetInfo("imagenet-1k").label_names():
        (root / "val" / wnid).mkdir(parents=True)
        (root / "val" / wnid / "a.JPEG").hardlink_to(image)
    return root


class TestImageNet:
    def test_its_classes_have_names(self, imagenet_root):
        found = data.load(f"imagenet:{imagenet_root}")
        assert len(set(found.classes)) == 1000
        assert found.classes[:2] == ("tench", "goldfish")
        assert found.val.labels == list(range(1000))
        assert found.val.name(1).endswith("n01443537/a.JPEG")
        assert len(found.train) == 0

    def test_a_missing_class_is_named(self, imagenet_root):
        (imagenet_root / "val" / "n01440764").rename(imagenet_root / "val" / "tench")
        try:
            with pytest.raises(ValueError, match=r"no folder for 1 of the 1000 .* n01440764"):
                data.load(f"imagenet:{imagenet_root}")
        finally:
            (imagenet_root / "val" / "tench").rename(imagenet_root / "val" / "n01440764")

    def test_it_needs_images_to_measure_with(self, tmp_path):
        with pytest.raises(ValueError, match="must hold val/, with a folder of images for each"):
            data.load(f"imagenet:{tmp_path}")
        with pytest.raises(FileNotFoundError, match="does not exist"):
            data.load("imagenet:/no/such/place")


class TestHuggingFace:
    @pytest.fixture(autouse=True)
    def _offline(self, monkeypatch, tmp_path):
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        datasets.disable_progress_bars()

    def saved(self, path, splits, **more):
        import datasets

        features = datasets.Features(
            {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), **more}
        )
        rows = {
            name: datasets.Dataset.from_list(
                [
                    {
                        "img": Image.new("L" if i else "RGB", (9, 6), 7 * i),
                        "label": label,
                        **dict.fromkeys(more),
                    }
                    for i, label in enumerate(labels)
                ],
                features=features,
            )
            for name, labels in splits.items()
        }
        datasets.DatasetDict(rows).save_to_disk(path)
        return f"hf:{path}"

    def test_a_saved_dataset(self, tmp_path):
        name = self.saved(tmp_path / "d", {"train": [0, 1, 1], "test": [1, 0], "validation": [0]})
        found = data.load(name)
        assert found.classes == ("cat", "dog")
        assert found.train.labels == [0, 1, 1]
        assert found.val.labels == [0]
        assert found.train.open(1).getpixel((0, 0)) == (7, 7, 7)
        assert found.train.name(2) == f"{name}/train#2"
        config = data.InputConfig(3, 8, (0.5,) * 3, (0.5,) * 3)
        (batch,) = data.loader(found.train, config.transform(), batch_size=4, workers=1)
        assert batch.labels.tolist() == [0, 1, 1]

    def test_a_folder_in_its_layout(self, tmp_path):
        small.colour_folder(tmp_path / "colours", per_class=5)
        found = data.load(f"hf:{tmp_path / 'colours'}")
        assert found.classes == ("blue", "green", "red")
        assert (len(found.train), len(found.val)) == (12, 3)

    def test_images_are_decoded_by_our_rules(self, tmp_path):
        name = self.saved(tmp_path / "d", {"train": [0, 1, 1, 0], "test": [0]})
        with pytest.raises(ValueError, match=r"test#0 has 9 x 6 pixels, more than max_pixels = 50"):
            data.load(name, max_pixels=50).val.open(0)

    @pytest.mark.parametrize(
        ("splits", "message"),
        [
            (
                {"train": [0, 1], "test": [-1, 1]},
                r"label -1 of .*/test#0 is not from 0 to 1; .*1 of 2",
            ),
            ({"train": [0, None], "test": [1]}, r"label None of .*/train#1 is not from 0 to 1"),
            ({"other": [0, 1]}, "has the splits other; it takes train, or one of validation"),
        ],
    )
    def test_labels_and_splits_that_cannot_be(self, tmp_path, splits, message):
        with pytest.raises(ValueError, match=message):
            data.load(self.saved(tmp_path / "d", splits))

    def test_columns_that_are_not_clear(self, tmp_path):
        import datasets

        two = {"photo": datasets.Image(), "mask": datasets.Image(), "label": datasets.Value("int8")}
        none = {column: [None] for column in two}
        rows = datasets.Dataset.from_dict(none, features=datasets.Features(two))
        rows.save_to_disk(tmp_path / "d")
        with pytest.raises(
            ValueError, match=r"one column of Image, .* photo \(Image\), mask \(Image"
        ):
            data.load(f"hf:{tmp_path / 'd'}")
        rows.remove_columns("mask").save_to_disk(tmp_path / "e")
        with pytest.raises(ValueError, match=r"needs one column of ClassLabel.* label \(Value\)"):
            data.load(f"hf:{tmp_path / 'e'}")

    def test_without_network(self):
        with pytest.raises(ValueError, match=r"cannot be loaded .*; without network give a folder"):
            data.load("hf:nobody/nothing")


def test_a_single_class_is_refused(tmp_path):
    for part in ("train", "val"):
        Path(tmp_path, part, "only").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / part / "only" / "0.png")
    with pytest.raises(ValueError, match="at least two classes, it holds only only/"):
        data.load(f"folder:{tmp_path}")


def test_a_class_folder_without_images_is_named(tmp_path):
    small.colour_folder(tmp_path, per_class=1)
    (tmp_path / "pink").mkdir()
    (tmp_path / "pink" / "notes.txt").write_text("later")
    with pytest.raises(ValueError, match="has class folders without images: pink/; fill or remove"):
        data.load(f"folder:{tmp_path}")
