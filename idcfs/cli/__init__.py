"""The command line: what a person types, is told, and gets for an exit code.

Modules that take long to load are loaded by the commands that need them.
"""

from idcfs.cli import cache, cohort, demo, mounting, query, status
from idcfs.cli.group import main

__all__ = ["cache", "cohort", "demo", "main", "mounting", "query", "status"]
