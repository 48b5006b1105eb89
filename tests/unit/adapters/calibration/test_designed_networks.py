"""The designed set: valid, varied, bounded, and the same on every machine."""

from __future__ import annotations

import numpy as np

from tightfit_service.adapters.calibration.designed_networks import MOST_MACS, DesignedNetworks
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.graph.profile import OnnxGraphInspector

KINDS = 17


def test_every_kind_is_a_network_that_can_be_imported_and_costs_little() -> None:
    importer, inspector, networks = OnnxImporter(), OnnxGraphInspector(), DesignedNetworks()
    labels = set()
    for index in range(2 * KINDS):
        designed = networks.graph(index)
        labels.add(designed.label)
        model = importer.import_model(designed.graph)
        profile = inspector.profile(model.graph)
        assert 0 <= profile.macs <= 1.2 * MOST_MACS
        assert profile.operators
        inputs = np.zeros((1, *model.inputs[0].shape[1:]), dtype=np.float32)
        assert importer.check_parity(designed.graph, model.graph, [inputs]) < 1e-3
    assert len(labels) == KINDS


def test_an_index_always_means_the_same_network() -> None:
    for index in (0, 5, 40):
        assert DesignedNetworks().graph(index) == DesignedNetworks().graph(index)


def test_networks_of_a_kind_differ() -> None:
    networks = DesignedNetworks()
    graphs = {networks.graph(KINDS * number).graph for number in range(6)}
    assert len(graphs) == 6
