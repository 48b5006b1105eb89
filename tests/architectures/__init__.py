"""Networks as people build and export them: small, seeded, of every family that small devices run.

`ARCHITECTURES` names them; `Architecture.export()` gives the ONNX file. Builders are torch modules,
so that the files hold what exporters write and not what we would write.
"""

from __future__ import annotations

from architectures.registry import ARCHITECTURES, FAST, Architecture

__all__ = ["ARCHITECTURES", "FAST", "Architecture"]
