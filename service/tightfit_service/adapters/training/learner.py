"""A module in training, with everything that leads from stored inputs to what it is held against."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from tightfit_service.adapters.training.fake_quantization import FakeQuantization
from tightfit_service.adapters.training.module import GraphModule
from tightfit_service.adapters.training.number_format import TrainingFormat
from tightfit_service.adapters.training.targets import DistilledTensor
from tightfit_service.application.samples import FloatArray

State = dict[str, torch.Tensor]


@dataclass(kw_only=True)
class Learner:
    """Runs a module on batches of inputs.

    Attributes:
        targets: Tensors that are held against the teachers' of the same place.
        input_scale: Inputs are divided by it before they reach the module.
        quantizer: Rounds as the exported file does; None computes in floats.
    """

    module: GraphModule
    targets: tuple[DistilledTensor, ...]
    input_scale: float = 1.0
    form: TrainingFormat = field(default_factory=TrainingFormat)
    quantizer: FakeQuantization | None = None

    @property
    def holds_statistics(self) -> bool:
        """Whether BatchNorms use their running statistics in training too; see `FakeQuantization`."""
        return self.quantizer is not None and self.quantizer.holds_statistics

    def outputs(
        self, inputs: FloatArray, *, training: bool = False, also: Sequence[str] = ()
    ) -> list[torch.Tensor]:
        """Return the distilled tensors of a batch, then those named by `also`."""
        self.module.train(training)
        scaled = self.form.inputs(inputs / np.float32(self.input_scale))
        names = [*(target.name for target in self.targets), *also]
        quantizer = self.quantizer
        if quantizer is None:
            with self.form.context():
                return self.module.run_to(names, scaled)
        quantizer.begin()
        values = self.module.run_to(names, scaled, before_node=quantizer.before_node)
        return [
            quantizer.activation(name, value) for name, value in zip(names, values, strict=True)
        ]

    def sharing(self) -> Learner:
        """Return a learner of the same parameters whose BatchNorms have running statistics of their own."""
        shared: dict[int, object] = {id(p): p for p in self.module.parameters()}
        return replace(self, module=copy.deepcopy(self.module, shared))

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return what training changes."""
        return list(self.module.parameters())

    def state(self) -> State:
        """Return a copy of all that training changes."""
        return copy.deepcopy(dict(self._whole().state_dict()))

    def restore(self, state: State) -> None:
        """Go back to a copy."""
        self._whole().load_state_dict(state)
        if self.quantizer is not None:
            self.quantizer.refresh()

    def _whole(self) -> torch.nn.Module:
        if self.quantizer is None:
            return self.module
        return torch.nn.ModuleList([self.module, self.quantizer])
