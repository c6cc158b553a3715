"""The command line: the commands of `idcfs`, their output and their exit codes.

`group` has what the commands share, `background` starts the daemon of a mount, the other modules have one command or
group of commands each. The entry point is `main`; no room imports this package, and nothing is kept between commands.
Modules that take long to load are imported by the commands that need them.
"""

from idcfs.cli import cache, cohort, demo, mounting, query, status
from idcfs.cli.group import main

__all__ = ["cache", "cohort", "demo", "main", "mounting", "query", "status"]
