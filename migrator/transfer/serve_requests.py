# SPDX-License-Identifier: GPL-2.0-or-later
"""The answering side: requests are handled one by one until the connection ends."""

from __future__ import annotations

from collections.abc import Mapping

from migrator.base import log
from migrator.errors import MigratorError
from migrator.errors.connection import ConnectionLost, ProtocolError
from migrator.errors.convert import as_ours
from migrator.transfer.frames import Kind
from migrator.transfer.rpc import Connection, Fields, Handler, Takeover
from migrator.transfer.wire_codec import encoded


def serve(connection: Connection, handlers: Mapping[str, Handler]) -> None:
    """Answer requests until the other side ends the connection.

    A MigratorError from a handler becomes an error reply, any other exception what `as_ours` makes of it. Raises
    ConnectionLost and ProtocolError once the connection is unusable.
    """
    while (frame := connection.receive_or_end()) is not None:
        if frame.kind is not Kind.REQUEST:
            raise ProtocolError(reason=f"it sent {frame.kind.name} where a request was expected")
        data = frame.json()
        request, op, fields = data.get("id"), data.get("op"), data.get("fields")
        if not isinstance(request, int) or not isinstance(op, str) or not isinstance(fields, dict):
            raise ProtocolError(reason="its request lacks id, op or fields")
        try:
            handler = handlers.get(op)
            if handler is None:
                raise ProtocolError(reason=f"it asks for {op[:100]!a}, which is unknown here")  # noqa: TRY301
            result = handler(fields)
            if isinstance(result, Takeover):
                connection.send_json(Kind.REPLY, {"id": request, "fields": encoded(result.reply)})
                result = _in_takeover(result, connection)
            connection.send_json(Kind.REPLY, {"id": request, "fields": encoded(result)})
        except _Fatal as fatal:
            raise fatal.error from None
        except MigratorError as error:
            connection.send_json(Kind.ERROR, {"id": request, "error": error.to_json()})
        except Exception as error:
            log.debug(_traceback(error))
            connection.send_json(Kind.ERROR, {"id": request, "error": as_ours(error, op[:100]).to_json()})


class _Fatal(Exception):
    """An error after which the connection is of no use, on its way past the code that would answer with it."""

    def __init__(self, error: MigratorError) -> None:
        self.error = error


def _in_takeover(takeover: Takeover, connection: Connection) -> Fields:
    try:
        return takeover.run(connection)
    except (ConnectionLost, ProtocolError) as error:
        raise _Fatal(error) from error


def _traceback(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))
