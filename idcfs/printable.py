"""Text from elsewhere, made fit for a terminal or a log; pure.

Keys, ETags and reasons that a server gives, and names in a cache folder, can hold anything: a control character would
move a terminal's cursor, and a line's end would begin a line that nobody wrote.
"""

import re

UNFIT = "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
"""A regular expression for control characters, other ends of lines, what turns the direction of text, and what is no
character."""

_UNFIT = re.compile(UNFIT)


def printable(text: object) -> str:
    r"""The text with what is unfit written as ``\x1b`` or ``\u202e``."""
    return _UNFIT.sub(lambda match: match[0].encode("unicode_escape", "backslashreplace").decode(), str(text))
