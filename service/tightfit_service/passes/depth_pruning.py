"""Depth pruning: whole residual blocks left out, their shortcuts staying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from tightfit_service.application.ports import PassContext
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import Variant
from tightfit_service.graph.model_file import load_model, save_model, shown
from tightfit_service.graph.rebuilding import rebuilt
from tightfit_service.graph.residual_blocks import ResidualBlock, branch_shares, residual_blocks
from tightfit_service.graph.structure import graph_inputs, replace_nodes, sorted_model_nodes
from tightfit_service.passes.observed_inputs import observed

_MOST_VARIANTS = 6
_NAMED_BLOCKS = 2
"""Labels name up to this many blocks and count more."""


class DepthPruningPass:
    """Implements `application.ports.NetworkPass`; stateless and thread-safe.

    Parameters: `{"blocks": [block_id, ...]}`, the ids being the names of the nodes that add branch and
    shortcut. What read the sum reads the shortcut then; an activation behind the sum stays. Blocks
    that change the shape (strided ones, projections) have no identity to fall back on and stay.

    Residual networks lose little when single blocks are left out (Veit et al., "Residual networks
    behave like ensembles of relatively shallow networks", NeurIPS 2016), and fewer layers save what
    fewer channels do not: the fixed cost of each layer.
    """

    name = "depth_pruning"

    def applies_to(self, graph: bytes, target: HardwareSpec) -> tuple[str, ...]:
        """Return why the pass cannot help; empty when it can. Fewer layers help on every target."""
        del target
        if residual_blocks(load_model(graph)):
            return ()
        return ("no residual block keeps its shape on the shortcut, so no layers can be left out",)

    def check(self, graph: bytes, parameters: Mapping[str, Any]) -> None:
        """Check parameters against a graph without applying them.

        Raises:
            InvalidRequestError: An unknown key or block; `field` is `parameters.blocks`.
        """
        _chosen(load_model(graph), parameters)

    def apply(self, graph: bytes, parameters: Mapping[str, Any], context: PassContext) -> bytes:
        """Return the graph without the given blocks; names of nodes that stay do not change.

        Raises:
            InvalidModelError: Not a working graph.
            InvalidRequestError: As `check`.
            WorkFailedError: The result is not a valid graph, which would be an error of this pass.
        """
        del context
        model = load_model(graph)
        blocks = _chosen(model, parameters)
        nodes = sorted_model_nodes(model)
        replace_nodes(model.graph, nodes)
        instead: dict[str, str] = {}
        for block in blocks:
            # blocks come in topological order, so a shortcut that is replaced itself is known
            instead[block.output] = instead.get(block.shortcut, block.shortcut)
        gone = {block.block_id for block in blocks}
        kept = [node for node in model.graph.node if node.name not in gone]
        for node in kept:
            for index, name in enumerate(node.input):
                node.input[index] = instead.get(name, name)
        replace_nodes(model.graph, kept)
        return save_model(rebuilt(model, technique=self.name))

    def variants(
        self, graph: bytes, target: HardwareSpec, *, context: PassContext | None = None
    ) -> Sequence[Variant]:
        """Return up to six variants, from the one block that changes least left out to all of them.

        Blocks go in the order of how little they change. With calibration samples that is one minus
        the cosine between shortcut and sum, averaged over samples ("block influence", Men et al.,
        "ShortGPT", 2024); without, the share that the branch is likely to have in the sum, from
        weights alone, which says less.
        """
        del target
        model = load_model(graph)
        blocks = residual_blocks(model)
        if not blocks:
            return ()
        samples = None if context is None else context.calibration
        if samples is not None and len(samples) and len(graph_inputs(model)) == 1:
            changes = _influences(model, blocks, samples)
        else:
            changes = branch_shares(model, blocks)
        order = sorted((block.block_id for block in blocks), key=lambda name: changes[name])
        count = min(len(order), _MOST_VARIANTS)
        lengths = sorted(set(np.linspace(1, len(order), count).round().astype(int).tolist()))
        return tuple(
            Variant(
                pass_name=self.name,
                label=_label(order[:length]),
                parameters={"blocks": sorted(order[:length])},
            )
            for length in lengths
        )


def _chosen(model: ModelProto, parameters: Mapping[str, Any]) -> list[ResidualBlock]:
    """Return the blocks that parameters name, in topological order."""
    for key in parameters:
        if key != "blocks":
            raise InvalidRequestError(
                f"unknown key {key!r}",
                field=f"parameters.{key}",
                remedy="the only key is `blocks`",
            )
    wanted = parameters.get("blocks", [])
    if isinstance(wanted, str) or not isinstance(wanted, Sequence):
        raise InvalidRequestError(
            "blocks is no list", field="parameters.blocks", remedy="list block ids"
        )
    blocks = {block.block_id: block for block in residual_blocks(model)}
    for name in wanted:
        if name not in blocks:
            known = ", ".join(shown(item) for item in list(blocks)[:12])
            raise InvalidRequestError(
                f"the graph has no block {shown(str(name))} that could be left out",
                field="parameters.blocks",
                remedy=f"choose from {known}" if known else "leave depth_pruning out",
            )
    return [block for name, block in blocks.items() if name in wanted]


def _label(names: Sequence[str]) -> str:
    if len(names) <= _NAMED_BLOCKS:
        return "without " + " and ".join(names)
    return f"without {len(names)} blocks"


def _influences(
    model: ModelProto, blocks: Sequence[ResidualBlock], samples: Samples
) -> dict[str, float]:
    """Return, per block, one minus the mean cosine between what goes in and what comes out."""
    tensors = [name for block in blocks for name in (block.shortcut, block.output)]
    cosines: dict[str, list[float]] = {block.block_id: [] for block in blocks}
    for values in observed(model, tensors, samples):
        for block in blocks:
            before, after = (
                values[name].reshape(len(values[name]), -1).astype(np.float64)
                for name in (block.shortcut, block.output)
            )
            norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
            products = (before * after).sum(axis=1)
            cosines[block.block_id].extend((products / np.maximum(norms, 1e-30)).tolist())
    return {name: 1 - float(np.mean(found)) for name, found in cosines.items()}
