"""Shards: written whole, continued to the same bytes, found by their names, trained on."""

import dataclasses
import errno
import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from PIL import Image
from shard_files import png, served, write_numbers, write_tar
from webdataset.tariterators import group_by_keys, tar_file_iterator

from volution import data, hub, train
from volution.cli import main
from volution.data import remote, shard_counting, shard_packing
from volution.data.shard_keys import sample_keys
from volution.data.shard_reading import scan_shard


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VOLUTION_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return data.load(f"folder:{small.colour_folder(tmp_path_factory.mktemp('data') / 'colours')}")


@pytest.fixture(scope="module")
def shards(colours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    data.write_shards(colours, folder, max_count=4, show_progress=False)
    return folder


def write(images, folder, **settings):
    return data.write_shards(images, folder, **{"max_count": 4, **settings}, show_progress=False)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def as_webdataset(paths):
    """What the library itself reads."""
    samples = []
    for path in paths:
        with path.open("rb") as file:
            members = ({**member, "__url__": str(path)} for member in tar_file_iterator(file))
            samples += group_by_keys(members)
    return samples


def pixels(images, name):
    config = data.InputConfig(3, 32, (0.5,) * 3, (0.5,) * 3)
    (batch,) = data.loader(images, config.transform(), batch_size=64)
    return {
        name(batch, i): (int(batch.labels[i]), batch.images[i]) for i in range(len(batch.labels))
    }


def test_shards_hold_the_pixels_and_labels_of_the_files(colours, shards):
    found = data.load(f"wds:{shards}")
    assert (found.classes, found.channels) == (colours.classes, colours.channels)
    for files, stream in ((colours.train, found.train), (colours.val, found.val)):
        ours = pixels(files, lambda batch, i, files=files: "/".join(
            Path(files.name(int(batch.indices[i]))).parts[-2:]))  # fmt: skip
        theirs = pixels(stream, lambda batch, i: batch.names[i])
        assert ours.keys() == theirs.keys()
        for name, (label, image) in ours.items():
            assert label == theirs[name][0]
            assert (image == theirs[name][1]).all()
    # Mixed for training, in their order for measuring.
    assert list(found.train.labels) != sorted(found.train.labels)
    assert list(found.val.labels) == sorted(found.val.labels)


def test_files_are_copied_byte_for_byte_as_webdataset_reads_them(colours, shards):
    files = {Path(path).read_bytes() for path in (*colours.train.paths, *colours.val.paths)}
    read = as_webdataset(sorted(shards.glob("*.tar")))
    assert {sample["png"] for sample in read} == files
    assert {(sample["__key__"].partition("/")[0], sample["cls"]) for sample in read} == {
        ("blue", b"0"),
        ("green", b"1"),
        ("red", b"2"),
    }


def test_the_index_knows_every_shard(shards):
    index = json.loads((shards / "index.json").read_text())
    entries = [*index["splits"]["train"], *index["splits"]["val"]]
    assert {entry["name"] for entry in entries} == {path.name for path in shards.glob("*.tar")}
    for entry in entries:
        path = shards / entry["name"]
        assert entry["bytes"] == path.stat().st_size
        assert entry["samples"] <= 4
        assert scan_shard(str(path)).labels == [int(label) for label in entry["labels"].split()]
    assert str(shards) not in (shards / "index.json").read_text()


def test_images_in_memory_become_png(tmp_path):
    arrays = np.random.default_rng(0).integers(0, 256, (20, 9, 11), dtype=np.uint8)
    part, varied = data.ImageArrays(arrays, [i % 3 for i in range(20)]), data.Augmentation(hflip=0)
    few = data.ImageData("few", ("a", "b", "c"), 1, part, part, 32, (0.3,), (0.4,), varied)
    report = write(few, tmp_path / "out", max_count=100)
    assert (report.shards, report.samples, report.broken) == (2, 40, [])
    found = data.load(f"wds:{tmp_path / 'out'}")
    assert (found.image_size, found.mean, found.std) == (32, (0.3,), (0.4,))
    assert found.augmentation == varied
    for i in range(20):
        assert np.array_equal(np.asarray(found.val.open(i)), arrays[i])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "train-000000.tar",
        "val-000000.tar",
        "index.json",
    }


class Killed(BaseException):
    """Stands for an end that nothing can react to."""


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_a_killed_job_goes_on_to_the_same_bytes(colours, shards, tmp_path, monkeypatch, after):
    whole = contents(shards)
    finish, done = shard_packing._Shard.finish, itertools.count()

    def dies(shard):
        if next(done) == after:
            raise Killed
        return finish(shard)

    with monkeypatch.context() as patch:
        patch.setattr(shard_packing._Shard, "finish", dies)
        # Nothing tidies up after kill -9.
        patch.setattr(shard_packing._Shard, "abandon", lambda shard: shard.file.abandon())
        with pytest.raises(Killed):
            write(colours, tmp_path)
    left = contents(tmp_path)
    assert sum(name.endswith(".tar") for name in left) == after
    assert sum(name.endswith(".unfinished") for name in left) == 1
    for name in (f"wds:{tmp_path}", f"wds:{tmp_path}/train-*.tar"):
        with pytest.raises((ValueError, FileNotFoundError), match=r"not all written yet|no shard"):
            data.load(name)
    finished = []
    monkeypatch.setattr(
        shard_packing._Shard, "finish", lambda shard: finished.append(shard) or finish(shard)
    )
    write(colours, tmp_path)
    assert contents(tmp_path) == whole
    assert len(finished) == len(list(shards.glob("*.tar"))) - after


def test_a_shard_that_its_journal_missed_is_written_again(colours, shards, tmp_path, monkeypatch):
    def dies(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shard_packing.Journal, "add", dies)
        with pytest.raises(Killed):
            write(colours, tmp_path)
    assert (tmp_path / "train-000000.tar").exists()
    write(colours, tmp_path)
    assert contents(tmp_path) == contents(shards)


def test_a_finished_job_is_not_done_again(colours, shards, monkeypatch):
    monkeypatch.setattr(shard_packing, "_Shard", None)
    before = contents(shards)
    report = write(colours, shards)
    assert report.samples == len(colours.train) + len(colours.val)
    assert contents(shards) == before


def test_workers_and_seeds(colours, shards, tmp_path):
    write(colours, tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == contents(shards)
    write(colours, tmp_path / "other", seed=1)
    ours, theirs = contents(shards), contents(tmp_path / "other")
    assert ours["val-000000.tar"] == theirs["val-000000.tar"]
    assert ours["train-000000.tar"] != theirs["train-000000.tar"]


def test_the_size_of_shards_is_not_exceeded(colours, tmp_path):
    limit = 40_960
    report = write(colours, tmp_path, max_bytes=limit, max_count=1000)
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("train-*.tar"))]
    assert max(sizes) <= limit
    assert min(sizes[:-1]) > limit // 2
    assert report.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    assert write(colours, tmp_path / "tiny", max_bytes=1).shards == report.samples


def test_folders_of_other_things_are_left_alone(colours, shards, tmp_path, monkeypatch):
    for settings in ({"seed": 5}, {"max_count": 3}):
        with pytest.raises(ValueError, match="holds shards of other data or settings"):
            write(colours, shards, **settings)
    other = tmp_path / "other"
    write_tar(other / "mine.tar", [("a.png", png(0))])
    with pytest.raises(ValueError, match=r"holds mine.tar already"):
        write(colours, other)
    assert list(contents(other)) == ["mine.tar"]
    with pytest.raises(ValueError, match=r"destination must be a folder, .* is a file"):
        write(colours, other / "mine.tar")
    with pytest.raises(ValueError, match="is in shards already"):
        write(data.load(f"wds:{shards}"), tmp_path / "again")
    with pytest.raises(ValueError, match="max_count must be at least 1, got 0"):
        write(colours, tmp_path / "new", max_count=0)
    assert not (tmp_path / "new").exists()


def test_a_shard_changed_between_two_parts_of_a_job_is_noticed(colours, tmp_path, monkeypatch):
    finish, done = shard_packing._Shard.finish, itertools.count()

    def dies(shard):
        if next(done) == 2:
            raise Killed
        return finish(shard)

    monkeypatch.setattr(shard_packing._Shard, "finish", dies)
    with pytest.raises(Killed):
        write(colours, tmp_path)
    (tmp_path / "train-000001.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-000001.tar was changed"):
        write(colours, tmp_path)


def test_a_full_disk_leaves_whole_shards_and_one_line(colours, shards, tmp_path, monkeypatch):
    written, room = shard_packing._Hashed.write, itertools.count()

    def full(file, content):
        if next(room) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(shard_packing._Hashed, "write", full)
        with pytest.raises(OSError, match=r"No space left on device; \d+ shards are complete"):
            write(colours, tmp_path)
    assert not [name for name in contents(tmp_path) if name.endswith(".unfinished")]
    write(colours, tmp_path)
    assert contents(tmp_path) == contents(shards)


def test_what_reads_otherwise_than_written_is_not_kept(colours, tmp_path, monkeypatch):
    close = shard_packing._Hashed.close

    def rots(file):
        close(file)
        path = Path(file._file.name)
        content = bytearray(path.read_bytes())
        content[1500] ^= 1
        path.write_bytes(bytes(content))

    monkeypatch.setattr(shard_packing._Hashed, "close", rots)
    with pytest.raises(OSError, match=r"train-000000.tar reads otherwise than it was written"):
        write(colours, tmp_path)
    assert not list(tmp_path.glob("*.tar"))


def test_unreadable_images_are_left_out_and_listed(tmp_path, capsys):
    folder = small.colour_folder(tmp_path / "colours", per_class=5)
    small.break_image(folder / "red" / "01.png")
    words = ["data", "shard", f"folder:{folder}", str(tmp_path / "out")]
    for _ in range(2):  # a second time it is finished already, and says the same
        assert main(words) == 1
        captured = capsys.readouterr()
        assert captured.out.startswith("14 images in 2 shards, 0.1 MiB; use them with --data wds:")
        assert captured.err.splitlines()[-2] == "1 image could not be read:"
        assert captured.err.splitlines()[-1].startswith("  red/01.png is not a readable image")
    assert main([*words, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["samples"], len(report["broken"])) == (14, 1)
    assert main(["data", "shard", f"folder:{folder}", str(tmp_path / "new"), "--max-mb=0"]) == 2
    assert "max_mb must be at least 1, got 0" in capsys.readouterr().err


def test_keys_are_paths_that_webdataset_can_read(tmp_path):
    names = ["a/x.1.png", "a/y.png", "a/y.jpg", "a/y.jpg.png", "b/__z__/50%.png", "b/ü.png"]
    files = data.ImageFiles([tmp_path / name for name in names], [0, 1] * 3)
    (keys,) = sample_keys([files])
    assert keys == ["a/x%2E1", "a/y", "a/y%2Ejpg", "a/y%2Ejpg%2Epng", "b/__z__/50%25", "b/ü"]
    for path in files.paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    write(data.ImageData("odd", ("0", "1"), 3, files, files), tmp_path / "out", max_count=9)
    val = data.load(f"wds:{tmp_path / 'out'}").val
    config = data.InputConfig(3, 4, (0.5,) * 3, (0.5,) * 3)
    (batch,) = data.loader(val, config.transform(), batch_size=9)
    assert [name for name in batch.names if "y." not in name] == [
        "a/x.1.png",
        "b/__z__/50%.png",
        "b/ü.png",
    ]
    read = as_webdataset([tmp_path / "out" / "val-000000.tar"])
    assert [sample["__key__"] for sample in read] == keys


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Shards without an index: 7, 5 and 4 samples, numbered through, then 3."""
    folder = tmp_path_factory.mktemp("plain")
    write_numbers(folder, (7, 5, 4))
    write_numbers(folder, (3,), "val")
    return folder


@pytest.mark.parametrize(
    ("spec", "train_size", "val_size"),
    [
        ("{0}", 16, 3),
        ("{0}/train-{{000000..000001}}.tar,val-000000.tar", 12, 3),
        ("{0}/train-*.tar,{0}/val-*.tar", 16, 3),
        ("{0}/train-00000{{0,2}}.tar,val-*.tar", 11, 3),
        ("{0}/train-000001.tar", 0, 5),
    ],
)
def test_names_of_shards_without_an_index(plain, spec, train_size, val_size):
    found = data.load("wds:" + spec.format(plain))
    assert (len(found.train), len(found.val)) == (train_size, val_size)
    highest = max([*found.train.labels, *found.val.labels])
    assert found.classes == tuple(str(i) for i in range(highest + 1))
    assert not (plain / "index.json").exists()
    assert all(path.suffix == ".tar" for path in plain.iterdir())


def test_shards_are_counted_once(plain, monkeypatch):
    name = f"wds:{plain}"
    counted = []
    monkeypatch.setattr(
        shard_counting, "scan_shard", lambda place: counted.append(place) or scan_shard(place)
    )
    first = data.load(name)
    assert len(counted) == 4
    assert data.load(name).train == first.train
    assert len(counted) == 4
    changed = plain / "train-000002.tar"
    changed.touch()
    data.load(name)
    assert counted[4:] == [str(changed)]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("a,b,c", ValueError, "is not understood; give wds:FOLDER, or wds:TRAINING,VALIDATION"),
        ("pipe:cat {0}/x.tar", ValueError, "pipe is not read; give files, or addresses of http"),
        ("s3://bucket/train-{{0..9}}.tar", ValueError, "s3 is not read"),
        ("{0}/train-{{0..9", ValueError, "[Uu]nbalanced"),
        ("{0}/no-*.tar", FileNotFoundError, "no shard at .*no-"),
        ("{0}/train-{{000000..000009}}.tar", FileNotFoundError, "no shard at .*train-000003.tar"),
        ("{0}/no", FileNotFoundError, "no shard at .*no"),
        ("{0}/train-*.tar,train-000001.tar", ValueError, "is for both training and validation"),
        ("{0}/../empty", FileNotFoundError, r"has neither index.json nor both train\*.tar and"),
        ("{0}/bad/cut.tar", ValueError, r"cut.tar is damaged or cut off after sample 0"),
        ("{0}/bad/empty.tar", ValueError, r"empty.tar holds no sample"),
        ("{0}/bad/unlabelled.tar", ValueError, r"unlabelled.tar, sample 0 \(a\): it has no label"),
        ("{0}/bad/one.tar", ValueError, "has only one class"),
    ],
)
def test_names_of_shards_that_cannot_be(plain, spec, error, message):
    (plain.parent / "empty").mkdir(exist_ok=True)
    write_tar(plain / "bad" / "empty.tar", [])
    write_tar(plain / "bad" / "unlabelled.tar", [("a.png", png(0))])
    whole = write_tar(plain / "bad" / "one.tar", [("a.png", png(0)), ("a.cls", b"0")])
    (plain / "bad" / "cut.tar").write_bytes(whole.read_bytes()[:700])
    with pytest.raises(error, match=message) as caught:
        data.load("wds:" + spec.format(plain))
    assert "\n" not in str(caught.value)


def test_an_index_that_does_not_fit_is_noticed_before_anything_is_read(shards, tmp_path):
    def spoil(change):
        folder = tmp_path / "spoilt"
        folder.mkdir(exist_ok=True)
        for name, content in contents(shards).items():
            (folder / name).write_bytes(content)
        index = json.loads((folder / "index.json").read_text())
        change(folder, index)
        (folder / "index.json").write_text(json.dumps(index))
        return f"wds:{folder}"

    first = "train-000000.tar"
    for change, error, message in (
        (lambda f, i: (f / first).unlink(), FileNotFoundError, rf"no shard at .*{first}, which"),
        (lambda f, i: (f / first).write_bytes(b"x" * 9), ValueError, r"cut off or another one"),
        (lambda f, i: i.pop("format"), ValueError, "index.json: it is damaged or no index"),
        (lambda f, i: i["splits"]["train"][0].update(labels="0 1"), ValueError, "a label for each"),
        (lambda f, i: i.update(classes=["a", "b"]), ValueError, "has label 2 of 2 classes"),
        (lambda f, i: i["splits"].pop("val"), ValueError, "names no shards of val"),
    ):
        with pytest.raises(error, match=message):
            data.load(spoil(change))


def test_unlabelled_shards_are_for_predicting(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("x/a.png", png(3)), ("x/b.jpg", png(4))])
    found = data.open_shards(str(path))
    assert (len(found), list(found.labels)) == (2, [0, 0])
    config = data.InputConfig(3, 8, (0.5,) * 3, (0.5,) * 3)
    (batch,) = data.loader(found, config.transform(), batch_size=8)
    assert batch.names == ["x/a.png", "x/b.jpg"]


def test_shards_on_a_server(shards, plain, monkeypatch):
    monkeypatch.setattr(remote, "DELAYS", (0.0,))
    local = data.load(f"wds:{shards}")
    config = data.InputConfig(3, 8, (0.5,) * 3, (0.5,) * 3)

    def order(images):
        loader = data.loader(images, config.transform(), batch_size=6, shuffle_seed=1)
        return [name for batch in loader for name in batch.names]

    with served(shards) as address:
        found = data.load(f"wds:{address}")
        assert found.classes == local.classes
        assert order(found.train) == order(local.train)
        some = data.load(f"wds:{address}/train-{{000000..000001}}.tar,val-000000.tar")
        assert (len(some.train), len(some.val)) == (8, 4)
        with pytest.raises(ValueError, match=r"index.json does not name train-000009.tar"):
            data.load(f"wds:{address}/train-000009.tar")
    with served(plain) as address:
        with pytest.raises(FileNotFoundError, match=f"no index.json at {address}"):
            data.load(f"wds:{address}")
        with pytest.raises(ValueError, match=r"index.json is missing; shards on a server need it"):
            data.load(f"wds:{address}/train-000000.tar,val-000000.tar")


def test_training_on_shards_is_the_same_for_any_number_of_workers(colours, shards, tmp_path):
    runs = [
        dataclasses.replace(
            small.colour_run(Path(), tmp_path / str(workers), epochs=1, workers=workers),
            data=f"wds:{shards}",
        )
        for workers in (0, 2)
    ]
    results = [train.fit(config, show_progress=False) for config in runs]
    assert results[0].history[0]["train_loss"] == results[1].history[0]["train_loss"]
    one, two = (hub.read_checkpoint(result.best) for result in results)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_there_is_nothing_to_learn_from_validation_shards_alone(shards, tmp_path):
    config = dataclasses.replace(
        small.colour_run(Path(), tmp_path / "run"), data=f"wds:{shards}/val-*.tar"
    )
    with pytest.raises(ValueError, match="no images to learn from"):
        train.fit(config, show_progress=False)
    assert not (tmp_path / "run").exists()


def test_tar_files_are_the_same_on_every_machine(shards):
    with tarfile.open(fileobj=io.BytesIO((shards / "train-000000.tar").read_bytes())) as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.uname, member.gname) == (0, 0, "", "")
