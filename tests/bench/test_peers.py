"""The plain formulations compute what the authors' code does, in either memory format."""

import parity
import pytest
import torch
from torch import nn

from volution.bench import peers_hornet, peers_van

NETWORKS = {
    "van_b0": lambda: peers_van.PlainVAN(dims=(32, 64, 160, 256), depths=(3, 3, 5, 2)),
    "hornet_tiny_7x7": lambda: peers_hornet.PlainHorNet(),
    "hornet_tiny_gf": lambda: peers_hornet.PlainHorNet(gf=True),
}
LAYERS = {
    "van_lka": lambda: peers_van.PlainLKA(24),
    "van_lka_7x10": lambda: peers_van.PlainLKA(24),
    "hornet_gnconv_o3_7x7": lambda: peers_hornet.PlainGnConv(32, 3),
    "hornet_gnconv_o5_7x7": lambda: peers_hornet.PlainGnConv(32, 5),
}


@parity.needs_fixtures
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_the_authors(name):
    parity.compare(parity.load(name), LAYERS[name](), torch.float64)


@parity.needs_fixtures
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_the_authors(name, layout):
    fixture = parity.load(name)
    net: nn.Module = NETWORKS[name]().eval()
    net.load_state_dict(fixture.weights(), strict=True)
    net.to(memory_format=layout)
    (x,) = fixture.inputs(torch.float32)
    with torch.no_grad():
        logits = net(x.contiguous(memory_format=layout))
    fixture.check({"logits": logits}, torch.float32)
