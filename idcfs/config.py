"""Settings from flags, `IDCFS_*` variables and the configuration file, which is read here.

Each setting is a field of `Settings`, which names its variable and its key in the file (`IDCFS_CACHE_SIZE`,
``cache_size = "20GB"``).
"""

import os
import re
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import platformdirs

from idcfs.errors import UsageError
from idcfs.layout import DEFAULT_TEMPLATE

SIZE_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_UNITS = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}

DEFAULT_CACHE_SHARE = 10
DEFAULT_CACHE_MAX = 50 * 10**9
"""By default the cache takes a tenth of its disk, and 50 GB at most."""

SMALLEST_SIZE = 64 << 20
"""A smaller cache would evict what was just fetched; a query cannot even start with less memory."""

LARGEST_CACHE = 1 << 60
"""More than any disk holds, and still a number that the cache's database can store."""

KNOWN_CRAWLERS = (
    "updatedb", "updatedb.mlocate", "updatedb.plocate",
    "tracker-miner-fs-3", "tracker-miner-fs", "tracker-extract-3", "tracker-extract", "localsearch-3",
    "localsearch-extractor-3", "baloo_file", "baloo_file_extractor", "recollindex",
)  # fmt: skip
"""Programs that read every file they find: the indexers of locate, GNOME, KDE and Recoll."""


@dataclass(frozen=True)
class Settings:
    """The settings of idcfs.

    `cache_size` is in bytes (None: a tenth of the disk, up to 50 GB), and so is `memory`, which bounds what is
    fetched, read ahead and not yet written to the cache; `timeout` is in seconds; `cohort_dir` has the texts of
    cohorts; `index` is a folder with the index's parquet files (None: the installed package's), `idc_version` the
    version whose tree is shown (None: the index's own); `query_memory` (bytes) and `query_timeout` (seconds) bound a
    user's SQL; `refuse` has the names of programs that get no listing of a series and no file, separated by commas.
    """

    mirror: str = "aws"
    cache_dir: Path = field(default_factory=lambda: platformdirs.user_cache_path("idcfs"))
    cache_size: int | None = None
    memory: int = 112 << 20
    cohort_dir: Path = field(default_factory=lambda: platformdirs.user_data_path("idcfs") / "cohorts")
    timeout: float = 30.0
    layout: str = DEFAULT_TEMPLATE
    idc_version: int | None = None
    index: Path | None = None
    xattr: bool = False
    allow_other: bool = False
    allow_other_cohorts: bool = False
    refuse: str = ",".join(KNOWN_CRAWLERS)
    query_memory: int = 3 << 30
    query_timeout: float = 60.0

    @property
    def cache_limit(self) -> int:
        """The bytes that the cache may take; depends on the size of the disk if none was set."""
        if self.cache_size is not None:
            return self.cache_size
        existing = next(path for path in (self.cache_dir, *self.cache_dir.parents) if path.exists())
        return min(shutil.disk_usage(existing).total // DEFAULT_CACHE_SHARE, DEFAULT_CACHE_MAX)


def parse_size(text: str) -> int:
    """Return the bytes of a size as people write it: ``20GB``, ``512 MiB``, ``1.5T``.

    Raises:
        UsageError: the text is no size, or one out of bounds.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    units = SIZE_UNITS | BINARY_UNITS
    if match is None or match[2] not in units:
        raise UsageError(f"size {text!r}: write a number and a unit, such as 20GB or 512MiB")
    size = int(Decimal(match[1]) * units[match[2]])
    if size > LARGEST_CACHE:
        raise UsageError(f"size {text!r} is more than any disk holds")
    if size < SMALLEST_SIZE:
        raise UsageError(f"size {text!r} is too small: write at least {SMALLEST_SIZE >> 20}MiB")
    return size


def load_settings(
    flags: Mapping[str, Any], environment: Mapping[str, str] | None = None, file: Path | None = None
) -> Settings:
    """Return the settings from *flags* that are not None, else from the environment, else from the file.

    Args:
        flags: values by field name.
        environment: variables; the process' own if None.
        file: the configuration file; the user's if None. It may be missing.

    Raises:
        UsageError: the file cannot be read, a name is unknown, or a value is malformed.
    """
    file = file or platformdirs.user_config_path("idcfs") / "config.toml"
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    for name, value in _read_file(file).items():
        values[name] = _convert(name, value, f"{file}: {name}")
    for known in fields(Settings):
        variable = f"IDCFS_{known.name.upper()}"
        if environment.get(variable):
            values[known.name] = _convert(known.name, environment[variable], variable)
    for name, value in flags.items():
        if value is not None:
            values[name] = _convert(name, value, "--" + name.replace("_", "-"))
    return Settings(**values)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    known = {known.name for known in fields(Settings)}
    for name in content:
        if name not in known:
            raise UsageError(f"{file}: {name} is no setting; the settings are {', '.join(sorted(known))}")
    return content


def _convert(name: str, value: Any, where: str) -> Any:
    """Return the value of a setting from its value in a flag, a variable or the file."""
    try:
        match name:
            case "cache_size" | "memory" | "query_memory":
                return parse_size(str(value))
            case "cache_dir" | "cohort_dir" | "index":
                path = Path(_parse_text(value)).expanduser().absolute()
                # diskcache would replace a variable by its value.
                if name == "cache_dir" and os.path.expandvars(path) != str(path):
                    raise ValueError("write it without $")
                return path
            case "timeout" | "query_timeout":
                seconds = float(str(value))
                if not 0 < seconds < 3600:
                    raise ValueError("a number of seconds above 0 and under an hour")
                return seconds
            case "idc_version":
                return int(str(value))
            case "xattr" | "allow_other" | "allow_other_cohorts":
                return _parse_bool(value)
            case "layout" | "refuse" if value == "":
                return ""
            case _:
                return _parse_text(value)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    # An unknown home folder is a RuntimeError.
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"{where}: {value!r} is not a usable value ({error})") from None


def _parse_text(value: Any) -> str:
    if not isinstance(value, str | Path):
        raise ValueError("write it as text, in quotes")
    text = str(value)
    if not text or "\0" in text:
        raise ValueError("write at least one character, and no NUL")
    return text


def _parse_bool(value: Any) -> bool:
    match str(value).lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
    raise ValueError("write true or false")
