"""The command that predicts: where rows go, what is seen of them, and what is refused."""

import csv
import io
import json
import os
import sys

import pyarrow.parquet as pq
import pytest
import small
import torch

from volution import data, tasks
from volution.cli import main
from volution.infer import Prediction
from volution.report.predictions import PredictionTable


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    tasks.save_classifier(path, small.colour_classifier())
    return path


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No launcher of another process says which share this one does."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


def predict(*words):
    return main(["predict", *(str(word) for word in words), "--device=cpu"])


def failure(capsys, *words):
    assert predict(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line.removeprefix("volution: error: ")


def test_rows_of_several_batches_stand_in_one_table(capsys, checkpoint, colours, monkeypatch):
    # Wide enough for the names of any temporary folder.
    monkeypatch.setattr("volution._support.console.out.width", 240, raising=False)
    assert predict(checkpoint, colours, "--batch-size=4", "--top=2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "is", "sure", "or", "else"]
    names = [line for line in lines if ".png" in line]
    assert len(names) == 15


def test_columns_stay_in_place_from_batch_to_batch(capsys, monkeypatch):
    monkeypatch.setattr("volution._support.console.out.width", 100, raising=False)
    table = PredictionTable()
    row = Prediction("a-rather-long-name.png", ("kingfisher", "gull"), (0.9, 0.1))
    table.write([row, Prediction("broken.png", error="broken.png is not readable")])
    table.write([Prediction("b.png", ("gull", "kingfisher"), (0.6, 0.4))])
    table.finish()
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.index("is") == first.index("kingfisher") == second.index("gull")
    assert first.index("90.0%") == second.index("60.0%")
    assert table.count == 2


def test_json_streams_the_shape_it_always_had(capsys, checkpoint, colours, tmp_path):
    folder = small.colour_folder(tmp_path / "colours", per_class=2)
    small.break_image(folder / "red" / "00.png")
    assert predict(checkpoint, folder, "--json", "--embeddings", "--batch-size=2") == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [set(row) for row in found["predictions"]] == [{"path", "classes", "embedding"}] * 5
    (problem,) = found["broken"]
    assert problem in captured.err


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_files_hold_all_rows_and_the_first_are_shown(capsys, checkpoint, colours, tmp_path, suffix):
    output = tmp_path / f"rows{suffix}"
    assert predict(checkpoint, colours, f"--output={output}", "--batch-size=4") == 0
    captured = capsys.readouterr()
    assert captured.out.count(".png") == 10
    assert f"and 5 more, 15 in all, in {output}" in captured.err
    paths = [str(path) for path in data.find_images(colours)]
    if suffix == ".parquet":
        found = pq.read_table(output)["path"].to_pylist()
    elif suffix == ".csv":
        found = [line["path"] for line in csv.DictReader(io.StringIO(output.read_text()))]
    elif suffix == ".jsonl":
        found = [json.loads(line)["path"] for line in output.read_text().splitlines()]
    else:
        found = [row["path"] for row in json.loads(output.read_text())["predictions"]]
    assert found == paths


def test_a_folder_is_filled_by_several_processes(
    capsys, checkpoint, colours, tmp_path, monkeypatch
):
    words = (checkpoint, colours, f"--output={tmp_path}/out", "--part-size=4", "--embeddings")
    assert predict(*words, "--rank=1", "--ranks=2") == 0
    captured = capsys.readouterr()
    assert "8 images in" in captured.out
    assert "2 parts of other shares are missing" in captured.out
    assert "share 1 of 2, by rank and ranks" in captured.err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert predict(*words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["earlier"], told["missing_parts"]) == (7, 0, 0)
    assert predict(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["earlier"] == 7
    table = pq.read_table(tmp_path / "out")
    assert table.num_rows == 15
    assert predict(*words, "--top=1") == 2
    assert f"output: {tmp_path}/out holds another job (top 3, not 1)" in capsys.readouterr().err
    line = failure(capsys, *words[:2], f"--output={tmp_path}/rows.csv")
    assert line.startswith("rank 0 of 2 (by RANK and WORLD_SIZE): several processes write parts")


def test_shards(capsys, checkpoint, colours, tmp_path):
    data.write_shards(data.load(f"folder:{colours}"), tmp_path / "shards", show_progress=False)
    assert predict(checkpoint, f"wds:{tmp_path}/shards", "--json", "--workers=1") == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 15
    line = failure(capsys, checkpoint, f"wds:{tmp_path}/none")
    assert "none" in line


def test_options_that_cannot_be(capsys, checkpoint, colours, tmp_path):
    good = (checkpoint, colours)
    line = failure(capsys, *good, "--embeddings", f"--output={tmp_path}/a.csv")
    assert line.startswith("output: embeddings go to .parquet, .jsonl or .json, got")
    line = failure(capsys, *good, "--embeddings")
    assert line == "embeddings fit in no table; give --output, or --json"
    line = failure(capsys, *good, "--rank=1")
    assert line == "rank and ranks go together, got rank 1 alone"
    assert "below ranks = 2, got 2" in failure(capsys, *good, "--rank=2", "--ranks=2")
    line = failure(capsys, *good, "--rank=1", "--ranks=2")
    assert line.endswith("write parts to a folder; give one as --output, got no output")
    assert "top must be at least 1, got 0" in failure(capsys, *good, "--top=0")
    line = failure(capsys, *good, f"--output={tmp_path}/out", "--part-size=0")
    assert line == "part_size must be at least 1, got 0"
    assert "top must be at least 1" in failure(capsys, *good, f"--output={tmp_path}/out", "--top=0")
    assert "no image at" in failure(capsys, checkpoint, tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_read_enough(checkpoint, colours, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    kept = os.dup(1)
    try:
        with os.fdopen(write, "w") as pipe:
            monkeypatch.setattr(sys, "stdout", pipe)
            assert predict(checkpoint, colours, "--json") == 0
            assert predict(checkpoint, colours) == 0
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def test_ctrl_c_tells_how_to_go_on(capsys, checkpoint, colours, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("volution.report.predictions.predict_parts", interrupted)
    assert predict(checkpoint, colours, f"--output={tmp_path}/out") == 130
    assert "the same command goes on after the last complete part" in capsys.readouterr().err
