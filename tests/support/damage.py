"""Files damaged at random, with a seed: bytes, JSON and tables as they come out of bad disks, broken copies and editors."""

import json
import os

# DAMAGED=all: as many files as a claim of none in a hundred thousand needs, 100,000 together
ALL = os.environ.get("DAMAGED") == "all"
_NUMBERS = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xea\x60\xea\x60", b"\0\x30\0\0")
_ODD = (
    None,
    True,
    False,
    -1,
    0,
    1.5,
    10**30,
    -(10**400),
    1e308,
    5e-324,
    "",
    "text",
    "3",
    "../..",
    [],
    {},
    [[1, "a"]],
    {"a": 1},
)
_NO_JSON = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "1" * 5000,
    '"\\ud800"',
    "01",
    "nul",
    '"a\nb"',
    "{" * 3,
    "[" * 100_000,
)


def how_many(few, every):
    """Files that a test damages: few, or, with DAMAGED=all, every."""
    return every if ALL else few


def damaged_bytes(data, rng):
    """Bytes with one kind of damage: bits flipped, cut off, zeroed, moved, lost, added, lengths that lie."""
    data, n = bytearray(data), len(data)
    if not n:
        return rng.bytes(20)
    a, b = sorted(rng.integers(n, size=2).tolist())
    some = int(rng.integers(1, 600))
    head = int(rng.integers(min(n, 256)))
    match int(rng.integers(10)):
        case 0:
            for at in rng.integers(n, size=rng.integers(1, 20)):
                data[at] ^= 1 << int(rng.integers(8))
        case 1:
            for at in rng.integers(min(n, 512), size=rng.integers(1, 12)):
                data[at] = rng.integers(256)
        case 2:
            data[head : head + 4] = _NUMBERS[rng.integers(len(_NUMBERS))]
        case 3:
            del data[a:]
        case 4:
            data[a : a + some] = bytes(len(data[a : a + some]))
        case 5:
            data += rng.bytes(some)
        case 6:
            data[a:a] = rng.bytes(some)
        case 7:
            del data[a : a + some]
        case 8:
            data[a : a + some], data[b : b + some] = data[b : b + some], data[a : a + some]
        case 9:
            data = bytearray() if some < 100 else bytearray(n)
    return bytes(data)


def places(value, path=()):
    """Paths to all that is in dicts and lists in each other."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*path, key)
        yield from places(part, (*path, key))


def chosen_place(value, rng):
    """(the dict or list, the key) of some place, those near the root more often than their number."""
    all_of_them = list(places(value))
    depth = int(rng.integers(1, 1 + max(map(len, all_of_them))))
    shallow = [path for path in all_of_them if len(path) <= depth]
    path = shallow[rng.integers(len(shallow))]
    for key in path[:-1]:
        value = value[key]
    return value, path[-1]


def damaged_json(text, rng):
    """Bytes of a JSON text with other values, keys or structure, or that is none any more."""
    kind = int(rng.integers(8))
    if kind == 0:
        return damaged_bytes(text.encode(), rng)
    value = json.loads(text)
    mark = "@mark@"
    inside, key = chosen_place(value, rng)
    if kind == 1:
        del inside[key]
    elif kind == 2 and isinstance(inside, dict):
        inside[f"{key}x"] = inside.pop(key)
    elif kind == 3:  # a value in the place of another
        inside[key], other = mark, inside[key]
        there, where = chosen_place(value, rng)
        there[where] = other
    elif kind == 4 and isinstance(inside, dict):
        return json.dumps(value).replace(f'"{key}":', f'"{key}": 1, "{key}":', 1).encode()
    elif kind == 5:
        inside[key] = mark
        return json.dumps(value).replace(f'"{mark}"', _NO_JSON[rng.integers(len(_NO_JSON))]).encode()
    elif kind == 6 and isinstance(inside[key], (int, float)):
        inside[key] *= [-1, 1e6, 1e300, 0, 0.5][rng.integers(5)]
    else:
        inside[key] = _ODD[rng.integers(len(_ODD))]
    return json.dumps(value, indent=1).encode()


def damaged_table(text, rng):
    """Bytes of a CSV text with other cells, lines or columns, or that is none any more."""
    kind = int(rng.integers(8))
    if kind == 0 or text.count("\n") < 2:
        return damaged_bytes(text.encode(), rng)
    rows = [line.split(",") for line in text.splitlines()]
    y = int(rng.integers(len(rows)))
    x = int(rng.integers(len(rows[0])))
    odd = ["", "nan", "inf", "-1", "1e999", "text", "True", '"', "9" * 400, "1_0", "\ufeff", "0.5", "a,b", "-inf"]
    if kind == 1:
        for row in rows[:: 1 if rng.integers(2) else y + 1]:
            del row[x]
    elif kind == 2:
        rows.insert(y, list(rows[rng.integers(len(rows))]))
    elif kind == 3:
        del rows[y]
    elif kind == 4:
        rows[0][x] = [f"{rows[0][x]}x", "", rows[0][0]][rng.integers(3)]
    elif kind == 5:
        return ("\n".join(map(",".join, rows[: y + 1]))[: -1 - x] + "\n").encode()
    elif kind == 6:
        for row in rows[1:]:
            row[x] = odd[y % len(odd)]
    else:
        rows[y][x] = odd[rng.integers(len(odd))]
    return ("\n".join(map(",".join, rows)) + "\n").encode()
