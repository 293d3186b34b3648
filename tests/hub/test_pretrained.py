"""pretrained=True: files come whole, are held against their hash, and errors say what to do."""

import hashlib
import itertools
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch

import volution
from volution._support.download import cached_file
from volution.models.weights import WEIGHTS, Weights

SMALL = {"widths": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
CONTENT = b"weights " * 1000
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """Answers on 127.0.0.1: files by path, with what else a test asks for."""
    state = SimpleNamespace(files={}, headers={}, redirects={}, cut=0, asked=[])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append(self.path)
            if self.path in state.redirects:
                self.send_response(302)
                target, headers = state.redirects[self.path]
                for name, value in {"Location": target, **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                return
            if self.path not in state.files:
                self.send_error(404)
                return
            body = state.files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) - state.cut])

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    yield state
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def record(path):
    return path.with_name(f"{path.name}.sha256")


class TestFiles:
    def test_it_is_downloaded_once(self, server, tmp_path):
        server.files["/net.pth"] = CONTENT
        path = tmp_path / "cache" / "net.pth"
        for _ in range(2):
            assert cached_file(f"{server.url}/net.pth", path).read_bytes() == CONTENT
        assert server.asked == ["/net.pth"]
        assert record(path).read_text() == f"{HASH}  net.pth\n"
        assert {p.name for p in path.parent.iterdir()} == {"net.pth", "net.pth.sha256"}

    def test_a_first_file_without_published_hash_is_said_to_be_trusted(
        self, server, tmp_path, capsys
    ):
        server.files["/net.pth"] = CONTENT
        cached_file(f"{server.url}/net.pth", tmp_path / "net.pth")
        told = "".join(capsys.readouterr().err.split())
        assert f"fromnowonitmustbe{HASH}" in told

    def test_a_known_hash_refuses_another_file(self, server, tmp_path):
        server.files["/net.pth"] = CONTENT
        known = hashlib.sha256(b"the real one").hexdigest()
        with pytest.raises(ValueError, match=f"was removed: its sha256 is {HASH}, not {known}"):
            cached_file(f"{server.url}/net.pth", tmp_path / "net.pth", sha256=known)
        assert list(tmp_path.iterdir()) == []
        assert cached_file(f"{server.url}/net.pth", tmp_path / "net.pth", sha256=HASH).is_file()

    def test_a_kept_file_is_checked_every_time(self, server, tmp_path):
        server.files["/net.pth"] = CONTENT
        path = cached_file(f"{server.url}/net.pth", tmp_path / "net.pth")
        path.write_bytes(CONTENT[:-1])
        with pytest.raises(ValueError, match=r"is not the expected file.*net\.pth\.sha256"):
            cached_file(f"{server.url}/net.pth", path)
        assert not path.exists()
        # What comes next has to be the first one again.
        server.files["/net.pth"] = b"something else"
        with pytest.raises(ValueError, match="is not the expected file"):
            cached_file(f"{server.url}/net.pth", path)
        server.files["/net.pth"] = CONTENT
        assert cached_file(f"{server.url}/net.pth", path).read_bytes() == CONTENT

    @pytest.mark.parametrize("right", [True, False])
    def test_the_hash_that_the_server_publishes_counts(self, server, tmp_path, right, capsys):
        server.files["/store"] = CONTENT
        published = HASH if right else hashlib.sha256(b"other").hexdigest()
        server.redirects["/net.pth"] = ("/store", {"X-Linked-Etag": f'"{published}"'})
        path = tmp_path / "net.pth"
        if right:
            assert cached_file(f"{server.url}/net.pth", path).is_file()
            assert "from now on" not in capsys.readouterr().err
        else:
            with pytest.raises(ValueError, match=f"not {published}"):
                cached_file(f"{server.url}/net.pth", path)
            assert list(tmp_path.iterdir()) == []

    def test_a_broken_connection_leaves_nothing(self, server, tmp_path):
        server.files["/net.pth"], server.cut = CONTENT, 100
        with pytest.raises(ConnectionError, match=r"broke after 7,900 of 8,000 bytes"):
            cached_file(f"{server.url}/net.pth", tmp_path / "net.pth")
        assert list(tmp_path.iterdir()) == []

    def test_a_web_page_is_no_file(self, server, tmp_path):
        server.files["/net.pth"] = b"<html>moved</html>"
        server.headers["Content-Type"] = "text/html; charset=utf-8"
        with pytest.raises(
            ConnectionError, match=r"gives a web page instead of a file.*; look at X"
        ):
            cached_file(f"{server.url}/net.pth", tmp_path / "net.pth", hint="look at X")
        assert list(tmp_path.iterdir()) == []

    def test_addresses_that_do_not_answer(self, server, tmp_path):
        with pytest.raises(ConnectionError, match="answers 404 Not Found; look at X"):
            cached_file(f"{server.url}/none", tmp_path / "net.pth", hint="look at X")
        with pytest.raises(ConnectionError, match=r"cannot download http://127\.0\.0\.1:9/net"):
            cached_file("http://127.0.0.1:9/net", tmp_path / "net.pth")
        with pytest.raises(ConnectionError, match="cannot download ftps"):
            cached_file("ftps://example.org/net", tmp_path / "net.pth")
        assert list(tmp_path.iterdir()) == []


class TestNetworks:
    @pytest.fixture
    def hosted(self, server, tmp_path, monkeypatch):
        """A narrow VAN whose weights lie on the server, wrapped as the authors wrap theirs."""
        net = timm.create_model("van_b0", **SMALL)
        torch.save({"state_dict": net.state_dict(), "epoch": 3}, tmp_path / "there.pth")
        server.files["/van.pth.tar"] = (tmp_path / "there.pth").read_bytes()
        digest = hashlib.sha256(server.files["/van.pth.tar"]).hexdigest()
        url = f"{server.url}/van.pth.tar"
        monkeypatch.setitem(WEIGHTS, "van_b0.in1k", Weights(url, "van_kept.pth.tar", digest))
        return net.eval(), {"pretrained_cfg_overlay": {"url": url}, "cache_dir": tmp_path / "c"}

    def test_pretrained_loads_them(self, hosted, server, tmp_path):
        theirs, given = hosted
        x = torch.randn(2, 3, 64, 64)
        for _ in range(2):
            net = timm.create_model("van_b0", pretrained=True, **SMALL, **given).eval()
            assert torch.equal(net(x), theirs(x))
        assert server.asked == ["/van.pth.tar"]
        assert (tmp_path / "c" / "van_kept.pth.tar").is_file()

    def test_timm_adapts_classes_and_channels(self, hosted):
        theirs, given = hosted
        net = timm.create_model(
            "van_b0", pretrained=True, num_classes=5, in_chans=1, **SMALL, **given
        )
        own, other = net.state_dict(), theirs.state_dict()
        same = [k for k in own if own[k].shape == other[k].shape]
        assert all(torch.equal(own[k], other[k]) for k in same)
        assert len(own) - len(same) == 3  # the first convolution and the classifier

    def test_a_wrong_file_stops_it(self, hosted, server, tmp_path):
        server.files["/van.pth.tar"] += b"!"
        with pytest.raises(ValueError, match="not the expected file"):
            timm.create_model("van_b0", pretrained=True, **SMALL, **hosted[1])
        assert list((tmp_path / "c").iterdir()) == []

    def test_a_file_of_ones_own_needs_no_network(self, hosted, server, tmp_path):
        overlay = {"file": str(tmp_path / "there.pth")}
        timm.create_model("van_b0", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)
        assert server.asked == []

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("rednet50", r"https://github\.com/d-li14/involution"),
            ("van_b4", r"https://github\.com/Visual-Attention-Network/VAN-Classification"),
            ("xvolution_resnet50", "no weights of xvolution_resnet50 were ever published"),
            ("hornet_large_gf", r"only as hornet_large_gf\.in22k; name it so"),
        ],
    )
    def test_where_there_is_nothing_to_fetch(self, name, message):
        with pytest.raises(FileNotFoundError, match=message):
            timm.create_model(name, pretrained=True, device="meta")


def test_the_table_is_of_networks_that_exist_and_timm_lists_them():
    ours = set(volution.models.list_models())
    assert {name.partition(".")[0] for name in WEIGHTS} <= ours
    listed = {name for name in timm.list_pretrained() if name.partition(".")[0] in ours}
    assert listed == set(WEIGHTS)
    assert all(weights.url.startswith("https://") for weights in WEIGHTS.values())
    assert len({weights.filename for weights in WEIGHTS.values()}) == len(WEIGHTS)


def test_the_documentation_names_where_weights_are():
    page = (Path(__file__).parents[2] / "docs" / "hub.md").read_text(encoding="utf-8")
    # Braces in a name stand for each of their words, and "to" for those in between.
    named = set()
    for text in re.findall(r"`([\w{},.]+\.in\d+k)`", page):
        parts = [part.split(",") for part in re.split(r"[{}]", text)]
        named |= {"".join(words) for words in itertools.product(*parts)}
    named |= {f"van_b{i}.in1k" for i in range(4)}
    assert named == set(WEIGHTS)
