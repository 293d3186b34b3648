"""The list of runs and their comparison."""

import json
import os
from dataclasses import replace

import pytest

from volution.cli import main
from volution.train import TrainConfig
from volution.train.config import write_config
from volution.train.rows import write_rows


def write_run(folder, epochs_done, top1s=(), **settings):
    """A run's folder as training leaves it."""
    folder.mkdir(parents=True)
    config = TrainConfig(out=folder, **{"epochs": 3, **settings})
    write_config(config, folder / "config.yaml")
    rows = [
        {"epoch": i + 1, "lr": 0.1, "train_loss": 2 / (i + 1), "val_loss": 1.5 / (i + 1),
         "val_top1": top1s[i], "val_top5": 1.0, "seconds": 30.0, "images_per_second": 100.0 + i}
        for i in range(epochs_done)
    ]  # fmt: skip
    if rows:
        write_rows(folder / "metrics.csv", rows)
    return config


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "runs"
    write_run(root / "first", 3, (0.5, 0.75, 0.625), lr=0.1)
    write_run(root / "deep" / "second", 1, (0.25,), lr=0.2, model="van_b0",
              data="folder:/a/long/way/to/flowers", layer_decay=0.9)  # fmt: skip
    write_run(root / "third", 0)
    return root


def cells(text):
    return {line.split()[0]: line.split() for line in text.splitlines()[1:]}


def test_the_list(root, capsys):
    assert main(["runs", str(root)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert all(len(line) <= 80 for line in captured.out.splitlines())
    rows = cells(captured.out)
    assert list(rows) == ["deep/second", "first", "third"]
    assert rows["first"][1:8] == ["rednet26", "digits", "3/3", "finished", "75.00", "1.5", "min"]
    assert rows["deep/second"][1:6] == ["van_b0", "flowers", "1/3", "interrupted", "25.00"]
    assert rows["third"][3:6] == ["0/3", "interrupted", "-"]


def test_the_list_as_json(root, capsys):
    assert main(["runs", str(root), "--json"]) == 0
    second, first, third = json.loads(capsys.readouterr().out)
    assert first["best_top1"] == 0.75
    assert first["best_epoch"] == 2
    assert first["seconds"] == 90
    assert first["images_per_second"] == 101
    assert first["state"] == "finished"
    assert second["data"] == "folder:/a/long/way/to/flowers"
    assert third["best_top1"] is None
    assert third["images_per_second"] is None


def test_runs_is_where_they_are_looked_for(root, capsys, monkeypatch):
    monkeypatch.chdir(root.parent)
    assert main(["runs"]) == 0
    by_default = capsys.readouterr().out
    assert main(["runs", "runs"]) == 0
    assert capsys.readouterr().out == by_default
    assert main(["runs", "runs/first"]) == 0
    assert list(cells(capsys.readouterr().out)) == ["runs/first"]


def test_a_run_in_progress(root, capsys):
    from volution.train.runstate import hold

    (root / "first" / "steps.csv").write_text("step,epoch,lr,train_loss\n")
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        file = (root / "first" / "steps.csv").open("a")
        hold(file)
        os.write(ready[1], b"1")
        os.read(go_on[0], 1)
        os._exit(0)
    try:
        os.read(ready[0], 1)
        assert main(["runs", str(root)]) == 0
        assert cells(capsys.readouterr().out)["first"][4] == "running"
    finally:
        os.write(go_on[1], b"1")
        os.waitpid(child, 0)
    assert main(["runs", str(root)]) == 0
    assert cells(capsys.readouterr().out)["first"][4] == "finished"


def damage_config(folder):
    (folder / "config.yaml").write_text("epochs: many\n")


def damage_metrics(folder):
    (folder / "metrics.csv").write_bytes(b"\xff\xfe\x00")


def damage_environment(folder):
    (folder / "environment.json").write_text("[]")


def put_a_folder_in_the_way(folder):
    (folder / "environment.json").mkdir()


@pytest.mark.parametrize(
    "damage", [damage_config, damage_metrics, damage_environment, put_a_folder_in_the_way]
)
def test_damaged_runs_are_listed_as_such(root, capsys, damage):
    damage(root / "first")
    assert main(["runs", str(root)]) == 1
    captured = capsys.readouterr()
    assert cells(captured.out)["first"] == ["first", "damaged"]
    assert "deep/second" in captured.out
    (line,) = captured.err.splitlines()
    assert line.startswith("damaged: ")
    assert str(root / "first") in line
    assert main(["runs", str(root), "--json"]) == 1
    damaged = [row for row in json.loads(capsys.readouterr().out) if row["state"] == "damaged"]
    assert [row["folder"] for row in damaged] == [str(root / "first")]


def test_comparison(root, capsys):
    assert main(["runs", str(root / "first"), str(root / "deep" / "second")]) == 0
    settings, results = (cells(part) for part in capsys.readouterr().out.split("\n\n"))
    assert settings["lr"] == ["lr", "0.1", "0.2"]
    assert settings["layer_decay"] == ["layer_decay", "-", "0.9"]
    assert settings["model"] == ["model", "rednet26", "van_b0"]
    # What is the same is left out, and where it lies says nothing.
    assert not {"epochs", "seed", "out"} & settings.keys()
    assert results["best"] == ["best", "top-1", "75.00%", "25.00%"]
    assert results["epochs"] == ["epochs", "3/3", "1/3"]
    assert results["state"] == ["state", "finished", "interrupted"]


def test_long_names_are_folded_not_cut(root, capsys):
    long = root / ("a_run_with_a_name_that_is_" * 4)
    write_run(long, 1, (0.5,), model_args={"widths": list(range(40))})
    assert main(["runs", str(root / "first"), str(long)]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    assert "39" in text


def test_comparison_as_json(root, capsys):
    folders = [root / "first", root / "third", root / "deep" / "second"]
    assert main(["runs", *map(str, folders), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["folder"] for run in found["runs"]] == list(map(str, folders))
    assert found["settings"]["lr"] == ["0.1", "0.001", "0.2"]
    assert found["settings"]["layer_decay"] == [None, None, "0.9"]


def test_equal_settings(root, capsys):
    config = TrainConfig(out=root / "first", epochs=3, lr=0.1)
    write_run(root / "again", 3, (0.5, 0.5, 0.5), lr=0.1)
    write_config(replace(config, out=root / "again"), root / "again" / "config.yaml")
    assert main(["runs", str(root / "first"), str(root / "again")]) == 0
    assert capsys.readouterr().out.startswith("the settings are the same\n")


def test_what_is_not_there(root, tmp_path, capsys):
    def failure(*folders):
        assert main(["runs", *map(str, folders)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("volution: error: ")

    (tmp_path / "empty").mkdir()
    assert failure(tmp_path / "none").startswith(f"root: the folder {tmp_path}/none does not exist")
    assert failure(tmp_path / "empty").startswith(f"root: no run in {tmp_path}/empty; train one")
    assert failure(root / "first", tmp_path).startswith(f"no run at {tmp_path}")
    damage_metrics(root / "third")
    assert "metrics.csv is not a table of numbers" in failure(root / "first", root / "third")
