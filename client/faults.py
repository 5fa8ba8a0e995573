"""What goes wrong at a site, reduced to the one code that may leave it."""

from __future__ import annotations

from strategies.wire import CODES

CODE_OF_TYPE = {
    "client.formats.image.FormatError": "bad-data",
    "client.sam_checkpoint.SamUnavailable": "sam-unavailable",
    "configs.faults.ConfigError": "bad-request",
    "strategies.aggregate.UpdateError": "not-finite",
    "configs.files.StorageFault": "storage",
    "configs.files.FolderInUse": "storage",
    "sqlite3.Error": "storage",
    "sqlalchemy.exc.DBAPIError": "storage",
    "builtins.OSError": "storage",
    "builtins.FloatingPointError": "not-finite",
}
"""Exception class, by its full name, to code. Names, not classes: nothing has to be imported while something fails."""


class SiteFault(Exception):
    """Something a handler can't go on from, with the code that the coordinator may learn.

    Attributes:
        code: one of `strategies.wire.CODES`; all that leaves the site.

    The message is for the site's own log: it says what was wrong, why it matters and what to do, and may name files.
    """

    def __init__(self, code: str, message: str) -> None:
        if code not in CODES:
            raise ValueError(f"{code!r} is not a code that may leave a site; choose one of {', '.join(CODES)}")
        super().__init__(message)
        self.code = code


def code_of(error: BaseException) -> str:
    """The code in `strategies.wire.CODES` for any exception; `internal` for what has none. Never raises.

    The nearest class decides: an exception is looked up by its own class first, then by those it inherits from.
    """
    if isinstance(error, SiteFault):
        # The list's own string: an attribute that something else was assigned to does not get through.
        return next((code for code in CODES if code == error.code), "internal")
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__)
    return next((CODE_OF_TYPE[name] for name in names if name in CODE_OF_TYPE), "internal")
