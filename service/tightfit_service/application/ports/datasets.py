"""Datasets, packed and opened."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from tightfit_service.application.ports.models import ImportedModel
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import DatasetManifest, SplitName


class OpenDataset(Protocol):
    """A dataset ready to be read."""

    @property
    def manifest(self) -> DatasetManifest:
        """The manifest."""
        ...

    def samples(self, split: SplitName) -> Samples | None:
        """Return a split, or None where the dataset has none.

        SELECTION is held out of the training split (10 %, at most 2000, seeded by the dataset's
        digest, stratified by label) or, where there is no training split, is the first half of the
        shuffled evaluation split, EVALUATION then being the other half. TRAIN never contains it.
        """
        ...


class DatasetReader(Protocol):
    """Opens packed datasets."""

    def read_manifest(self, archive: Path) -> DatasetManifest:
        """Check the archive's structure and return its manifest without reading arrays.

        Raises:
            InvalidDatasetError: Not an archive of ours, unknown keys, bad values, missing arrays.
        """
        ...

    def open(self, archive: Path, *, model: ImportedModel | None) -> OpenDataset:
        """Open the dataset and check that it fits the model.

        Raises:
            InvalidDatasetError: Shapes or labels that do not fit, empty splits, NaN.
        """
        ...


class DataSynthesizer(Protocol):
    """Makes stand-in data for a network from the network alone."""

    def dataset(self, model: ImportedModel, *, cache_dir: Path, seed: int) -> OpenDataset:
        """Return synthetic training, calibration, selection and evaluation samples.

        Labels are the network's own answers, so accuracy on them is agreement with the original.
        Made once per network and kept in `cache_dir`.

        Raises:
            UnsupportedError: Inputs that cannot be synthesised (several, or no floats).
        """
        ...
