"""The plain formulations compute what the authors' code does, in either memory format."""

import parity
import pytest
import torch
from torch import nn

from volution.bench import peers_hornet, peers_transxnet, peers_van

NETWORKS = {
    "van_b0": lambda: peers_van.PlainVAN(dims=(32, 64, 160, 256), depths=(3, 3, 5, 2)),
    "hornet_tiny_7x7": lambda: peers_hornet.PlainHorNet(),
    "hornet_tiny_gf": lambda: peers_hornet.PlainHorNet(gf=True),
    "transxnet_t": lambda: peers_transxnet.PlainTransXNet(),
}
LAYERS = {
    "van_lka": lambda: peers_van.PlainLKA(24),
    "van_lka_7x10": lambda: peers_van.PlainLKA(24),
    "hornet_gnconv_o3_7x7": lambda: peers_hornet.PlainGnConv(32, 3),
    "hornet_gnconv_o5_7x7": lambda: peers_hornet.PlainGnConv(32, 5),
    "transxnet_idconv_g2_k3_r8": lambda: peers_transxnet.PlainIDConv(24, 3, ratio=8),
    "transxnet_idconv_g4_k7": lambda: peers_transxnet.PlainIDConv(24, groups=4),
    "transxnet_idconv_g2_k7_nobias": lambda: peers_transxnet.PlainIDConv(24, bias=False),
    "transxnet_osra_sr1": lambda: peers_transxnet.PlainOSRA(32, 2),
    "transxnet_osra_sr4_pos": lambda: peers_transxnet.PlainOSRA(32, 2, 4),
    "transxnet_osra_sr4_pos_resized": lambda: peers_transxnet.PlainOSRA(32, 2, 4),
    "transxnet_dmixer_dim144": lambda: peers_transxnet.PlainDMixer(144, 7, 4, 8, 1),
    "transxnet_msffn": lambda: peers_transxnet.PlainMSFFN(24, 96),
    "transxnet_block": lambda: peers_transxnet.PlainBlock(32, 2, 2),
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
