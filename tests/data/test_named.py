"""Sets of torchvision by their names: what is read of them, and how they are downloaded."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torchvision
from PIL import Image

from volution import data
from volution.data import named


def photos(folder, count, kind="jpg", size=16):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (size, size), (i * 40, 90, 200)).save(folder / f"{i}.{kind}")


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


class Layouts:
    """Small datasets, in the files that torchvision's classes read."""

    def cifar10(self, root):
        rng = np.random.default_rng(0)
        names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
        folder = root / "cifar-10-batches-py"
        folder.mkdir()
        for name in names:
            pixels = rng.integers(0, 256, (2, 3072), dtype=np.uint8)
            (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 9]}))
        labels = {"label_names": [f"thing {i}" for i in range(10)]}
        (folder / "batches.meta").write_bytes(pickle.dumps(labels))
        return 10, 2, 10, "thing 9", 3

    def mnist(self, root):
        raw = root / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for part, count in (("train", 6), ("t10k", 3)):
            head = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
            (raw / f"{part}-images-idx3-ubyte").write_bytes(head + bytes([51]) * (count * 784))
            head = b"\0\0\x08\x01" + count.to_bytes(4, "big")
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + bytes(range(count)))
        return 6, 3, 10, "9 - nine", 1

    def stl10(self, root):
        folder = root / "stl10_binary"
        folder.mkdir()
        for part, count in (("train", 4), ("test", 2)):
            (folder / f"{part}_X.bin").write_bytes(bytes(count * 3 * 96 * 96))
            (folder / f"{part}_y.bin").write_bytes(bytes(range(1, count + 1)))
        lines(folder / "class_names.txt", [f"thing {i}" for i in range(10)])
        return 4, 2, 10, "thing 9", 3

    def food101(self, root):
        base = root / "food-101"
        for part, names in (("train", ("0", "1")), ("test", ("2",))):
            index = {kind: [f"{kind}/{n}" for n in names] for kind in ("cake", "soup")}
            lines(base / "meta" / f"{part}.json", [json.dumps(index)])
        for kind in ("cake", "soup"):
            photos(base / "images" / kind, 3)
        return 4, 2, 2, "soup", 3

    def oxfordpets(self, root):
        base = root / "oxford-iiit-pet"
        for name in ("Bengal_1", "Bengal_2", "pug_1"):
            (base / "images").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(base / "images" / f"{name}.jpg")
        lines(base / "annotations" / "trainval.txt", ["Bengal_1 1 1 1", "pug_1 2 2 1"])
        lines(base / "annotations" / "test.txt", ["Bengal_2 1 1 1"])
        return 2, 1, 2, "Pug", 3

    def dtd(self, root):
        base = root / "dtd" / "dtd"
        for kind in ("banded", "woven"):
            photos(base / "images" / kind, 3)
        for i, part in enumerate(("train", "val", "test")):
            lines(base / "labels" / f"{part}1.txt", [f"{k}/{i}.jpg" for k in ("banded", "woven")])
        return 4, 2, 2, "woven", 3

    def aircraft(self, root):
        base = root / "fgvc-aircraft-2013b" / "data"
        photos(base / "images", 3)
        lines(base / "variants.txt", ["707", "A 320"])
        lines(base / "images_variant_trainval.txt", ["0 707", "1 A 320"])
        lines(base / "images_variant_test.txt", ["2 707"])
        return 2, 1, 2, "A 320", 3

    def country211(self, root):
        for part, count in (("train", 3), ("valid", 1)):
            for country in ("AD", "ZW"):
                photos(root / "country211" / part / country, count)
        return 6, 2, 2, "ZW", 3

    def imagenette(self, root):
        for part, count in (("train", 2), ("val", 1)):
            for wnid in ("n01440764", "n02102040"):
                photos(root / "imagenette2" / part / wnid, count, "jpeg")
        return 4, 2, 2, "English springer", 3

    def eurosat(self, root):
        for kind in ("Forest", "River"):
            photos(root / "eurosat" / "2750" / kind, 5)
        return 8, 2, 2, "River", 3

    def gtsrb(self, root):
        base = root / "gtsrb"
        for kind in ("00000", "00001"):
            photos(base / "GTSRB" / "Training" / kind, 2, "ppm")
        photos(base / "GTSRB" / "Final_Test" / "Images", 2, "ppm")
        lines(base / "GT-final_test.csv", ["Filename;ClassId", "0.ppm;1", "1.ppm;0"])
        return 4, 2, 2, "1", 3

    def usps(self, root):
        import bz2

        row = " ".join(f"{i}:-0.5" for i in range(1, 257))
        for name, labels in (("usps.bz2", (1, 2, 10)), ("usps.t.bz2", (1, 10))):
            (root / name).write_bytes(
                bz2.compress("\n".join(f"{n} {row}" for n in labels).encode())
            )
        return 3, 2, 10, "9", 1

    def svhn(self, root):
        from scipy.io import savemat

        for part, count in (("train", 4), ("test", 3)):
            pixels = np.full((32, 32, 3, count), 102, dtype=np.uint8)
            labels = {"X": pixels, "y": np.array([[1], [9], [10], [3]][:count])}
            savemat(root / f"{part}_32x32.mat", labels)
        return 4, 3, 10, "9", 3

    def flowers102(self, root):
        from scipy.io import savemat

        base = root / "flowers-102"
        (base / "jpg").mkdir(parents=True)
        for i in range(1, 7):
            Image.new("RGB", (8, 8)).save(base / "jpg" / f"image_{i:05d}.jpg")
        savemat(base / "imagelabels.mat", {"labels": np.array([1, 102, 1, 102, 1, 102])})
        parts = {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6]}
        savemat(base / "setid.mat", {key: np.array(value) for key, value in parts.items()})
        return 4, 2, 102, "blackberry lily", 3


KINDS = [name for name in vars(Layouts) if not name.startswith("_")]


@pytest.fixture
def unchecked(monkeypatch):
    """Our files have not the hashes of the real ones."""
    for module in ("cifar", "stl10", "svhn", "flowers102"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_: True)


@pytest.mark.parametrize("kind", KINDS)
def test_sets_of_torchvision(tmp_path, unchecked, kind):
    train, val, classes, last, channels = getattr(Layouts(), kind)(tmp_path)
    found = data.load(f"{kind}:{tmp_path}", max_pixels=20_000)
    assert (len(found.train), len(found.val)) == (train, val)
    assert (len(found.classes), found.classes[-1], found.channels) == (classes, last, channels)
    for part in (found.train, found.val):
        assert len(part.labels) == len(part)
        image = part.open(len(part) - 1)
        assert image.mode == ("RGB" if channels == 3 else "L")
        assert min(image.size) >= 8
    if isinstance(found.train, data.ImageFiles):
        assert found.train.max_pixels == 20_000
    else:
        assert len(found.mean) == len(found.std) == channels


def test_every_set_but_copies_of_others_is_tried():
    alike = {"cifar100": "cifar10", "kmnist": "mnist", "fashionmnist": "mnist"}
    assert set(named.SETS) == {*KINDS, *alike}
    for one, other in alike.items():
        ours, theirs = (getattr(torchvision.datasets, named.SETS[n].kind) for n in (one, other))
        assert issubclass(ours, theirs)
    assert all(hasattr(torchvision.datasets, wanted.kind) for wanted in named.SETS.values())


def test_statistics_are_those_of_the_training_images(tmp_path, unchecked):
    Layouts().cifar10(tmp_path)
    found = data.load(f"cifar10:{tmp_path}")
    values = found.train.arrays.astype(np.float64) / 255
    assert found.mean == pytest.approx(tuple(values.mean((0, 1, 2))))
    assert found.std == pytest.approx(tuple(values.std((0, 1, 2))))
    # Channels and rows are where they should be.
    raw = pickle.loads((tmp_path / "cifar-10-batches-py" / "data_batch_1").read_bytes())["data"][0]
    assert found.train.open(0).getpixel((5, 2)) == tuple(raw.reshape(3, 32, 32)[:, 2, 5])


def test_the_folder_of_downloads_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("VOLUTION_DATA", str(tmp_path))
    Layouts().mnist(tmp_path)
    assert len(data.load("mnist").train) == 6


class TestDownload:
    @pytest.fixture
    def server(self, tmp_path, monkeypatch):
        """Stands for the network: gives what a layout has, or breaks off."""
        state = {"fails": False, "asked": 0}
        remote = tmp_path / "remote"
        remote.mkdir()
        Layouts().dtd(remote)

        def download(self):
            state["asked"] += 1
            shutil.copytree(remote / "dtd", self._base_folder, dirs_exist_ok=True)
            if state["fails"]:
                raise OSError("the line broke")

        monkeypatch.setattr(torchvision.datasets.DTD, "_download", download)
        return state

    def test_it_happens_once(self, tmp_path, server):
        for _ in range(2):
            assert len(data.load(f"dtd:{tmp_path / 'root'}").train) == 4
        assert server["asked"] == 3  # once for each part
        left = {path.name for path in (tmp_path / "root").iterdir()}
        assert left == {"dtd", ".dtd.lock"}

    def test_half_of_it_is_nothing(self, tmp_path, server):
        server["fails"] = True
        root = tmp_path / "root"
        with pytest.raises(ValueError, match="cannot be downloaded") as error:
            data.load(f"dtd:{root}")
        assert str(error.value) == (
            f"data dtd: cannot be downloaded (the line broke); put dtd into {root}, or give the "
            f"folder that holds it: dtd:FOLDER"
        )
        assert not (root / "dtd").exists()
        server["fails"] = False
        assert len(data.load(f"dtd:{root}").train) == 4

    def test_a_set_that_is_not_complete_is_told(self, tmp_path):
        Layouts().dtd(tmp_path)
        (tmp_path / "dtd" / "dtd" / "labels" / "val1.txt").unlink()
        with pytest.raises(ValueError, match=r"dtd is not complete .*; remove it to have it"):
            data.load(f"dtd:{tmp_path}")
