"""Every error tracelake raises, by what the caller does next.

TracelakeError
├── ConfigurationError            fix the code or the environment
│   ├── TargetError               the destination is not one tracelake understands
│   ├── SettingError              a setting has a value it cannot have
│   └── MissingDependencyError    an optional package is not installed
├── DeliveryError                 raised by a sink, handled by the shipper
│   ├── TransientDeliveryError    try again soon
│   └── PermanentDeliveryError    someone has to act; tried again on a slow clock
│       ├── BatchExistsError      the destination has a batch that was never sent to it
│       └── RefusedError          a workspace or catalog refuses a call
├── DamageError                   look at damaged data
│   ├── LineError                 one line of a segment cannot be read
│   └── LedgerError               a lane's ledger or in-flight note cannot be trusted
├── SpoolError                    the spool directory cannot be used
├── PropagationError              a trace header is malformed (only with strict=True)
└── QueryError                    a table or trace cannot be read
    ├── MissingTableError         there is no table yet
    └── TraceNotFoundError        no span has this trace id

The first sentence of a message says what was seen and where; the second says what to do next.
"""

from __future__ import annotations


class TracelakeError(Exception):
    """Base of every error tracelake raises."""


class ConfigurationError(TracelakeError):
    """Something in the code or the environment has to be changed."""


class TargetError(ConfigurationError):
    """The destination is not one tracelake understands."""


class SettingError(ConfigurationError):
    """A setting has a value it cannot have."""


class MissingDependencyError(ConfigurationError):
    """An optional package is not installed; the message has the command that installs it."""


class DeliveryError(TracelakeError):
    """A sink could not write a batch."""


class TransientDeliveryError(DeliveryError):
    """The same write may succeed soon.

    Attributes:
        retry_after_s: seconds that the destination asks to be left alone for; 0 if it does not say.
    """

    def __init__(self, message: str = "", *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PermanentDeliveryError(DeliveryError):
    """The same write will fail until someone acts."""


class BatchExistsError(PermanentDeliveryError):
    """The destination has a batch of this name and number, which was never sent to it."""


class RefusedError(PermanentDeliveryError):
    """A workspace or catalog refuses a call.

    Attributes:
        status: the HTTP status, 400 to 499 or 501.
        code: the `error_code` of the answer, empty if it has none.
        reason: what the answer says.
    """

    def __init__(self, message: str, *, status: int, code: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.reason = reason


class DamageError(TracelakeError):
    """Data on disk is not what was written there."""


class LineError(DamageError):
    """One line of a segment cannot be read as a span."""


class LedgerError(DamageError):
    """A lane's ledger or in-flight note cannot be trusted."""


class SpoolError(TracelakeError):
    """The spool directory cannot be used."""


class PropagationError(TracelakeError):
    """A trace header is malformed."""


class QueryError(TracelakeError):
    """A table or a trace cannot be read."""


class MissingTableError(QueryError):
    """There is no table yet."""


class TraceNotFoundError(QueryError):
    """No span in the table has this trace id."""
