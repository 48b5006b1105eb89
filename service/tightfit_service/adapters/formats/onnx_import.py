"""ONNX files in: checked, brought into working form, and proven equal to what came."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx
import onnx.inliner
import onnx.version_converter
from onnx import ModelProto, NodeProto, TensorProto

from tightfit_service.adapters.formats.layout import channels_first
from tightfit_service.adapters.formats.onnx_execution import (
    LIBRARY_ERRORS,
    open_session,
    run_original,
    run_working,
)
from tightfit_service.adapters.formats.onnx_folding import (
    fold_constants,
    fold_fixed_shapes,
    fold_shape_chains,
)
from tightfit_service.adapters.formats.onnx_proof import (
    compared,
    is_quantized,
    prove_batch,
    quantized_warning,
)
from tightfit_service.application.ports import ImportedModel, TensorSignature
from tightfit_service.application.samples import FloatArray
from tightfit_service.domain.errors import InvalidModelError, ParityError
from tightfit_service.graph import normal_form
from tightfit_service.graph.batch_expansion import drop_zero_states
from tightfit_service.graph.batch_propagation import spread_over_batch
from tightfit_service.graph.bias_folding import fold_biases_before_norms
from tightfit_service.graph.einsum_products import write_einsums_as_products
from tightfit_service.graph.hard_swishes import write_hard_swishes
from tightfit_service.graph.index_propagation import propagate
from tightfit_service.graph.layer_norms import write_layer_norms
from tightfit_service.graph.model_file import (
    DEFAULT_LIMITS,
    ModelLimits,
    check_bounds,
    copy_model,
    invalid,
    load_model,
    save_model,
    shown,
    subgraphs,
)
from tightfit_service.graph.pad_folding import fold_pads
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.graph.rectifier_motion import move_rectifiers
from tightfit_service.graph.structure import (
    declared_shape,
    default_opset,
    first_line,
    graph_inputs,
    graph_outputs,
    initializers,
    remove_dead_code,
    replace_nodes,
    sorted_model_nodes,
    tensor_shapes,
)

OLDEST_OPSET = 8
WORKING_OPSET = 17
"""The first with LayerNormalization; the newest that onnx's converter reaches from old ones safely."""
_WORKING_IR = 8
"""The IR version that opset 17 was published with; every runtime of the last years reads it."""

BATCH_WAS_FIXED = "the batch was fixed at 1 and has been made free"


class OnnxImporter:
    """Implements `application.ports.ModelImporter` for ONNX; stateless and thread-safe.

    Native libraries parse the file, so hostile ones belong into a process with limits. What they
    raise becomes InvalidModelError; a file that crashes them takes the process along.
    """

    def __init__(self, *, limits: ModelLimits = DEFAULT_LIMITS) -> None:
        self._limits = limits

    def import_model(self, data: bytes) -> ImportedModel:
        """Check and normalise a model of opset 8 or newer.

        Raises:
            InvalidModelError: Anything about the file that cannot be used, with the remedy.
        """
        try:
            return self._import(data)
        except LIBRARY_ERRORS as error:
            raise invalid(
                f"the model cannot be used: {first_line(error)}",
                remedy="check that onnx.checker accepts the file and onnxruntime runs it",
            ) from error

    def check_parity(self, original: bytes, graph: bytes, inputs: Sequence[FloatArray]) -> float:
        """Run both through onnxruntime on the same inputs and return the largest relative difference.

        `inputs` holds one batch per model input, in order. The original is run sample by sample,
        as its batch may be fixed; the graph on all at once. Differences are relative to the largest absolute value of each output.

        Raises:
            InvalidModelError: One of the two does not run.
            ParityError: They differ by more than float32 rounding explains; says where and how much.
        """
        try:
            source = load_model(original, limits=self._limits)
            working = load_model(graph, limits=self._limits)
            expected = run_original(source, inputs)
            found = run_working(working, inputs)
        except LIBRARY_ERRORS as error:
            raise invalid(
                f"the model does not run on these inputs: {first_line(error)}",
                remedy="check that onnxruntime runs the model on inputs of the declared shape",
            ) from error
        return compared(source, working, inputs, expected=expected, found=found)

    def _import(self, data: bytes) -> ImportedModel:
        source = load_model(data, limits=self._limits)
        model = copy_model(source)
        warnings: list[str] = []
        self._prepare(model)
        _check(model)
        self._check_activations(model)
        original_opset = default_opset(model)
        candidates = [model]
        if original_opset < WORKING_OPSET:
            converted = _converted(model)
            candidates = [model] if converted is None else [converted, model]
        candidate, was_fixed = self._in_working_form(source, candidates)
        working = self._simplified(source, candidate)
        if default_opset(working) < WORKING_OPSET:
            warnings.append(
                f"the graph stays at opset {original_opset}: it could not be converted to "
                f"{WORKING_OPSET}"
            )
        if was_fixed:
            warnings.append(BATCH_WAS_FIXED)
        return self._described(working, warnings)

    def _in_working_form(
        self, source: ModelProto, candidates: Sequence[ModelProto]
    ) -> tuple[ModelProto, bool]:
        """Return the first graph that is proven, and whether its batch was fixed.

        A fixed batch is first looked for where files mostly have it, which leaves their nodes as
        they are; if that does not do, it is followed through each node.
        """
        ways = [
            (candidate, node_by_node)
            for candidate in candidates
            for node_by_node in (
                (False, True) if normal_form.batch_is_fixed(candidate) else (False,)
            )
        ]
        for index, (candidate, node_by_node) in enumerate(ways):
            model = copy_model(candidate)
            try:
                was_fixed = self._normalise(model, node_by_node=node_by_node)
                prove_batch(source, model)
            except (ParityError, InvalidModelError, *LIBRARY_ERRORS):
                if index == len(ways) - 1:
                    raise
            else:
                return model, was_fixed
        raise AssertionError("there is at least one candidate")

    def _simplified(self, source: ModelProto, model: ModelProto) -> ModelProto:
        """Return the graph without the changes of layout that converters from channels last leave.

        It stays as it is where that takes no Transpose out, or cannot be proven.
        """
        try:
            result = channels_first(model, tensor_shapes(model))
            if _transpose_count(result) >= _transpose_count(model):
                return model
            remove_dead_code(result)
            normal_form.remove_identities(result)
            fold_biases_before_norms(result)
            fold_pads(result)
            move_rectifiers(result)
            del result.graph.value_info[:]
            _declare_shapes(result)
            prove_batch(source, result)
        except (ParityError, InvalidModelError, *LIBRARY_ERRORS):
            return model
        return result

    def _prepare(self, model: ModelProto) -> None:
        """Bring the structure into a form that onnx's own tools take, in place."""
        if model.ir_version > onnx.IR_VERSION:
            raise invalid(
                f"the file has IR version {model.ir_version}; {onnx.IR_VERSION} is the newest known",
                remedy="save the model with an older version of onnx",
            )
        if model.functions:
            inlined = onnx.inliner.inline_local_functions(model)
            model.CopyFrom(inlined)
            check_bounds(model, limits=self._limits)
        del model.training_info[:]
        normal_form.strip_notes(model)
        normal_form.use_standard_domain(model)
        opset = default_opset(model)
        newest = onnx.defs.onnx_opset_version()
        if not OLDEST_OPSET <= opset <= newest:
            raise invalid(
                f"the model uses opset {opset}; {OLDEST_OPSET} to {newest} are supported",
                remedy=f"export the model with opset {WORKING_OPSET}",
            )
        model.ir_version = max(model.ir_version, _WORKING_IR)
        model.graph.name = model.graph.name or "graph"
        normal_form.separate_inputs(model)
        normal_form.name_nodes(model)
        _require_ends(model)
        normal_form.check_inputs(model)
        _refuse_unknown_operators(model)
        normal_form.constants_to_initializers(model)
        replace_nodes(model.graph, sorted_model_nodes(model))
        normal_form.check_finite_weights(model)

    def _check_activations(self, model: ModelProto) -> None:
        """Refuse activations that would not fit or cannot be, before a runtime allocates them."""
        for name, shape in tensor_shapes(model).items():
            if any(size < 0 for size in shape):
                raise invalid(
                    f"tensor {shown(name)} has the impossible shape {shape}",
                    remedy="a window or slice is larger than its input: export the model again",
                )
            elements = math.prod(shape)
            if elements > self._limits.tensor_elements:
                raise invalid(
                    f"tensor {shown(name)} has {elements} elements for one sample",
                    remedy="send a smaller model",
                )

    def _normalise(self, model: ModelProto, *, node_by_node: bool) -> bool:
        """Bring a checked model into working form, in place; return whether its batch was fixed.

        `node_by_node` says that its fixed batch is followed through the nodes.
        """
        del model.graph.value_info[:]
        normal_form.constants_to_initializers(model)
        normal_form.name_nodes(model)
        normal_form.remove_identities(model)
        fold_constants(model, max_elements=self._limits.tensor_elements)
        normal_form.drop_allow_zero(model)
        normal_form.separate_vectors(model)
        drop_zero_states(model)
        if normal_form.batch_is_fixed(model):
            fold_fixed_shapes(model)
            drop_zero_states(model)
        if node_by_node:
            spread_over_batch(model, tensor_shapes(model))
            normal_form.remove_identities(model)
        was_fixed = normal_form.free_input_batch(model)
        if not node_by_node:
            normal_form.free_constant_batch(model, tensor_shapes(model))
        write_einsums_as_products(model)
        fold_pads(model)
        write_hard_swishes(model)
        write_layer_norms(model)
        fold_shape_chains(model)
        remove_dead_code(model)
        move_rectifiers(model)
        self._check_activations(model)
        _declare_shapes(model)
        return was_fixed

    def _described(self, model: ModelProto, warnings: list[str]) -> ImportedModel:
        graph = save_model(model)
        quantized = is_quantized(model)
        if quantized:
            warnings.append(quantized_warning())
        else:
            state = propagate(model)
            op_types = {node.name: node.op_type for node in state.nodes}
            warnings.extend(
                f"channels around node {shown(name)} ({op_types[name]}) stay: {reason}"
                for name, reason in state.unruled.items()
            )
        return ImportedModel(
            graph=graph,
            inputs=_signatures(model, graph_inputs(model)),
            outputs=_signatures(model, graph_outputs(model)),
            opset=default_opset(model),
            node_count=len(model.graph.node),
            parameter_count=sum(
                value.size
                for value in initializers(model).values()
                if value.dtype.kind != "i" or quantized
            ),
            macs=OnnxGraphInspector().profile(graph).macs,
            is_quantized=quantized,
            warnings=tuple(warnings),
        )


def _require_ends(model: ModelProto) -> None:
    if not graph_inputs(model):
        raise invalid("the model has no inputs", remedy="export the model with its inputs")
    if not model.graph.output:
        raise invalid("the model has no outputs", remedy="export the model with its outputs")
    if not model.graph.node:
        raise invalid("the model has no operators", remedy="export the whole network")


def _refuse_unknown_operators(model: ModelProto) -> None:
    opset = default_opset(model)
    pending: list[NodeProto] = list(model.graph.node)
    while pending:
        node = pending.pop()
        if not node.domain and not onnx.defs.has(node.op_type, opset, ""):
            raise invalid(
                f"node {shown(node.name)} is a {shown(node.op_type)}, which opset {opset} of ONNX "
                "does not have",
                remedy="export the model with standard operators",
            )
        for body in subgraphs(node):
            pending.extend(body.node)


def _check(model: ModelProto) -> None:
    """Hold the model against ONNX's own rules, and see that onnxruntime has all its operators."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except LIBRARY_ERRORS as error:
        raise invalid(
            f"onnx.checker refuses the model: {first_line(error)}",
            remedy="export the model again; onnx.checker.check_model(path, full_check=True) "
            "shows the fault",
        ) from error
    try:
        open_session(save_model(model))
    except LIBRARY_ERRORS as error:
        custom = next((node for node in model.graph.node if node.domain), None)
        if custom is not None and custom.op_type in str(error):
            raise invalid(
                f"node {shown(custom.name)} is a {shown(custom.op_type)} of domain "
                f"{shown(custom.domain)}, which onnxruntime does not know",
                remedy="export the model with standard operators",
            ) from error
        raise invalid(
            f"onnxruntime cannot load the model: {first_line(error)}",
            remedy="export the model again and load it in onnxruntime",
        ) from error


def _transpose_count(model: ModelProto) -> int:
    return sum(node.op_type == "Transpose" for node in model.graph.node)


def _converted(model: ModelProto) -> ModelProto | None:
    """Return the model at the working opset, or None where onnx has no way there."""
    try:
        converted = onnx.version_converter.convert_version(model, WORKING_OPSET)
        converted.ir_version = _WORKING_IR
        onnx.checker.check_model(converted, full_check=True)
    except LIBRARY_ERRORS:
        return None
    return converted


def _declare_shapes(model: ModelProto) -> None:
    """Write inferred shapes into the model; those of the outputs follow from running it."""
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.graph.value_info)


def _signatures(model: ModelProto, names: Sequence[str]) -> tuple[TensorSignature, ...]:
    values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    types = {number: text.lower() for text, number in TensorProto.DataType.items()}
    found = []
    for name in names:
        shape = declared_shape(values[name]) or ()
        found.append(
            TensorSignature(
                name=name,
                shape=tuple(size if isinstance(size, int) else -1 for size in shape),
                dtype=types.get(values[name].type.tensor_type.elem_type, "undefined").replace(
                    "float", "float32"
                )
                if values[name].type.tensor_type.elem_type == TensorProto.FLOAT
                else types.get(values[name].type.tensor_type.elem_type, "undefined"),
            )
        )
    return tuple(found)
