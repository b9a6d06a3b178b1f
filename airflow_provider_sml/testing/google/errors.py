"""The errors that a fake service answers with."""

from __future__ import annotations


class GoogleError(Exception):
    """A status other than OK.

    :param code: name of gRPC's status code, such as ``INVALID_ARGUMENT``.
    :param message: what the service says.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"{code}: {message}")


def invalid(message: str) -> GoogleError:
    """A request that does not fit."""
    return GoogleError("INVALID_ARGUMENT", message)
