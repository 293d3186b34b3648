"""Predictions in parts: every image once over all shares, taken up again, never two jobs in one."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pyarrow.parquet as pq
import pytest
import small
import torch
from PIL import Image

from volution import data, infer, tasks
from volution.infer import inputs, parquet
from volution.infer.shares import Share, find_share


@pytest.fixture(scope="module")
def classifier():
    return small.lively_classifier()


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """23 images; the one in the eighth place cannot be read."""
    root = small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=8)
    (root / "red" / "07.png").unlink()
    small.break_image(root / "blue" / "07.png")
    return root


def write(classifier, colours, folder, **settings):
    settings = {"part_size": 4, "batch_size": 3, "show_progress": False, "top": 2, **settings}
    return infer.predict_parts(classifier, [str(colours)], folder, **settings)


def parts_of(folder):
    return sorted(path.name for path in folder.glob("*.parquet"))


def rows_of(folder):
    return [row for name in parts_of(folder) for row in pq.read_table(folder / name).to_pylist()]


@pytest.mark.parametrize("ranks", [1, 2, 3, 30])
def test_all_shares_hold_every_image_once_in_order(classifier, colours, tmp_path, ranks):
    folder = tmp_path / "out"
    results = [
        write(classifier, colours, folder, share=Share(rank, ranks)) for rank in range(ranks)
    ]
    found = rows_of(folder)
    assert [row["path"] for row in found] == [str(path) for path in data.find_images(colours)]
    assert sum(result.count for result in results) == 23
    assert results[-1].missing == 0
    assert [i for i, row in enumerate(found) if row["error"]] == [7]
    assert sum(len(result.broken) for result in results) == 1
    (row,) = infer.predict(classifier, [found[20]["path"]], top=2, show_progress=False).rows
    assert tuple(found[20]["classes"]) == row.classes
    assert found[20]["probabilities"] == pytest.approx(row.probabilities, abs=1e-5)


def test_parts_have_the_names_and_sizes_that_were_asked_for(classifier, colours, tmp_path):
    result = write(classifier, colours, tmp_path / "out", share=Share(1, 2), part_size=5)
    assert parts_of(tmp_path / "out") == [f"part-00001-0000{i}.parquet" for i in range(3)]
    counts = [pq.read_metadata(tmp_path / "out" / n).num_rows for n in parts_of(tmp_path / "out")]
    assert counts == [5, 5, 2]
    assert result.missing == 3


def test_what_is_complete_is_left_alone(classifier, colours, tmp_path):
    folder = tmp_path / "out"
    write(classifier, colours, folder)
    before = {name: (folder / name).stat().st_mtime_ns for name in parts_of(folder)}
    (folder / "part-00000-00002.parquet").unlink()
    (folder / ".part-00000-00003.parquet.123-abc.unfinished").write_bytes(b"half")
    result = write(classifier, colours, folder)
    after = {name: (folder / name).stat().st_mtime_ns for name in parts_of(folder)}
    assert [name for name in before if before[name] != after[name]] == ["part-00000-00002.parquet"]
    assert (result.count, result.earlier) == (23, 19)
    assert len(result.broken) == 1  # of a part that was there
    assert sorted(path.name for path in folder.iterdir()) == ["_job.json", *after]
    assert [row["path"] for row in rows_of(folder)] == [str(p) for p in data.find_images(colours)]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_damaged_part_is_written_again(classifier, colours, tmp_path, capsys, share):
    folder = tmp_path / "out"
    write(classifier, colours, folder)
    bad = folder / "part-00000-00001.parquet"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: int(len(whole) * share)])
    assert write(classifier, colours, folder).earlier == 19
    assert "is damaged and is written again" in capsys.readouterr().err
    assert len(rows_of(folder)) == 23


def test_another_job_is_refused(classifier, colours, tmp_path):
    folder = tmp_path / "out"
    write(classifier, colours, folder)
    before = rows_of(folder)
    for settings, message in (
        ({"top": 1}, "top 2, not 1"),
        ({"embeddings": True}, "embedding None, not"),
        ({"share": Share(0, 2)}, "ranks 1, not 2"),
        ({"part_size": 5}, "part_size 4, not 5"),
    ):
        with pytest.raises(ValueError, match=f"holds another job .{message}"):
            write(classifier, colours, folder, **settings)
    with pytest.raises(ValueError, match=r"another job \(other images; count 23, not 8\)"):
        write(classifier, colours / "blue", folder)
    other = small.lively_classifier()
    with torch.no_grad():
        other.model.get_classifier().bias[0] += 1
    with pytest.raises(ValueError, match=r"another job \(another network\)"):
        write(other, colours, folder)
    renamed = tasks.Classifier(classifier.model, "rednet26", tuple("abc"), classifier.input)
    with pytest.raises(ValueError, match="another network"):
        write(renamed, colours, folder)
    assert rows_of(folder) == before


def test_a_part_of_another_job_is_refused(classifier, colours, tmp_path):
    write(classifier, colours, tmp_path / "one")
    write(classifier, colours, tmp_path / "two", top=1)
    name = "part-00000-00001.parquet"
    os.replace(tmp_path / "two" / name, tmp_path / "one" / name)
    with pytest.raises(ValueError, match=f"{name} is of another job"):
        write(classifier, colours, tmp_path / "one")
    os.replace(tmp_path / "two" / "part-00000-00002.parquet", tmp_path / "two" / name)
    with pytest.raises(ValueError, match=f"{name} is of another job"):
        write(classifier, colours, tmp_path / "two", top=1)


def test_folders_that_cannot_be_used(classifier, colours, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files, such as thesis\.tex"):
        write(classifier, colours, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to"):
        write(classifier, colours, tmp_path / "file")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "_job.json").write_text('{"network": ')
    with pytest.raises(ValueError, match=r"_job\.json is damaged"):
        write(classifier, colours, tmp_path / "torn")
    with pytest.raises(ValueError, match="part_size must be at least 1, got 0"):
        write(classifier, colours, tmp_path / "new", part_size=0)
    assert not (tmp_path / "new").exists()


class _Changing:
    """Images of which one is gone when they are read, or which are others when they are counted."""

    def __init__(self, real, *, read=None, counted=None):
        self.real, self.read = real, read
        self.counted = counted
        self.surveys = 0

    def survey(self):
        self.surveys += 1
        return (self.counted if self.counted and self.surveys > 1 else self.real).survey()

    def is_single(self):
        return False

    def items(self, start=0, stop=None):
        return (self.read or self.real).items(start, stop)


def test_images_that_change_meanwhile_are_an_error(classifier, colours, tmp_path):
    real = inputs.FileInputs((str(colours),))
    fewer = inputs.FileInputs((str(colours / "blue"), str(colours / "green")))
    gone = _Changing(real, read=fewer)
    with pytest.raises(ValueError, match=r"4 images of part-00000-00004\.parquet are gone"):
        infer.predict_parts(classifier, gone, tmp_path / "a", part_size=4, show_progress=False)
    assert parts_of(tmp_path / "a") == [f"part-00000-0000{i}.parquet" for i in range(4)]
    changed = _Changing(real, counted=fewer)
    with pytest.raises(ValueError, match="others at the end than at the beginning"):
        infer.predict_parts(classifier, changed, tmp_path / "b", show_progress=False)


def test_a_disk_that_is_full_leaves_complete_parts(classifier, colours, tmp_path, monkeypatch):
    folder, writes = tmp_path / "out", []

    def full(self):
        writes.append(self)
        if len(writes) == 3:
            raise OSError(28, "No space left on device")
        return finish(self)

    finish = parquet.ParquetWriter.finish
    monkeypatch.setattr(parquet.ParquetWriter, "finish", full)
    with pytest.raises(OSError, match="No space left"):
        write(classifier, colours, folder)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["_job.json", "part-00000-00000.parquet", "part-00000-00001.parquet"]
    assert write(classifier, colours, folder).earlier == 8
    assert len(rows_of(folder)) == 23


def test_shards_are_read_like_files(classifier, colours, tmp_path):
    data.write_shards(
        data.load(f"folder:{colours}"), tmp_path / "shards", max_count=5, show_progress=False
    )
    shards = inputs.find_inputs([f"wds:{tmp_path / 'shards'}"])
    count = shards.survey().count
    names = [item.name for item in shards.items()]
    assert count == len(set(names)) >= 22
    one = infer.predict(classifier, [f"wds:{tmp_path / 'shards'}"], show_progress=False)
    assert [row.path for row in one.rows] == [name for name in names if "blue/07" not in name]
    files = {row.path: row for row in infer.predict(classifier, [str(colours)]).rows}
    for row in one.rows:
        want = files[str(colours / row.path.removeprefix("train/").removeprefix("val/"))]
        assert row.classes == want.classes
        assert row.probabilities == pytest.approx(want.probabilities, abs=1e-5)
    for rank in range(3):
        infer.predict_parts(
            classifier, shards, tmp_path / "out", share=Share(rank, 3), part_size=4,
            batch_size=3, workers=rank, show_progress=False,
        )  # fmt: skip
    assert [row["path"] for row in rows_of(tmp_path / "out")] == names


def test_the_share_of_a_process():
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert find_share(environ=torchrun) == Share(3, 4, "RANK and WORLD_SIZE", 1)
    slurm = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2"}
    assert find_share(environ=slurm).rank == 5
    assert find_share(environ={**slurm, "SLURM_JOB_NAME": "interactive"}) == Share()
    assert find_share(environ={}) == Share()
    assert find_share(1, 2, environ=torchrun).ranks == 2
    for wrong in ((1, None), (None, 2), (2, 2), (-1, 2)):
        with pytest.raises(ValueError, match="rank"):
            find_share(*wrong, environ={})
    for broken in ({"RANK": "x", "WORLD_SIZE": "4"}, {"RANK": "4", "WORLD_SIZE": "4"}):
        with pytest.raises(ValueError, match="RANK and WORLD_SIZE in the environment"):
            find_share(environ=broken)
    for count in (0, 1, 7, 100):
        spans = [Share(rank, 7).span(count) for rank in range(7)]
        assert spans[0][0] == 0
        assert spans[-1][1] == count
        assert all(a[1] == b[0] for a, b in pairwise(spans))


def test_killed_at_any_moment_and_taken_up_again(classifier, colours, tmp_path):
    checkpoint, images, folder = tmp_path / "net.safetensors", tmp_path / "many", tmp_path / "out"
    tasks.save_classifier(checkpoint, classifier)
    images.mkdir()
    for i in range(160):
        os.link(colours / "red" / "00.png", images / f"{i:03d}.png")
    words = ["predict", checkpoint, images, f"--output={folder}", "--part-size=2", "--batch-size=2"]
    code = f"import volution.cli; volution.cli.main({list(map(str, words))})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        while len(parts_of(folder)) < 3:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = len(parts_of(folder))
    assert done < 80
    result = write(classifier, images, folder, top=3, part_size=2, batch_size=64)
    assert result.earlier == 2 * done
    found = rows_of(folder)
    assert [row["path"] for row in found] == [str(path) for path in data.find_images(images)]
    assert not [path for path in folder.iterdir() if path.suffix == ".unfinished"]
    first = found[0]["probabilities"]
    assert all(row["probabilities"] == pytest.approx(first, abs=1e-5) for row in found)
    assert json.loads((folder / "_job.json").read_text())["count"] == 160


def test_empty_and_odd_images_do_not_stop_a_part(classifier, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    Image.new("L", (1, 1)).save(tmp_path / "in" / "b.png")
    Image.new("CMYK", (9, 5)).save(tmp_path / "in" / "c.jpg")
    write(classifier, tmp_path / "in", tmp_path / "out", embeddings=True)
    found = rows_of(tmp_path / "out")
    assert [bool(row["error"]) for row in found] == [True, False, False]
    assert found[0]["embedding"] is None
