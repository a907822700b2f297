"""Every error that a user may see, each with an HTTP status and a text that says what to do next."""


class LlmsvcError(Exception):
    """Root of the family. ``str(error)`` is shown to the user as it stands."""

    status = 500


class BadRequest(LlmsvcError):
    status = 400


class NotFound(LlmsvcError):
    status = 404


class Conflict(LlmsvcError):
    status = 409


class Busy(LlmsvcError):
    """The bounded queue is full: try again shortly."""

    status = 429


class Unavailable(LlmsvcError):
    """A model that cannot answer: not loaded, failed, or being unloaded."""

    status = 503


class StorageError(LlmsvcError):
    """The data directory could not be read or written."""

    status = 507
