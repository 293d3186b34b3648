"""Shards as a stream: every sample once, the same order for all ranks and workers, bad shards."""

import itertools
import re
import threading
import time
from http.server import SimpleHTTPRequestHandler

import numpy as np
import pytest
import torch
from shard_files import png, served, write_numbers, write_tar

from volution import data
from volution.data import remote, stream
from volution.data.ahead import Ahead
from volution.data.shard_reading import Shard, read_shard

COUNTS = (7, 5, 9, 12, 3)
TOTAL = sum(COUNTS)
INPUT = data.InputConfig(3, 8, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VOLUTION_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_numbers(tmp_path_factory.mktemp("numbers"), COUNTS)


@pytest.fixture
def numbers(paths):
    starts = itertools.accumulate((0, *COUNTS))
    shards = (
        Shard(str(path), range(start, start + count))
        for path, start, count in zip(paths, starts, COUNTS, strict=False)
    )
    return stream.Stream(tuple(shards), TOTAL, window=6)


def load(images, batch_size=8, transform=None, **settings):
    return data.loader(images, transform or INPUT.transform(), batch_size=batch_size, **settings)


def epoch(images, ranks=1, **settings):
    """Labels of all batches of an epoch, those of the ranks put together again."""
    loaders = [load(images, rank=rank, ranks=ranks, **settings) for rank in range(ranks)]
    batches = [[batch.labels.tolist() for batch in loader] for loader in loaders]
    assert {len(part) for part in batches} == {len(loader) for loader in loaders}
    return [list(itertools.chain(*parts)) for parts in zip(*batches, strict=True)]


def flat(batches):
    return list(itertools.chain(*batches))


@pytest.fixture(params=[32, 2], ids=["one-lane", "four-lanes"])
def lanes(request, monkeypatch):
    monkeypatch.setattr(stream, "_PLACES_OF_A_LANE", request.param)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_an_epoch_is_exact_over_workers_and_ranks(numbers, workers):
    alone = epoch(numbers, shuffle_seed=3)
    assert [len(batch) for batch in alone] == [8] * (TOTAL // 8)
    assert len(set(flat(alone))) == TOTAL // 8 * 8
    for ranks in (1, 2):
        assert epoch(numbers, ranks, workers=workers, shuffle_seed=3) == alone
        shares = [
            torch.cat([b.labels for b in load(numbers, workers=workers, rank=rank, ranks=ranks)])
            for rank in range(ranks)
        ]
        assert torch.cat(shares).tolist() == list(range(TOTAL))


@pytest.mark.usefixtures("lanes")
def test_ranks_see_the_batches_of_one_process(numbers):
    alone = epoch(numbers, shuffle_seed=0)
    assert all(epoch(numbers, ranks, shuffle_seed=0) == alone for ranks in (2, 4, 8))


def test_without_shuffling_ranks_take_one_share_each_and_as_many_batches(numbers):
    loaders = [load(numbers, rank=rank, ranks=4) for rank in range(4)]
    batches = [[batch.labels.tolist() for batch in loader] for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(part) for part in batches] == [5] * 4
    assert [flat(part) for part in batches] == [
        list(range(10)),
        list(range(10, 20)),
        list(range(20, 30)),
        list(range(30, 36)),
    ]
    assert batches[3][-2:] == [[], []]


def test_the_order_depends_on_seed_and_epoch_alone(numbers):
    def order(seed, number):
        loader = load(numbers, shuffle_seed=seed)
        data.set_position(loader, number)
        return [batch.labels.tolist() for batch in loader]

    assert order(0, 0) == order(0, 0)
    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert len({str(found) for found in orders}) == 3
    # Not the same samples are left out each time.
    assert len({tuple(sorted(flat(found))) for found in orders}) == 3


def test_samples_are_mixed_within_the_window_and_no_more_are_held(numbers):
    wide = stream.Stream(numbers.shards, TOTAL, window=TOTAL)
    narrow = stream.Stream(numbers.shards, TOTAL, window=1)

    def starts(images):
        labels = flat(epoch(images, shuffle_seed=0))
        return sum(b != a + 1 for a, b in itertools.pairwise(labels))

    assert starts(narrow) < len(COUNTS)  # shards in another order, samples in theirs
    assert starts(wide) > TOTAL // 2
    batches = stream.StreamBatches(numbers, batch_size=8, seed=0)
    (lane,) = batches._lanes(0, 0, 0)
    most = 0
    for _ in range(len(batches)):
        for slot in next(lane._rows).tolist():
            lane._take(slot)
            most = max(most, len(lane._held))
    assert 1 <= most <= numbers.window


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_position_within_an_epoch(numbers, workers, monkeypatch):
    whole = epoch(numbers, shuffle_seed=5)
    in_order = epoch(numbers)
    opened = []
    monkeypatch.setattr(
        data.stream,
        "read_shard",
        lambda shard, **more: opened.append(shard) or read_shard(shard, **more),
    )
    shuffled, plain = load(numbers, shuffle_seed=5, workers=workers), load(numbers, workers=workers)
    for done in (0, 1, 3, 4):
        data.set_position(shuffled, 0, done)
        assert len(shuffled) == len(whole)
        assert [batch.labels.tolist() for batch in shuffled] == whole[done:]
        assert [batch.labels.tolist() for batch in shuffled] == whole  # only the next one
        opened.clear()
        data.set_position(plain, 0, done)
        assert [batch.labels.tolist() for batch in plain] == in_order[done:]
        # What is over is not even opened.
        assert {shard.place for shard in opened} == {
            shard.place for shard in numbers.shards if max(shard.labels) >= done * 8
        }
    with pytest.raises(ValueError, match="batches_done must be from 0 to the 4"):
        data.set_position(shuffled, 0, 5)


@pytest.mark.usefixtures("lanes")
def test_repeated_augmentation(numbers):
    batches = flat(epoch(numbers, shuffle_seed=0, repeats=3))
    assert len(batches) == 32
    assert flat(epoch(numbers, 2, shuffle_seed=0, repeats=3)) == batches
    times = np.bincount(batches)
    assert set(times.tolist()) <= {0, 1, 2, 3}
    assert (times == 3).sum() >= 7


def test_augmentation_is_that_of_epoch_position_and_repetition(numbers):
    transform = INPUT.training_transform(data.Augmentation(color_jitter=0.9, hflip=0))

    def pixels(number, **settings):
        loader = load(numbers, transform=transform, shuffle_seed=0, **settings)
        data.set_position(loader, number)
        found = {}
        for batch in loader:
            for position, image in zip(batch.indices.tolist(), batch.images, strict=True):
                found.setdefault(position, []).append(image)
        return found

    first, other = pixels(0), pixels(0, batch_size=4, workers=1)
    both = first.keys() & other.keys()
    assert len(both) >= 28
    assert all(torch.equal(first[i][0], other[i][0]) for i in both)
    again = pixels(1)
    assert not all(torch.equal(first[i][0], again[i][0]) for i in first.keys() & again.keys())
    twice = next(images for images in pixels(0, repeats=2).values() if len(images) == 2)
    assert not torch.equal(*twice)


def test_batches_carry_names_and_pixels(numbers):
    (batch,) = load(numbers, batch_size=64)
    assert batch.names[:8] == [*(f"part0/{i:04d}.png" for i in range(7)), "part1/0007.png"]
    assert batch.indices.tolist() == list(range(TOTAL))
    values = ((batch.images[:, 0, 0, 0] + 1) * 127.5).round()
    assert values.tolist() == list(range(TOTAL))
    assert numbers.open(20).getpixel((0, 0)) == (20, 20, 20)
    assert numbers.name(20).endswith("train-000002.tar: part2/0020.png")
    assert numbers.labels == list(range(TOTAL))


def test_unreadable_images_fall_out_and_are_named(tmp_path):
    members = [(f"{i}.{kind}", content) for i in range(4) for kind, content in
               (("jpg", png(i) if i != 2 else png(i)[:40]), ("cls", b"1"))]  # fmt: skip
    path = write_tar(tmp_path / "a.tar", members)
    (batch,) = load(stream.Stream((Shard(str(path), [1] * 4),), 2))
    assert batch.names == ["0.jpg", "1.jpg", "3.jpg"]
    (problem,) = batch.broken
    assert problem.startswith(f"{path}: 2.jpg is not a readable image")


def bad(tmp_path, members, labels=(0, 1, 0), classes=2):
    path = write_tar(tmp_path / "bad.tar", members)
    return path, stream.Stream((Shard(str(path), labels),), classes)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([("b.cls", b"0")], r"sample 1 \(b\): it has no image, only cls"),
        ([("b.png", png(0))], r"sample 1 \(b\): it has no label \(b.cls\)"),
        ([("b.png", png(0)), ("b.cls", b"cat")], r"its label must be a class number, got 'cat'"),
        ([("b.png", png(0)), ("b.cls", b"-1")], r"its label must be a class number, got '-1'"),
        ([("b.png", png(0)), ("b.cls", b"2")], r"\(b.png\): label 2 is not from 0 to 1"),
        ([], r"is cut off: it should hold 3 samples, 1 of them are missing"),
    ],
)
def test_bad_samples_stop_with_their_names(tmp_path, second, message, workers):
    first, last = [[(f"{k}.png", png(0)), (f"{k}.cls", b"0")] for k in "ac"]
    path, images = bad(tmp_path, [*first, *second, *last])
    with pytest.raises(ValueError, match=f"^shard {re.escape(str(path))}.*{message}"):
        list(load(images, workers=workers))


def test_shards_that_vanish_or_are_cut_off(numbers, paths, tmp_path):
    content = paths[2].read_bytes()
    for length, message in (
        (0, "damaged or cut off at its beginning: empty file"),
        (len(content) // 2, r"damaged or cut off after sample \d+ \(part2/"),
        (4 * 1024 + 512, "damaged or cut off after sample"),
        (4 * 1024 * 2, "the end of the archive is missing"),
    ):
        path = tmp_path / "cut.tar"
        path.write_bytes(content[:length])
        images = stream.Stream((Shard(str(path), range(9)),), 100)
        with pytest.raises(ValueError, match=f"^shard {re.escape(str(path))}.*{message}"):
            list(load(images))
    images = stream.Stream((Shard(str(path), range(9), bytes=len(content)),), 100)
    with pytest.raises(ValueError, match=f"it has 8192 bytes, its index says {len(content)}"):
        list(load(images))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"^no shard at {re.escape(str(path))}$"):
        list(load(images, shuffle_seed=0))


def test_what_others_put_into_shards_is_passed_over(tmp_path):
    sample = [("a.b.jpg", b"mask"), ("a.PNG", png(7)), ("a.cls", b" 1\n"), ("a.json", b"{}")]
    path = write_tar(tmp_path / "a.tar", [("__index__", b"x"), ("README", b"x"), *sample])
    (found,) = read_shard(Shard(str(path), [1]))
    assert (found.name, found.label, found.image) == ("a.png", 1, png(7))


def test_reading_ahead_stops_when_nobody_listens(numbers):
    before = threading.active_count()
    iterator = iter(load(numbers, shuffle_seed=0, batch_size=4))
    next(iterator)
    del iterator
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_reading_ahead_passes_errors_on_once():
    def items():
        yield 1
        raise ValueError("torn")

    ahead = Ahead(items(), size=4)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="torn"):
        next(ahead)
    assert list(ahead) == []


class Flaky(SimpleHTTPRequestHandler):
    """A server that closes connections in the middle, and answers 503 at first."""

    ranges = True
    refused = 0

    def do_GET(self):
        cls = type(self)
        cls.asked.append(self.headers.get("Range"))
        if cls.refused:
            cls.refused -= 1
            return self.send_error(503)
        content = (cls.folder / self.path.strip("/")).read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if cls.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        # All of the rest only at the third attempt.
        end = len(content) if len(cls.asked) >= 4 else start + (len(content) - start) // 2
        self.wfile.write(content[start:end])
        self.close_connection = True
        return None


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_connections_are_taken_up_where_they_broke(paths, monkeypatch, ranges):
    monkeypatch.setattr(remote, "DELAYS", (0.0,) * 4)
    path = paths[3]
    handler = type(
        "H", (Flaky,), {"folder": path.parent, "asked": [], "refused": 1, "ranges": ranges}
    )
    with served(path.parent, handler) as address:
        shard = Shard(f"{address}/{path.name}", range(12), path.stat().st_size)
        found = list(read_shard(shard))
    assert found == list(read_shard(Shard(str(path), range(12))))
    assert handler.asked[0] is handler.asked[1] is None
    assert handler.asked[2] == f"bytes={path.stat().st_size // 2}-"


def test_servers_that_fail_for_good(paths, monkeypatch):
    monkeypatch.setattr(remote, "DELAYS", (0.0,) * 2)
    with served(paths[0].parent) as address:
        with pytest.raises(FileNotFoundError, match=f"no file at {address}/no.tar"):
            list(read_shard(Shard(f"{address}/no.tar", [0])))
        place = f"{address}/{paths[0].name}"
        with pytest.raises(ValueError, match="its index says 99"):
            list(read_shard(Shard(place, range(7), bytes=99)))
    with pytest.raises(OSError, match=f"{place} could not be read, in 3 attempts: .*refused"):
        list(read_shard(Shard(place, range(7))))
