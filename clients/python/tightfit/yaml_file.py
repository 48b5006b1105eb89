"""YAML that people write, read without surprises: keys twice, aliases and deep nesting are refused."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from tightfit.errors import InvalidInputError

MAX_YAML_BYTES = 4 << 20
MAX_YAML_DEPTH = 50
"""Of what people write by hand; a parser recurses into it."""


class _PlainLoader(yaml.SafeLoader):
    """Safe loader of what people write.

    It refuses a key given twice, of which plain loaders keep the last without a word; aliases, by which a
    few lines become gigabytes; and structures deeper than anybody means.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node and all that is in it."""
        problem = ""
        if self.check_event(yaml.AliasEvent):
            problem = "aliases are not read: write it out"
        elif self._depth >= MAX_YAML_DEPTH:
            problem = f"nested more than {MAX_YAML_DEPTH} deep"
        if problem:
            event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Build a value; numbers and dates that Python has no room for are told by their line."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, str(error), node.start_mark
            ) from error

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002  # the signature is PyYAML's
    ) -> dict[Hashable, Any]:
        """Build a mapping whose scalar keys are unique."""
        seen: set[str] = set()
        scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in scalars:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def load_yaml_mapping(path: Path, *, what: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Args:
        path: The file.
        what: What the file should be, for messages: "a dataset description".

    Raises:
        InvalidInputError: Not readable, not YAML, or no mapping at its top.
    """
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise InvalidInputError(
                f"{path} has more than {MAX_YAML_BYTES >> 20} MiB",
                field=str(path),
                remedy=f"give the path of {what}",
            )
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)  # noqa: S506  # nosec B506  # a SafeLoader
    except FileNotFoundError as error:
        raise InvalidInputError(
            f"there is no file {path}", field=str(path), remedy="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{path} is no text", field=str(path), remedy=f"give the path of {what}"
        ) from error
    except OSError as error:
        raise InvalidInputError(
            f"cannot read {path}: {error.strerror or error}",
            field=str(path),
            remedy=f"give the path of {what}",
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise InvalidInputError(
            f"{path.name} is not valid YAML: {problem}", field=where, remedy="mend that line"
        ) from error
    if not isinstance(content, dict):
        raise InvalidInputError(
            f"{path.name} does not hold keys and values",
            field=str(path),
            remedy=f"write {what} as `key: value` lines",
        )
    return content
