"""The command line: what it prints, its exit codes, and that bad input costs nothing."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import small
import torch

import volution
from volution import hub, tasks
from volution.cli import main
from volution.cli.parser import COMMANDS, build


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=5)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "net.safetensors"
    tasks.save_classifier(path, small.colour_classifier())
    return path


def failure(capsys, *words):
    """Run a command that must fail; return its only line."""
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("volution: error: ")
    return line.removeprefix("volution: error: ")


def train_words(colours, out, **more):
    settings = {"epochs": 1, "batch_size": 8, "image_size": 32, "device": "cpu", **more}
    words = [f"--{name}={value}" for name, value in settings.items()]
    return ["train", f"--data=folder:{colours}", f"--out={out}",
            f"--model_args={json.dumps(small.WIDTHS)}", *words]  # fmt: skip


def test_it_runs_as_a_module():
    run = subprocess.run(
        [sys.executable, "-m", "volution", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == f"volution {volution.__version__}"
    assert run.stderr == ""


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"    {command} " in text
    assert main([]) == 0


@pytest.mark.parametrize("command", ["list", "train", "predict", "bench"])
def test_every_command_has_help(capsys, command):
    assert main([command, "--help"]) == 0
    assert "options:" in capsys.readouterr().out


def test_the_readmes_commands_exist_and_take_these_words():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    # A command, and what it does after two spaces.
    lines = re.findall(r"^\$? ?volution (.+?)(?:  .*)?$", readme, flags=re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        build(shlex.split(line)[:1]).parse_args(shlex.split(line))


def test_list(capsys):
    assert main(["list", "rednet5*"]) == 0
    assert "rednet50" in capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == volution.models.list_models()
    (row,) = [row for row in rows if row["name"] == "rednet50"]
    assert row["family"] == "RedNet"
    assert row["params"] == pytest.approx(15.5e6, rel=0.01)


def test_info(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "gather" in text
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["volution"] == volution.__version__
    assert found["kernels"] == volution.ops.report()


def test_train_evaluate_predict_resume(capsys, colours, tmp_path):
    out = tmp_path / "run"
    assert main(train_words(colours, out)) == 0
    assert "best top-1" in capsys.readouterr().out
    best = str(out / "best.safetensors")
    assert main(["eval", best, f"--data=folder:{colours}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["count"] == 3
    assert found["classes"] == ["blue", "green", "red"]
    assert main(["predict", best, str(colours / "red"), str(colours / "blue" / "00.png")]) == 0
    assert "00.png" in capsys.readouterr().out
    assert main(["train", "--resume", str(out)]) == 0
    assert "best top-1" in capsys.readouterr().out


def test_a_run_can_be_repeated_from_its_configuration(capsys, colours, tmp_path):
    assert main(train_words(colours, tmp_path / "one")) == 0
    config = tmp_path / "one" / "config.yaml"
    assert main(["train", f"--config={config}", f"--out={tmp_path / 'two'}"]) == 0
    one, two = (
        hub.read_checkpoint(tmp_path / name / "best.safetensors") for name in ("one", "two")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    capsys.readouterr()


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_predictions_go_to_a_file(capsys, colours, checkpoint, tmp_path, suffix):
    output = tmp_path / f"answers.{suffix}"
    words = ["predict", checkpoint, colours / "*" / "0[01].png", "--top=1", f"--output={output}"]
    assert main([str(word) for word in words]) == 0
    assert output.read_text().count("00.png") == 3
    capsys.readouterr()


def test_a_broken_image_among_others_is_listed_at_the_end(capsys, checkpoint, tmp_path):
    colours = small.colour_folder(tmp_path / "colours", per_class=2)
    bad = small.break_image(colours / "red" / "00.png")
    assert main(["predict", str(checkpoint), str(colours), "--json"]) == 1
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["predictions"]) == 5
    assert captured.err.splitlines()[-2] == "1 image could not be read:"
    assert captured.err.splitlines()[-1].startswith(f"  {bad} is not a readable image")
    line = failure(capsys, "predict", checkpoint, bad)
    assert line.startswith(f"{bad} is not a readable image")


def test_names_that_do_not_exist_get_the_nearest(capsys, colours, tmp_path):
    run = tmp_path / "run"
    assert failure(capsys, "trian") == "unknown command 'trian'; nearest: train"
    line = failure(capsys, *train_words(colours, run, model="rednet62"))
    assert line.startswith("unknown model 'rednet62'; nearest: rednet26")
    line = failure(capsys, "train", "--data=digit", f"--out={run}")
    assert line.startswith("unknown dataset 'digit'; nearest: digits")
    line = failure(capsys, *train_words(colours, run, optimizer="adamv"))
    assert line.startswith("unknown optimizer 'adamv'; nearest: adam")
    assert "rednet50" in failure(capsys, "list", "resnet*")
    assert not run.exists()


def test_options_that_cannot_be(capsys, colours, tmp_path):
    run = tmp_path / "run"
    assert "lr" in failure(capsys, *train_words(colours, run, lr="fast"))
    assert "schedule" in failure(capsys, *train_words(colours, run, schedule="zigzag"))
    assert "epochs must be at least 1, got 0" in failure(
        capsys, *train_words(colours, run, epochs=0)
    )
    if not torch.cuda.is_available():
        assert "no CUDA device" in failure(capsys, *train_words(colours, run, device="cuda"))
    assert "--bogus" in failure(capsys, "list", "--bogus")
    assert "wings" in failure(capsys, *train_words(colours, run), '--model_args={"wings": 2}')
    assert not run.exists()


def test_data_folders_that_are_empty_or_missing(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    run = f"--out={tmp_path / 'run'}"
    assert "no folder at all" in failure(capsys, "train", f"--data=folder:{tmp_path}/empty", run)
    assert "does not exist" in failure(capsys, "train", f"--data=folder:{tmp_path}/none", run)
    assert not (tmp_path / "run").exists()


def test_checkpoints_that_cannot_be_used(capsys, checkpoint, colours, tmp_path):
    data = f"--data=folder:{colours}"
    assert "no checkpoint at" in failure(capsys, "eval", tmp_path / "none.safetensors", data)
    line = failure(capsys, "eval", checkpoint, data, "--model=rednet50")
    assert "missing" in line
    assert "layer1.1" in line
    assert "takes images of 3 channels, digits has 1" in failure(capsys, "eval", checkpoint)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(checkpoint.read_bytes()[:1000])
    assert "damaged" in failure(capsys, "eval", broken, data)


def test_classes_must_be_the_same(capsys, checkpoint, tmp_path):
    other = small.colour_folder(tmp_path / "colours", per_class=2)
    (other / "red").rename(other / "scarlet")
    line = failure(capsys, "eval", checkpoint, f"--data=folder:{other}")
    assert "knows the classes blue, green, red" in line
    assert line.endswith("has blue, green, scarlet")


def test_output_is_checked_before_work(capsys, checkpoint, colours, tmp_path):
    words = ["predict", checkpoint, colours]
    assert "must end in .csv, .json, .jsonl or .parquet" in failure(
        capsys, *words, "--output=answers.txt"
    )
    assert "no folder" in failure(capsys, *words, f"--output={tmp_path}/none/answers.csv")


def test_run_folders_that_cannot_be_used(capsys, colours, tmp_path):
    (tmp_path / "file").write_text("in the way")
    line = failure(capsys, *train_words(colours, tmp_path / "file" / "run"))
    assert line.startswith("out: cannot write to")
    line = failure(capsys, "train", f"--resume={tmp_path}")
    assert line.startswith("resume: no run at")


def test_interruption(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("volution.report.terminal.show_models", interrupted)
    assert main(["list"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_missing_extra_names_itself(colours, tmp_path):
    words = train_words(colours, tmp_path / "run")
    code = (
        "import sys; sys.modules['lightning'] = None; from volution.cli import main; "
        f"sys.exit(main({words!r}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.splitlines() == [
        "volution: error: lightning is not installed; run: pip install 'volution[train]'"
    ]
    assert not (tmp_path / "run").exists()


def test_nothing_heavy_is_imported_before_it_is_needed():
    heavy = ("lightning", "matplotlib", "sklearn", "onnx", "onnxscript", "onnxruntime")
    code = f"import sys, volution.cli; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
