"""Plain data becomes a Struct, and anything else is a mistake of the server."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from tightfit_service.api.codec.plain_data import struct_to_proto


def test_keeps_every_kind_of_plain_data() -> None:
    data: dict[str, Any] = {
        "a": None,
        "b": True,
        "c": 1.5,
        "d": "x",
        "e": [1, [2]],
        "f": {"g": [{}]},
        "h": (1, 2),
    }

    assert MessageToDict(struct_to_proto(data)) == {**data, "h": [1, 2]}


def test_refuses_what_is_not_plain() -> None:
    with pytest.raises(TypeError, match="set is not plain data"):
        struct_to_proto({"a": {1, 2}})
