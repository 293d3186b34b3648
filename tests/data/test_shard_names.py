"""Names of shards: folders, patterns, servers; counted or as an index says; what cannot be."""

import json

import pytest
import small
from shard_files import png, served, write_numbers, write_tar

from volution import data
from volution.data import remote, shard_counting
from volution.data.shard_reading import scan_shard


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VOLUTION_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    colours = data.load(
        f"folder:{small.colour_folder(tmp_path_factory.mktemp('data') / 'colours')}"
    )
    data.write_shards(colours, folder, max_count=4, show_progress=False)
    return folder


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
        for path in shards.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
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
