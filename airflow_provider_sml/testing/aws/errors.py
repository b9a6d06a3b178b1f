"""The errors that a fake service answers with."""

from __future__ import annotations


class AwsError(Exception):
    """An answer other than success.

    :param code: AWS's code, such as ``ValidationException``.
    :param message: what AWS says.
    :param status: HTTP status.
    :param more: further members of the error.
    """

    def __init__(self, code: str, message: str, status: int = 400, **more: object) -> None:
        self.code, self.message, self.status, self.more = code, message, status, more
        super().__init__(f"{code}: {message}")


def invalid(message: str) -> AwsError:
    """A request that does not fit."""
    return AwsError("ValidationException", message)
