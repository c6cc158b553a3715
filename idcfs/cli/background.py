"""The daemon as a background process, whose start is waited for and whose errors are reported.

The fork is safe because no module that has threads is loaded yet, and the FUSE device is not open.
"""

import contextlib
import json
import logging
import logging.handlers
import os
import signal
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import platformdirs

from idcfs import errors
from idcfs.cli.group import run_trio
from idcfs.config import Settings
from idcfs.printable import printable
from idcfs.private import check_folder

Report = Callable[[dict[str, Any]], None]


def serve(settings: Settings, path: Path, demo: bool, report: Report) -> None:
    """Serve a mount in this process until it ends."""
    from idcfs.mount import daemon

    run_trio(daemon.serve, settings, path, report, demo)


def serve_in_background(settings: Settings, path: Path, demo: bool, level: int, report: Report) -> None:
    """Start the daemon as a child in a session of its own, and wait until it is ready or reports an error."""
    log_file = _log_file(path)
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _run_daemon(settings, path, demo, send, log_file, level)
    os.close(send)
    try:
        with open(receive) as lines:
            for line in lines:
                message = json.loads(line)
                if "error" in message:
                    raise getattr(errors, message["error"])(message["message"])
                report(message)
                if "ready" in message:
                    return
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    raise errors.MountFailed(f"{path}: the daemon ended while it started; see {log_file}")


def _run_daemon(settings: Settings, path: Path, demo: bool, send: int, log_file: Path, level: int) -> NoReturn:
    code = 1
    try:
        os.setsid()
        os.chdir("/")
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        handler = _LogFile(log_file, maxBytes=1 << 20, backupCount=1)
        log_to(handler, "%(asctime)s %(levelname)s %(name)s: %(message)s", level)
        os.set_inheritable(send, False)
        pipe = [send]

        def report(message: dict[str, Any]) -> None:
            if pipe:
                os.write(pipe[0], json.dumps(message).encode() + b"\n")
                if "ready" in message:
                    os.close(pipe.pop())

        try:
            serve(settings, path, demo, report)
            code = 0
        except errors.IdcfsError as error:
            logging.error("%s", error)
            with contextlib.suppress(OSError):
                report({"error": type(error).__name__, "message": str(error)})
    except BaseException:
        logging.exception("the daemon ended")
    finally:
        logging.shutdown()
        os._exit(code)


class _Formatter(logging.Formatter):
    """Formats records so that text from elsewhere cannot move a terminal's cursor or look like another record."""

    def format(self, record: logging.LogRecord) -> str:
        first, *more = super().format(record).split("\n")
        return "\n".join([printable(first), *(f"    {printable(line)}" for line in more)])


def log_to(handler: logging.Handler, form: str, level: int) -> None:
    """Write everything that is logged from *level* on with *handler*."""
    handler.setFormatter(_Formatter(form))
    logging.basicConfig(level=level, handlers=[handler])


class _LogFile(logging.handlers.RotatingFileHandler):
    """The daemon's log, which is also its standard error, to get what libraries and children print when they crash."""

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        os.dup2(stream.fileno(), 2)
        return stream


def _log_file(path: Path) -> Path:
    from idcfs.layout import MAX_COMPONENT_BYTES, escape, shorten

    folder = Path(platformdirs.user_log_dir("idcfs"))
    name = escape(str(path).strip("/").replace("/", "-"))
    file = folder / f"{shorten(name, MAX_COMPONENT_BYTES - len('.log.1'), str(path))}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_folder(folder, "log folder", "XDG_STATE_HOME", errors.CacheUnusable)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        raise errors.CacheUnusable(f"log file {file}: {error.strerror}; set XDG_STATE_HOME to a folder") from error
    return file
