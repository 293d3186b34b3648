"""push and pull: what goes out comes back to the bit, for timm as for us, and names no machine."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import safetensors
import small
import timm
import torch
import yaml

from volution import data, hub, tasks
from volution.cli import main

FILES = {"model.safetensors", "config.json", "README.md"}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A classifier that is not as it was initialised, and its file."""
    torch.manual_seed(3)
    classifier = small.colour_classifier()
    for value in classifier.model.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 1)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    tasks.save_classifier(path, classifier, epoch=2, val_top1=0.75)
    return classifier, path


@pytest.fixture
def run(tmp_path, network):
    """A run's folder, as training leaves it."""
    folder = tmp_path / "runs" / "colours"
    folder.mkdir(parents=True)
    shutil.copyfile(network[1], folder / "best.safetensors")
    settings = {"model": "rednet26", "lr": 0.01, "data": f"folder:{tmp_path}/secret/colours",
                "out": str(folder), "weights": f"{tmp_path}/secret/start.pth", "ema_decay": None,
                "teacher": "hf-hub:user/teacher"}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    made_with = {"versions": {"volution": "1.2", "triton": None}, "commit": "abc123"}
    (folder / "environment.json").write_text(json.dumps(made_with))
    rows = ["epoch,val_top1,val_loss,note", "1,0.5,1.2,x", "2,0.75,0.9,", "3,0.7,0.95,"]
    (folder / "metrics.csv").write_text("\n".join(rows))
    return folder


def same(one, two):
    assert (one.name, one.classes, one.input) == (two.name, two.classes, two.input)
    own, other = one.model.state_dict(), two.model.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[key], other[key]) for key in own)


class TestRoundTrip:
    def test_what_goes_out_comes_back(self, network, tmp_path):
        classifier, path = network
        tasks.push(path, tmp_path / "out")
        assert {p.name for p in (tmp_path / "out").iterdir()} == FILES
        tasks.pull(tmp_path / "out", tmp_path / "back")
        assert {p.name for p in (tmp_path / "back").iterdir()} == FILES
        for place in ("out", "back", "out/model.safetensors"):
            same(tasks.load_classifier(tmp_path / place), classifier)
        for name in FILES:
            pair = [(tmp_path / place / name).read_bytes() for place in ("out", "back")]
            assert pair[0] == pair[1]

    def test_timm_makes_the_same_network(self, network, tmp_path):
        classifier, path = network
        tasks.push(path, tmp_path / "out")
        net = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
        x = torch.randn(3, 3, 32, 32)
        with torch.inference_mode():
            assert torch.equal(net(x), classifier.model(x))
        config = timm.data.resolve_model_data_config(net)
        wanted = classifier.input
        assert config["input_size"] == [3, 32, 32] or config["input_size"] == (3, 32, 32)
        assert tuple(config["mean"]) == wanted.mean
        assert config["crop_pct"] == wanted.crop_pct
        assert tuple(net.pretrained_cfg["label_names"]) == classifier.classes
        five = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=5)
        assert five.num_classes == 5

    def test_grey_input_and_awkward_names_of_classes(self, tmp_path):
        names = ('"a"', "größe / ü", "c:\n")
        net = tasks.create_model("rednet26", num_classes=3, in_chans=1, model_args=small.WIDTHS)
        config = data.InputConfig(1, 48, (0.1307,), (0.3081,), "bilinear", 0.9, "squash")
        grey = tasks.Classifier(net.eval(), "rednet26", names, config, small.WIDTHS)
        tasks.save_classifier(tmp_path / "grey.safetensors", grey)
        tasks.push(tmp_path / "grey.safetensors", tmp_path / "out")
        same(tasks.load_classifier(tmp_path / "out"), grey)
        theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
        x = torch.randn(1, 1, 48, 48)
        assert torch.equal(theirs(x), grey.model(x))

    def test_other_peoples_networks_go_out_too(self, tmp_path):
        net = tasks.create_model("resnet10t")
        torch.save({"state_dict": net.state_dict()}, tmp_path / "theirs.pth")
        tasks.push(tmp_path / "theirs.pth", tmp_path / "out", model="resnet10t")
        again = tasks.load_classifier(tmp_path / "out")
        assert len(again.classes) == 1000
        assert torch.equal(again.model.conv1[0].weight, net.conv1[0].weight)

    def test_training_starts_from_a_folder_and_from_a_run(self, network, run, tmp_path):
        classifier, path = network
        tasks.push(path, tmp_path / "out")
        for place in (tmp_path / "out", run):
            net = small.colour_classifier(("a", "b")).model
            tasks.start_from(net, place)
            stem = net.state_dict()["stem.0.conv.weight"]
            assert torch.equal(stem, classifier.model.state_dict()["stem.0.conv.weight"])

    def test_what_timm_saves_can_be_read(self, network, tmp_path):
        net = timm.create_model("rednet26", num_classes=3, **small.WIDTHS)
        timm.models.save_for_hf(net, tmp_path / "theirs", safe_serialization=True)
        config = json.loads((tmp_path / "theirs" / "config.json").read_text())
        config["model_args"] = {**small.WIDTHS, "num_classes": 3}
        (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
        again = tasks.load_classifier(tmp_path / "theirs")
        assert again.classes == ("0", "1", "2")
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(again.model(x), net.eval()(x))


class TestCard:
    def test_a_runs_card_says_how_it_was_made(self, run, tmp_path):
        tasks.push(run, tmp_path / "out", license="apache-2.0")
        card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        header = yaml.safe_load(card.split("---")[1])
        assert header["license"] == "apache-2.0"
        assert header["library_name"] == "timm"
        for words in ("top-1 | 75.00%", "loss | 0.9000", "volution 1.2", "abc123", "lr: 0.01",
                      "folder:colours", "hf-hub:user/teacher", "weights: start.pth",
                      'timm.create_model("local-dir:out", pretrained=True)'):  # fmt: skip
            assert words in card
        config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
        assert config["pretrained_cfg"]["license"] == "apache-2.0"

    def test_nothing_names_a_folder_of_this_machine(self, run, tmp_path):
        tasks.push(run, tmp_path / "out")
        for name in FILES:
            content = (tmp_path / "out" / name).read_bytes()
            assert str(tmp_path).encode() not in content
            assert b"secret" not in content

    def test_no_licence_is_made_up(self, run, tmp_path):
        tasks.push(run, tmp_path / "out")
        card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        assert "license" not in yaml.safe_load(card.split("---")[1])
        assert "Licence of the weights: none was stated" in card

    def test_the_authors_weights_keep_theirs(self, tmp_path):
        net = tasks.create_model("van_b0", model_args={"widths": (8, 16, 24, 32)})
        torch.save(net.state_dict(), tmp_path / "van.pth")
        with pytest.raises(ValueError, match="does not fit van_b0"):
            tasks.push(tmp_path / "van.pth", tmp_path / "out", model="van_b0")
        narrow = tasks.Classifier(net, "van_b0", tuple("abc"), tasks.input_config(net))
        assert narrow.model.pretrained_cfg["license"] == "apache-2.0"


class TestRefusals:
    def failure(self, capsys, *words):
        assert main([str(word) for word in words]) == 2
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()
        return line.removeprefix("volution: error: ")

    def test_a_folder_with_files_stays_as_it_is(self, capsys, network, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")
        line = self.failure(capsys, "push", network[1], tmp_path / "out")
        assert "holds files already (notes.txt)" in line
        assert "--overwrite" in line
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["notes.txt"]
        assert main(["push", str(network[1]), str(tmp_path / "out"), "--overwrite"]) == 0
        assert {p.name for p in (tmp_path / "out").iterdir()} == {*FILES, "notes.txt"}
        assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
        capsys.readouterr()

    def test_a_failure_leaves_nothing_behind(self, network, tmp_path, monkeypatch):
        def full(*_, **__):
            raise OSError("no space left on device")

        monkeypatch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(OSError, match="no space left"):
            tasks.push(network[1], tmp_path / "deep" / "out")
        assert list((tmp_path / "deep").iterdir()) == []

    def test_sources_that_are_none(self, capsys, network, tmp_path):
        (tmp_path / "empty").mkdir()
        line = self.failure(capsys, "push", tmp_path / "empty", tmp_path / "out")
        assert "holds neither config.json (a pushed network) nor best.safetensors (a run)" in line
        assert "no checkpoint at" in self.failure(capsys, "push", tmp_path / "x", tmp_path / "out")
        assert "no folder at" in self.failure(capsys, "pull", tmp_path / "x", tmp_path / "out")
        line = self.failure(capsys, "pull", tmp_path / "empty", tmp_path / "out")
        assert "holds no config.json and no model.safetensors" in line
        line = self.failure(capsys, "pull", tmp_path / "empty", network[1])
        assert "is a file, a folder is wanted" in line
        line = self.failure(capsys, "pull", tmp_path / "empty", "hf-hub:user/net")
        assert "destination must be a folder" in line
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", r"config\.json is damaged"),
            ("[]", "does not describe a classifier"),
            ('{"num_classes": 3}', "does not describe a classifier"),
            ('{"architecture": "rednet26", "num_classes": "many"}', "does not describe"),
        ],
    )
    def test_damaged_descriptions(self, network, tmp_path, text, message):
        tasks.push(network[1], tmp_path / "out")
        (tmp_path / "out" / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            tasks.pull(tmp_path / "out", tmp_path / "back")
        assert not (tmp_path / "back").exists()

    def test_damaged_or_pickled_weights_are_not_taken_over(self, network, tmp_path):
        tasks.push(network[1], tmp_path / "out")
        weights = tmp_path / "out" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        with pytest.raises(ValueError, match="damaged"):
            tasks.pull(tmp_path / "out", tmp_path / "back")
        weights.rename(weights.with_name("pytorch_model.bin"))
        with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
            tasks.pull(tmp_path / "out", tmp_path / "back")
        assert not (tmp_path / "back").exists()


class TestHub:
    """The real client, against a local folder or a server that answers as the Hub would."""

    def test_there_and_back(self, network, tmp_path, monkeypatch):
        there = tmp_path / "there"
        made = []

        def create_repo(self, repo_id, *, private, exist_ok):
            made.append((repo_id, private, exist_ok))
            return f"https://hub/{repo_id}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, there / repo_id)

        def snapshot(repo_id, *, revision, allow_patterns):
            assert set(allow_patterns) == FILES
            assert revision in (None, "v1")
            return str(there / repo_id)

        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
        monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        assert main(["push", str(network[1]), "hf-hub:user/net", "--private"]) == 0
        assert made == [("user/net", True, True)]
        assert {p.name for p in (there / "user/net").iterdir()} == FILES
        card = (there / "user/net" / "README.md").read_text(encoding="utf-8")
        assert 'timm.create_model("hf-hub:user/net", pretrained=True)' in card
        assert main(["pull", "hf-hub:user/net@v1", str(tmp_path / "back")]) == 0
        same(tasks.load_classifier("hf-hub:user/net"), network[0])
        same(tasks.load_classifier(tmp_path / "back"), network[0])

    @pytest.mark.parametrize(
        "name", ["hf-hub:net", "hf-hub:a/b/c", "hf-hub:/net", "hf-hub:a/", "hf-hub:"]
    )
    def test_names_that_cannot_be(self, name):
        with pytest.raises(ValueError, match=f"is written hf-hub:USER/NAME, got {name}"):
            hub.fetch(name)
        with pytest.raises(ValueError, match="cannot be a repository's name"):
            hub.fetch("hf-hub:a b/c")

    def test_a_push_goes_to_no_revision(self, tmp_path):
        with pytest.raises(ValueError, match="leave @v1 out"):
            hub.send(tmp_path, "hf-hub:user/net@v1")

    @pytest.fixture
    def endpoint(self, tmp_path, monkeypatch):
        def use(url):
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
            monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))

        return use

    def test_without_network_it_says_so_in_one_line(self, capsys, network, endpoint, tmp_path):
        endpoint("http://127.0.0.1:9")
        for words in (
            ["push", network[1], "hf-hub:user/net"],
            ["pull", "hf-hub:user/net", tmp_path / "back"],
            ["eval", "hf-hub:user/net", "--data=digits"],
        ):
            assert main([str(word) for word in words]) == 2
            (line,) = capsys.readouterr().err.strip().splitlines()
            assert "hf-hub:user/net: the Hugging Face Hub cannot be reached" in line
        assert not (tmp_path / "back").exists()

    @pytest.mark.parametrize(
        ("status", "code", "fetching", "sending"),
        [
            (404, "RepoNotFound", "there is no such repository, or it is private", None),
            (401, "", "there is no such repository|refuses this user", "refuses this user|no such"),
            (403, "", r"refuses this user \(HTTP 403\)", r"refuses this user \(HTTP 403\)"),
            (418, "", "the Hub answers HTTP 418", "the Hub answers HTTP 418"),
        ],
    )
    def test_what_the_hub_refuses(self, network, endpoint, status, code, fetching, sending):
        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD = do_POST = answer

            def log_message(self, *_):
                pass

        httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            endpoint(f"http://127.0.0.1:{httpd.server_port}")
            with pytest.raises(OSError, match=fetching):
                hub.fetch("hf-hub:user/net")
            if sending:
                with pytest.raises(OSError, match=sending):
                    hub.send(network[1].parent, "hf-hub:user/net")
        finally:
            httpd.shutdown()
            httpd.server_close()
            thread.join()
