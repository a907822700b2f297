"""Every error that a user may see, each with an HTTP status and a text that says what to do next."""


class LlmsvcError(Exception):
    """Root of the family. ``str(error)`` is shown to the user as it stands; ``code`` is for programs."""

    status = 500
    code: str | None = None
    retry_seconds = 0
    """When to come again; 0 where that does not help."""


class BadRequest(LlmsvcError):
    status = 400


class LoginMissing(LlmsvcError):
    status = 401


class Forbidden(LlmsvcError):
    status = 403


class TooLarge(LlmsvcError):
    status = 413


class TooLong(BadRequest):
    """More than the model's window holds."""

    code = "context_length_exceeded"


class NotFound(LlmsvcError):
    status = 404


class UnknownModel(NotFound):
    code = "model_not_found"


class Conflict(LlmsvcError):
    status = 409


class Busy(LlmsvcError):
    """The bounded queue is full: try again shortly."""

    status = 429
    retry_seconds = 2


class TooMany(LlmsvcError):
    """Too many tries: not before so many seconds."""

    status = 429

    def __init__(self, text: str, seconds: int) -> None:
        super().__init__(text)
        self.retry_seconds = seconds


class Unavailable(LlmsvcError):
    """A model that cannot answer: not loaded, failed, or being unloaded."""

    status = 503
    retry_seconds = 5


class StorageError(LlmsvcError):
    """The data directory could not be read or written."""

    status = 507
