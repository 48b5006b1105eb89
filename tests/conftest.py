"""How hypothesis runs here: no test depends on the machine's speed, and CI is repeatable."""

from __future__ import annotations

import os

from hypothesis import settings

# A slow machine is no failure. In CI the examples are the same each time: what chance finds on a
# developer's machine becomes a test of its own, and an unrelated change is not held up by it.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("project")
