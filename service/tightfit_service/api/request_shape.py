"""Whether a request has a decent form, before anything looks at what it says.

Bytes that are no message of the method's type would otherwise end as INTERNAL inside gRPC, and structures
of great depth or length cost more to walk than to send.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tightfit_service.domain.errors import InvalidRequestError


@dataclass(frozen=True)
class Malformed:
    """Stands for a request that could not be parsed, until there is a context to refuse it in."""

    reason: str


def parsed_by(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Return the deserializer, which gives `Malformed` for bytes that are no such message."""
    if deserialize is None:
        return None

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return Malformed(str(error) or "cannot be decoded")

    return parse


@dataclass(frozen=True, kw_only=True)
class RequestShape:
    """How large and how deep a request may be, 0 for no limit.

    Attributes:
        max_depth: Messages within messages. One level of JSON in a google.protobuf.Struct is two or three.
        max_items: Messages and list entries in all.
    """

    max_depth: int = 0
    max_items: int = 0

    def checked(self, message: Message | Malformed) -> Message:
        """Return the message.

        Raises:
            InvalidRequestError: It could not be parsed, or is deeper or longer than allowed.
        """
        if isinstance(message, Malformed):
            raise InvalidRequestError(
                "the request is not a message of this method",
                field="request",
                remedy="use the stubs of tightfit.v1 of this version",
            )
        if self.max_depth or self.max_items:
            self._check(message)
        return message

    def _check(self, message: Message) -> None:
        pending: list[tuple[Message, int, str]] = [(message, 1, "")]
        items = 0
        while pending:
            current, depth, path = pending.pop()
            if self.max_depth and depth > self.max_depth:
                raise _refused(
                    path, f"is nested more than {self.max_depth} deep", "max_request_depth"
                )
            for field, value in current.ListFields():
                name = f"{path}.{field.name}" if path and depth <= 3 else path or field.name
                if field.is_repeated:
                    items += len(value)
                    if self.max_items and items > self.max_items:
                        raise _refused(
                            name, f"makes more than {self.max_items} items", "max_request_items"
                        )
                if field.type == FieldDescriptor.TYPE_MESSAGE:
                    pending.extend((inner, depth + 1, name) for inner in _messages(field, value))


def _messages(field: FieldDescriptor, value: Any) -> Iterable[Message]:
    if not field.is_repeated:
        return (value,)
    kind = field.message_type
    if kind is None or not kind.GetOptions().map_entry:
        return tuple(value)
    is_of_messages = kind.fields_by_name["value"].message_type is not None
    return tuple(value.values()) if is_of_messages else ()


def _refused(path: str, what: str, limit: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{path or 'the request'} {what}",
        field=path or "request",
        remedy=f"send less at a time; the server's limit is {limit}",
    )
