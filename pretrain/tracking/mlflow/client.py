"""The way to an MLflow server or to the sqlite store in a run's folder, and what goes wrong on it."""

from __future__ import annotations

import fcntl
import getpass
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.tracking.base import without_credentials
from pretrain.tracking.sender import AwayError, LeftOutError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE_FILE = "mlflow.db"
ARTIFACTS_FOLDER = "mlartifacts"

# Answers that another attempt will not change.
HOPELESS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "PERMISSION_DENIED"}
# Of the statuses from 400 to 499 those that another attempt may change: too slow, too many at once.
WORTH_ANOTHER = {408, 429}
TOO_LARGE = "failed with error code 413 "  # how MLflow tells of a proxy's answer, for which it has no code


def user_name() -> str:
    """Who runs this, as MLflow would say it; a container may have no name for its user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def now_ms() -> int:
    return int(time.time() * 1000)


def local_uri(run: Path) -> str:
    """The address of the sqlite store in a run's folder."""
    return f"sqlite:///{(run / DATABASE_FILE).resolve()}"


def artifacts_beside(uri: str) -> str | None:
    """Where the artifacts of a sqlite store lie, beside it; None of a server, which knows itself.

    Without this MLflow would put them below the folder that the command was given in.
    """
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / ARTIFACTS_FOLDER).as_uri()


def quieten() -> None:
    """Before MLflow is imported: it shall neither call home nor talk while it starts."""
    # MLflow reads these once, while it is imported; a value that the user has set wins.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for noisy in ("alembic", "mlflow.store", "mlflow.tracking", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def make_client(uri: str) -> MlflowClient:
    """An MLflow client that neither calls home nor talks while it starts."""
    quieten()
    from mlflow import MlflowClient

    if uri.startswith("sqlite:///"):
        make_store(Path(uri.removeprefix("sqlite:///")))
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def make_store(path: Path) -> None:
    """An sqlite store with MLflow's tables, where there is none; whole or not at all.

    MLflow makes its tables in many steps: of two processes that begin together, such as the runs of a sweep,
    one finds the other's half, and what a killed one leaves is refused for ever. So the first to come makes
    them in a file of its own, while the others wait, and moves it into place.
    Raises: OSError; what MLflow raises.
    """
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    lock_path = path.with_name(f".{path.name}.lock")
    with lock_path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed, also by a death
        if path.exists():
            lock_path.unlink(missing_ok=True)
            return
        part = path.with_name(f".{path.name}.part")
        part.unlink(missing_ok=True)
        store = SqlAlchemyStore(f"sqlite:///{part}", str(artifacts_beside(f"sqlite:///{path}")))
        store.engine.dispose()
        os.replace(part, path)
        lock_path.unlink(missing_ok=True)  # whoever has it open, or makes another, finds the store there


@contextmanager
def named_errors() -> Iterator[None]:
    """What a call to the server raises, as what the sender makes of it.

    Raises: LeftOutError when it can never be done, AwayError when another attempt may fare better.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # of a database that is used without a server

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = without_credentials(" ".join(str(error).split("[SQL:")[0].split()))[:300]
        if is_refused(error):
            raise LeftOutError(f"MLflow refused it: {reason}") from error
        # A lost connection is an OSError too, but only one about a file of this machine has a file's name.
        if isinstance(error, OSError) and error.filename is not None:
            raise LeftOutError(reason) from error
        raise AwayError(reason) from error


def is_refused(error: Exception) -> bool:
    """Whether a server answered, and will answer the same the next time."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in HOPELESS or TOO_LARGE in str(error)
    # Files go by requests, whose HTTPError is an OSError that holds the answer.
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in WORTH_ANOTHER
