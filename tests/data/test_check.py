"""Unreadable images are found before they are needed, and whole ones are read once."""

import json
import os

import numpy as np
import pytest
import small
from PIL import Image

from volution import data
from volution.cli import main
from volution.data import images as image_files
from volution.train import fit


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VOLUTION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def colours(tmp_path):
    return small.colour_folder(tmp_path / "colours", per_class=6)


@pytest.fixture
def opened(monkeypatch):
    """Names of the files that are read."""
    names = []
    read = image_files.open_image

    def open_image(path, *limits):
        names.append(f"{path.parent.name}/{path.name}")
        return read(path, *limits)

    monkeypatch.setattr(image_files, "open_image", open_image)
    return names


def check(folder, **settings):
    files = data.ImageFiles(data.find_images(folder), [0] * len(data.find_images(folder)))
    return data.check_images(files, show_progress=False, **settings)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_found_in_their_order(colours, workers):
    bad = [small.break_image(colours / name) for name in ("blue/03.png", "red/01.png")]
    (colours / "green" / "02.png").write_bytes(b"")
    problems = check(colours, workers=workers)
    assert [p.split(" ")[0] for p in problems] == [
        str(p) for p in (bad[0], colours / "green" / "02.png", bad[1])
    ]


def test_a_second_pass_reads_only_what_is_new_changed_or_broken(colours, opened):
    bad = small.break_image(colours / "blue" / "03.png")
    assert len(check(colours)) == 1
    assert len(opened) == 18
    opened.clear()
    assert len(check(colours)) == 1
    assert opened == ["blue/03.png"]

    Image.new("RGB", (5, 5)).save(colours / "red" / "new.png")
    small.break_image(colours / "red" / "04.png")
    touched = colours / "green" / "00.png"
    os.utime(touched, ns=(1, touched.stat().st_mtime_ns + 1))
    Image.new("RGB", (5, 5)).save(bad)
    opened.clear()
    (problem,) = check(colours)
    assert problem.startswith(f"{colours}/red/04.png is not a readable image")
    assert sorted(opened) == ["blue/03.png", "green/00.png", "red/04.png", "red/new.png"]
    opened.clear()
    check(colours)
    assert opened == ["red/04.png"]


def test_another_limit_is_another_question(colours, opened):
    files = data.ImageFiles(data.find_images(colours), [0] * 18)
    assert data.check_images(files, show_progress=False) == []
    few = data.ImageFiles(files.paths, files.labels, max_pixels=1000)
    problems = data.check_images(few, show_progress=False)
    assert len(problems) == 18
    assert "32 x 32 pixels, more than max_pixels = 1000 allows" in problems[0]
    assert len(opened) == 36


def test_what_was_read_before_an_interruption_is_remembered(tmp_path, opened, monkeypatch):
    folder = small.colour_folder(tmp_path / "many", per_class=50)
    read = image_files.open_image

    def interrupted(path, *limits):
        if len(opened) == 100:
            raise KeyboardInterrupt
        return read(path, *limits)

    with monkeypatch.context() as patch:
        patch.setattr(image_files, "open_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            check(folder)
    opened.clear()
    assert check(folder) == []
    assert len(opened) == 150 - 64  # a batch was complete


def test_a_damaged_or_forbidden_memory_costs_time_and_nothing_else(
    colours, cache, opened, capsys, monkeypatch
):
    check(colours)
    (memory,) = (cache / "checked").iterdir()
    memory.write_bytes(memory.read_bytes()[:-20])
    opened.clear()
    assert check(colours) == []
    assert len(opened) == 18
    assert len(np.load(memory, allow_pickle=False)) == 18
    (cache / "file").write_text("in the way")
    monkeypatch.setenv("VOLUTION_CACHE", str(cache / "file"))
    assert check(colours) == []
    assert "cannot remember which images are whole" in capsys.readouterr().err


def test_a_missing_file_is_a_broken_image(colours):
    files = data.ImageFiles([*data.find_images(colours), colours / "gone.png"], [0] * 19)
    assert data.check_images(files, show_progress=False) == [f"no image at {colours}/gone.png"]


def test_images_in_memory_are_whole(opened):
    assert data.check_images(data.load("digits").train) == []


def test_the_command_lists_them_and_fails(colours, capsys):
    assert main(["data", "check", f"folder:{colours}"]) == 0
    assert capsys.readouterr().out == "18 of 18 images can be read (15 train, 3 val), 3 classes\n"
    bad = small.break_image(colours / "red" / "00.png")
    assert main(["data", "check", f"folder:{colours}", "--json"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["images"] == 18
    assert [problem.split(" ")[0] for problem in found["broken"]] == [str(bad)]
    assert captured.err.splitlines()[-1].startswith(f"  {bad} is not a readable image")
    assert main(["data", "check", f"folder:{colours}", "--max-pixels", "0"]) == 2
    assert "max_pixels must be at least 1, got 0" in capsys.readouterr().err
    assert main(["data", "check", "folder:/no/such/place"]) == 2
    capsys.readouterr()


class TestBeforeTraining:
    def test_they_are_told_first_and_left_out(self, colours, tmp_path, capsys):
        bad = small.break_image(data.load(f"folder:{colours}").train.paths[0])
        config = small.colour_run(colours, tmp_path / "run", epochs=1, check_data=True)
        result = fit(config, show_progress=False)
        told = capsys.readouterr().err
        assert "1 of 15 images of train cannot be read, and are left out:" in told
        assert f"  {bad} is not a readable image" in told
        assert len(result.broken) == 1

    def test_data_of_broken_images_alone_is_refused(self, colours, tmp_path):
        for path in data.find_images(colours):
            path.write_bytes(b"broken")
        config = small.colour_run(colours, tmp_path / "run", check_data=True)
        with pytest.raises(ValueError, match=r"no image of train can be read; .*not a readable"):
            fit(config, show_progress=False)
        assert not (tmp_path / "run").exists()

    def test_the_limit_of_pixels_counts_in_training(self, colours, tmp_path):
        Image.new("RGB", (99, 99)).save(colours / "red" / "00.png")
        config = small.colour_run(colours, tmp_path / "run", epochs=1, max_pixels=9000)
        (problem,) = fit(config, show_progress=False).broken
        assert "99 x 99 pixels, more than max_pixels = 9000" in problem
