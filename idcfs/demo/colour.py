"""The sRGB colour profile that an RGB slide must have, as bytes.

`SRGB_PROFILE` is a version 2 ICC matrix profile with sRGB's primaries and a gamma of 2.2. It is built here because no
dependency has one, and a file of one would have another's licence.
"""

import struct

_ILLUMINANT = (0.9642, 1.0, 0.8249)
_PRIMARIES = {
    b"rXYZ": (0.4361, 0.2225, 0.0139),
    b"gXYZ": (0.3851, 0.7169, 0.0971),
    b"bXYZ": (0.1431, 0.0606, 0.7141),
}


def _fixed(values: tuple[float, ...]) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(values)


def _profile() -> bytes:
    name = b"idcfs demo sRGB\0"
    gamma = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256))
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"cprt": b"text\0\0\0\0CC0\0",
        b"wtpt": _xyz(_ILLUMINANT),
        **{tag: _xyz(primary) for tag, primary in _PRIMARIES.items()},
        b"rTRC": gamma,
        b"gTRC": gamma,
        b"bTRC": gamma,
    }
    table, data = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    created = struct.pack(">6H", 2020, 1, 1, 0, 0, 0)
    header = struct.pack(">I4sI", start + len(data), bytes(4), 0x02100000) + b"scnrRGB XYZ " + created + b"acsp"
    return header + bytes(28) + _fixed(_ILLUMINANT) + bytes(48) + table + data


SRGB_PROFILE = _profile()
