"""Text from elsewhere, made safe for a terminal or a log; pure.

Keys, ETags and messages of a server, and names in a cache folder, can have any characters: a control character would
move a terminal's cursor, and the end of a line would start a line that nobody wrote.
"""

import re

UNPRINTABLE = "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
"""A regular expression for control characters, ends of lines, changes of the text's direction, and surrogates."""

_UNPRINTABLE = re.compile(UNPRINTABLE)


def printable(text: object) -> str:
    r"""Return the text with unprintable characters written as ``\x1b`` or ``\u202e``."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape", "backslashreplace").decode(), str(text))
