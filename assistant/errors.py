"""The one exception tree: what the user can be told, with a code, a sentence and a remedy. Knows not who raises it.

MaemiError
├── ConfigError       a setting or command-line value is wrong
├── MicrographError   a file is not a readable micrograph
├── DatasetError      an instruction data set is missing, torn or of the wrong shape
├── RunError          a run directory or model file cannot be used
├── TeacherError      the teacher cannot answer, or its answer cannot be used
├── EgressError       data would leave the machine without permission
├── ServerError       the server cannot start or cannot take the request
└── Stopped           a signal ended the command where it can go on
"""

from signal import Signals


class MaemiError(Exception):
    """Base of every error that is meant for a person: a stable `code` and a `message` that ends with what to do."""

    exit_code = 2

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ConfigError(MaemiError):
    """A setting or a command-line value is wrong."""


class MicrographError(MaemiError):
    """A file is not a readable micrograph."""


class DatasetError(MaemiError):
    """An instruction data set is missing, torn or of the wrong shape."""


class RunError(MaemiError):
    """A run directory or a model file cannot be used."""


class TeacherError(MaemiError):
    """The teacher cannot answer, or its answer cannot be used."""


class EgressError(MaemiError):
    """Data would leave the machine without permission."""


class ServerError(MaemiError):
    """The server cannot start, or cannot take a request."""


class Stopped(MaemiError):
    """A signal ended the command after everything done was saved."""

    def __init__(self, signal: Signals) -> None:
        super().__init__("stopped", f"Stopped by {signal.name}, saved. The same command goes on where it stopped.")
        self.exit_code = 128 + signal
