"""Which contract these stubs were made from."""

from __future__ import annotations

import hashlib
import pkgutil
from functools import cache
from importlib import import_module

from tightfit import v1


@cache
def contract_digest() -> str:
    """Return the lower-case hex sha-256 of all messages and services of `tightfit.v1`.

    Client and server that print the same one speak the same contract.
    """
    digest = hashlib.sha256()
    names = sorted(module.name for module in pkgutil.iter_modules(v1.__path__))
    for name in names:
        if name.endswith("_pb2"):
            module = import_module(f"{v1.__name__}.{name}")
            digest.update(module.DESCRIPTOR.serialized_pb)
    return digest.hexdigest()
