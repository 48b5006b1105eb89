"""The Helm chart, rendered: what its tests look at."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import helm_python
import yaml

CHART = Path(__file__).parents[1] / "helm" / "tightfit"
SCENARIOS = sorted(
    path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml")
)
KUBERNETES_VERSIONS = ("1.27", "1.31", "1.37")
SECRET = "from-secret"
"""Stands in for what comes from a Secret."""

Manifest = dict[str, Any]
T = TypeVar("T")


def apart(function: Callable[..., T], *arguments: object) -> T:
    """Return what a function of this module returns in a process that does nothing else.

    Helm is a library in Go with a runtime of its own. In a process of tests, which holds a dozen other
    native libraries, it was seen to crash once in thousands of calls; here that costs a second try.
    """
    try:
        return _process().submit(function, *arguments).result()
    except BrokenProcessPool:
        _process.cache_clear()
        return _process().submit(function, *arguments).result()


@functools.cache
def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def templates(values: Mapping[str, Any], release: str = "demo") -> dict[str, str]:
    """Return what Helm makes of the chart, by the names of its templates."""
    chart = helm_python.Chart.load(str(CHART))
    return dict(chart.render(dict(values), name=release, namespace="models"))


def lint() -> dict[str, Any]:
    """Return what `helm lint --strict` says of the chart."""
    return dict(helm_python.lint(str(CHART), strict=True, with_subcharts=True))


def scenario(name: str) -> dict[str, Any]:
    """Return the values of ci/NAME-values.yaml."""
    loaded = yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def merged(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `other` laid over it, as Helm does."""
    result = dict(base)
    for key, value in other.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]  # both are
    return result


class Rendered:
    """The manifests of one set of values."""

    def __init__(self, values: Mapping[str, Any], *, base: str | None = "replicated") -> None:
        texts = apart(templates, merged(scenario(base) if base else {}, values))
        (self.notes,) = (text for name, text in texts.items() if name.endswith("NOTES.txt"))
        self.manifests: list[Manifest] = [
            document
            for name, text in texts.items()
            if name.endswith(".yaml")
            for document in yaml.safe_load_all(text)
            if document
        ]

    def all(self, kind: str) -> list[Manifest]:
        """Return the manifests of a kind."""
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Manifest:
        """Return the manifest of a kind, and of a name where there may be several."""
        (found,) = [
            manifest
            for manifest in self.all(kind)
            if name is None or manifest["metadata"]["name"] == name
        ]
        return found

    def kinds(self) -> set[str]:
        """Return which kinds there are."""
        return {manifest["kind"] for manifest in self.manifests}

    @property
    def server(self) -> Manifest:
        """Return the Deployment or StatefulSet of the servers."""
        (found,) = self.all("Deployment") + self.all("StatefulSet")
        return found

    @property
    def pod(self) -> Manifest:
        """Return the spec of the servers' pods."""
        spec = self.server["spec"]["template"]["spec"]
        assert isinstance(spec, dict)
        return spec

    @property
    def container(self) -> Manifest:
        """Return the container of the servers' pods."""
        (container,) = self.pod["containers"]
        assert isinstance(container, dict)
        return container

    def environment(self) -> dict[str, str]:
        """Return the environment of the servers, with SECRET for what comes from Secrets."""
        environment = dict(self.one("ConfigMap", self.server["metadata"]["name"])["data"])
        for variable in self.container.get("env", []):
            environment[variable["name"]] = variable.get("value", SECRET)
        return environment

    def pods(self) -> Iterator[tuple[str, Manifest]]:
        """Yield (kind, spec) of every pod that comes out of the chart."""
        for manifest in self.manifests:
            kind, spec = manifest["kind"], manifest.get("spec", {})
            if kind == "Pod":
                yield kind, spec
            elif kind == "RayCluster":
                for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
                    yield kind, group["template"]["spec"]
            elif "template" in spec:
                yield kind, spec["template"]["spec"]


@functools.cache
def rendered(name: str) -> Rendered:
    """Return ci/NAME-values.yaml rendered; it is rendered once for all tests."""
    return Rendered(scenario(name), base=None)
