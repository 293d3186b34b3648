"""Shards: written whole, continued to the same bytes, trained on."""

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
from shard_files import png, write_tar
from webdataset.tariterators import group_by_keys, tar_file_iterator

from volution import data, hub, train
from volution.cli import main
from volution.data import shard_packing
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
    with pytest.raises(OSError, match=r"destination: cannot write to .*mine.tar/in: Not a dir"):
        write(colours, other / "mine.tar" / "in")
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
