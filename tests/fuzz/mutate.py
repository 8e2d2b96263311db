"""Damage valid files: bytes of any, values of a JSON, parts of a PNG, zip or safetensors.

Every function takes a random generator, so an input is made again from its seed and its number.
"""

import copy
import io
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from random import Random

Mutator = Callable[[bytes, Random], bytes]

_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 127, 128, 255, 256, 32767, 65535, 65536, 2**24)
_LARGE = (2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
_DEPTHS = (5, 190, 250, 940, 985, 10_000)
_PLACE = "\ue000"
"""Marks a value of which only the text is written, as Python cannot hold or write it."""
_TEXTS = (
    *("1e400", "-1e400", "1" + 5000 * "0", "-0", "NaN", "-Infinity", "1e-400", "0.1e1"),
    *("[" * depth + "]" * depth for depth in _DEPTHS),
    *('{"a":' * depth + "1" + "}" * depth for depth in _DEPTHS),
    '{"id": 1, "id": 2}',
)
_MARKS = {json.dumps(f"{_PLACE}{number}"): text for number, text in enumerate(_TEXTS)}
_VALUES: tuple[object, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -1e308, 1e308, 1e-308, 2**31, 2**53, *_LARGE),
    *("", "a", "1", "..", "../../x", "/etc/passwd", "C:\\x", "a\0b", "a\nb", "\x1b[31m", "\ud800"),
    *("x" * 300, "x/" * 600 + "x", "s3://a:b@c/d", "file:///etc/passwd", "__class__", "\xe9\u202e"),
    *([], {}, [[]], [0] * 200, [1, "a", None], {"__class__": "os.system"}, {"size": [1, 1]}),
)


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Flip, overwrite, cut, delete, repeat or insert bytes at one to four places."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if out:
            _change(out, random)
    return bytes(out)


def _change(out: bytearray, random: Random) -> None:
    at, length = random.randrange(len(out)), random.choice((1, 1, 2, 4, 16, 64))
    match random.randrange(8):
        case 0 | 1:
            out[at] ^= 1 << random.randrange(8)
        case 2:
            out[at] = random.randrange(256)
        case 3:
            order = random.choice("<>")
            kind = random.choice("BHIQ")
            limit = 256 ** struct.calcsize(kind)
            value = random.choice(_NUMBERS + _LARGE) % limit
            packed = struct.pack(order + kind, value)
            out[at : at + len(packed)] = packed
        case 4:
            del out[at:]
        case 5:
            del out[at : at + length]
        case 6:
            out[at:at] = out[at : at + length] * random.choice((1, 2, 50))
        case 7:
            source = random.randrange(len(out))
            out[at : at + length] = out[source : source + length]


def mutate_json(data: bytes, random: Random) -> bytes:
    """Change one to three values of a JSON, and now and then its bytes."""
    top = json.loads(data)
    holder = [top]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        _change_value(holder, random)
    text = json.dumps(holder[0])
    for mark, value in _MARKS.items() if json.dumps(_PLACE)[1:-1] in text else ():
        text = text.replace(mark, value)
    out = text.encode()
    return mutate_bytes(out, random) if random.random() < 0.15 else out


def _change_value(holder: list, random: Random) -> None:
    part, key = _choose_place(holder, random)
    match random.randrange(8):
        case 0 | 1 | 2:
            part[key] = copy.deepcopy(random.choice(_VALUES))
        case 3:
            part[key] = f"{_PLACE}{random.randrange(len(_TEXTS))}"
        case 4 if part is not holder:
            del part[key]
        case 5:
            other, other_key = _choose_place(holder, random)
            part[key] = json.loads(json.dumps(other[other_key]))
        case 6 if isinstance(part, dict):
            part[random.choice(("id", "x", "__class__", f"{key}s"))] = part.pop(key)
        case 6 if part is not holder:
            part.insert(0, part[key])
        case _:
            part[key] = _nudge(part[key], random)


def _nudge(value: object, random: Random) -> object:
    match value:
        case bool() | None:
            return random.choice((0, 1, "true", [value]))
        case int() | float():
            return random.choice(
                (-value, value + 1, value * 1000, str(value), float(value), 1 - value)
            )
        case str():
            return mutate_bytes(value.encode(errors="replace"), random).decode("latin-1")
        case _:
            return [value]


def _choose_place(holder: list, random: Random) -> tuple:
    """Go down from the top, and stop anywhere."""
    part, key = holder, 0
    while isinstance(part[key], dict | list) and part[key] and random.random() < 0.85:
        part = part[key]
        key = random.choice(list(part)) if isinstance(part, dict) else random.randrange(len(part))
    return part, key


def mutate_png(data: bytes, random: Random) -> bytes:
    """Damage a PNG: its bytes, or a chunk with its checksum made right, or the order of chunks."""
    if random.random() < 0.2:
        return mutate_bytes(data, random)
    chunks = list(_split_chunks(data))
    at = random.randrange(len(chunks))
    name, content = chunks[at]
    match random.randrange(6):
        case 0 | 1 | 2:
            chunks[at] = (name, mutate_bytes(content, random) if content else b"\0")
        case 3:
            chunks.insert(at, (name, mutate_bytes(content, random) if content else b""))
        case 4:
            del chunks[at]
        case 5:
            bomb = zlib.compress(bytes(2**20))
            extra = random.choice(((b"iCCP", b"x\0\0" + bomb), (b"zTXt", b"x\0\0" + bomb)))
            chunks.insert(min(1, len(chunks)), extra)
    return data[:8] + b"".join(write_chunk(*each) for each in chunks)


def write_chunk(name: bytes, content: bytes) -> bytes:
    """Write a chunk of a PNG with a right checksum."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def _split_chunks(data: bytes):
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def mutate_zip(data: bytes, random: Random) -> bytes:
    """Damage a zip: its bytes, or a member or a name within it, with right checksums."""
    if random.random() < 0.2:
        return mutate_bytes(data, random)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(each.filename, archive.read(each)) for each in archive.infolist()]
    at = random.choice((0, random.randrange(len(members))))
    name, content = members[at]
    if random.random() < 0.8:
        members[at] = (name, mutate_bytes(content, random))
    else:
        names = ("../x", "/x", "a\\b", "x" * 300, name, f"{name}/x", "..", "\xe9", "C:/x")
        members.append((random.choice(names), content))
    out = io.BytesIO()
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(out, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may be there twice
        for each, member in members:
            archive.writestr(each, member)
    return out.getvalue()


def mutate_safetensors(data: bytes, random: Random) -> bytes:
    """Damage the header of a safetensors file, and let its length fit or lie."""
    if random.random() < 0.2:
        return mutate_bytes(data, random)
    (length,) = struct.unpack_from("<Q", data)
    header = mutate_json(data[8 : 8 + length], random)
    told = random.choice((len(header), len(header), len(header), len(header) + 1, *_LARGE)) % 2**64
    return struct.pack("<Q", told) + header + data[8 + length :]
