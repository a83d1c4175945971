"""Where an image ends in its file, and whether something else is hidden in it or behind it (polyglot files).

Only the structure is read, nothing is decoded. Sources: PNG (ISO/IEC 15948, section 5), JPEG (ITU-T T.81, annex B),
TIFF 6.0 (section 2), BMP (Microsoft's BITMAPINFOHEADER), ZIP (APPNOTE.TXT 4.3.7).
"""

import re
import struct
from collections.abc import Iterator

import numpy as np

PNG_MARK = b"\x89PNG\r\n\x1a\n"
ARCHIVE_SIGNATURES = (
    *(b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08", b"\x1f\x8b", b"\xfd7zXZ\x00", b"BZh", b"7z\xbc\xaf\x27\x1c"),
    *(b"Rar!\x1a\x07", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"LZIP", b"!<arch>\n", b"MSCF"),
)
TAR_SIGNATURE, TAR_PLACE = b"ustar", 257
# Four or five letters alone turn up by chance in gigabytes of compressed pixels: what follows them must fit too.
FOREIGN = re.compile(rb"Rar!\x1a\x07[\x00\x01]|7z\xbc\xaf\x27\x1c|\xfd7zXZ\x00|%PDF-[12]\.[0-9]")
FOREIGN_TEXT = re.compile(rb"<(?:script|\?php|html|svg)[\s/>][\t\n\r -~]{8}", re.IGNORECASE)
ZIP_ENTRY = b"PK\x03\x04"
SIGNATURES = (
    b"Rar!",
    b"7z\xbc\xaf",
    b"7zXZ",
    b"%PDF",
    ZIP_ENTRY,
)  # of these one stands in whatever FOREIGN or a ZIP is
ZIP_METHODS = frozenset({0, 1, 6, 8, 9, 12, 14, 93, 95, 98, 99})
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
TIFF_POINTERS = frozenset({330, 34665, 34853, 40965})  # SubIFDs, EXIF, GPS, interoperability
TIFF_DATA = {273: 279, 324: 325, 513: 514}  # offsets: byte counts, of strips, of tiles, of a JPEG thumbnail
MOST_DIRECTORIES = 16


def is_archive(data: bytes) -> bool:
    """Whether a file is an archive or a compressed file, by its first bytes."""
    return data.startswith(ARCHIVE_SIGNATURES) or data[TAR_PLACE : TAR_PLACE + 5] == TAR_SIGNATURE


def foreign_content(data: bytes) -> str | None:
    """What is in an image file that is no image, in words; None for nothing.

    Zero bytes behind the end are padding and pass. A file whose structure cannot be followed has no end that is
    known: that is left to the decoder to say.
    """
    end = image_end(data)
    if end is not None and data[end:].strip(b"\0"):
        return f"{len(data) - end:,} bytes behind the end of the image"
    is_marked = _has_signature(data)
    if is_marked and any(_is_zip_entry(data, place) for place in _places(data, ZIP_ENTRY)):
        return "a ZIP archive inside the image"
    if found := FOREIGN_TEXT.search(data) or (is_marked and FOREIGN.search(data)):
        return f"content of another kind inside the image ({_letters(found.group()[:7])})"
    return None


def _has_signature(data: bytes) -> bool:
    """Whether any of SIGNATURES stands in the file: four bytes at a time, in a fifth of the expression's time."""
    wanted = np.frombuffer(b"".join(SIGNATURES), np.uint32)
    shifted = (np.frombuffer(data[shift : shift + (len(data) - shift) // 4 * 4], np.uint32) for shift in range(4))
    return any((words == mark).any() for words in shifted for mark in wanted)


def _letters(mark: bytes) -> str:
    """The letters of a format's mark: "Rar", "PDF", "script"."""
    return "".join(chr(value) for value in mark if chr(value).isascii() and chr(value).isalpha())


def image_end(data: bytes) -> int | None:
    """The number of bytes that belong to the image; None where the format or the structure is not understood."""
    try:
        if data.startswith(PNG_MARK):
            return _png_end(data)
        if data.startswith(b"\xff\xd8"):
            return _jpeg_end(data)
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _tiff_end(data)
        if data.startswith(b"BM"):
            return _bmp_end(data)
    except struct.error:
        pass
    return None


def _png_end(data: bytes) -> int | None:
    place = len(PNG_MARK)
    while place + 12 <= len(data):
        (length,), kind = struct.unpack_from(">I", data, place), data[place + 4 : place + 8]
        place += 12 + length
        if kind == b"IEND":
            return place
    return None


def _jpeg_end(data: bytes) -> int | None:
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xD9:
            return place + 2
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7:  # fill byte, or a marker without content
            place += 1 if marker == 0xFF else 2
            continue
        place += 2 + int(struct.unpack_from(">H", data, place + 2)[0])
        if marker == 0xDA:
            place = _next_marker(data, place)
    return place + 2 if data[place : place + 2] == b"\xff\xd9" else None


def _next_marker(data: bytes, place: int) -> int:
    """Where the entropy-coded data from `place` on ends: at a marker that is neither stuffing nor a restart."""
    while True:
        place = data.find(b"\xff", place)
        if place < 0 or place + 1 >= len(data):
            return len(data)
        if data[place + 1] == 0 or 0xD0 <= data[place + 1] <= 0xD7:
            place += 2
        elif data[place + 1] == 0xFF:
            place += 1
        else:
            return place


def _bmp_end(data: bytes) -> int | None:
    offset, header, width, height = struct.unpack_from("<IIii", data, 10)
    if header < 40:
        return None
    bits, compression, size = struct.unpack_from("<HII", data, 28)
    row = (abs(width) * bits + 31) // 32 * 4
    return int(offset + (size if compression in (1, 2, 4, 5) else row * abs(height)))


def _tiff_end(data: bytes) -> int | None:
    """The furthest byte that any directory of the file refers to."""
    order = "<" if data[:2] == b"II" else ">"
    pending, seen, end = [int(struct.unpack_from(order + "I", data, 4)[0])], set[int](), 8
    while pending:
        place = pending.pop()
        if place == 0 or place in seen:
            continue
        seen.add(place)
        if len(seen) > MOST_DIRECTORIES:
            return None
        fields, reach, following = _tiff_directory(data, place, order)
        pending += [following, *(pointer for tag in TIFF_POINTERS for pointer in fields.get(tag, ()))]
        end = max(end, reach, *(_furthest(fields, offsets, counts) for offsets, counts in TIFF_DATA.items()))
    return end


def _tiff_directory(data: bytes, place: int, order: str) -> tuple[dict[int, tuple[int, ...]], int, int]:
    """One directory: its integer fields that refer to places, its furthest byte, and where the next one is."""
    (count,) = struct.unpack_from(order + "H", data, place)
    fields: dict[int, tuple[int, ...]] = {}
    reach = place + 2 + 12 * count + 4
    wanted = TIFF_POINTERS.union(TIFF_DATA, TIFF_DATA.values())
    for entry in range(place + 2, place + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", data, entry)
        size = TIFF_SIZES.get(kind, 1) * number
        start = entry + 8 if size <= 4 else int(struct.unpack_from(order + "I", data, entry + 8)[0])
        reach = max(reach, start + size)
        if tag in wanted and kind in (3, 4, 13):
            fields[tag] = struct.unpack_from(f"{order}{number}{'H' if kind == 3 else 'I'}", data, start)
    (following,) = struct.unpack_from(order + "I", data, place + 2 + 12 * count)
    return fields, reach, int(following)


def _furthest(fields: dict[int, tuple[int, ...]], offsets: int, counts: int) -> int:
    pairs = zip(fields.get(offsets, ()), fields.get(counts, ()), strict=False)
    return max((offset + count for offset, count in pairs), default=0)


def _places(data: bytes, mark: bytes) -> Iterator[int]:
    place = data.find(mark)
    while place >= 0:
        yield place
        place = data.find(mark, place + 1)


def _is_zip_entry(data: bytes, place: int) -> bool:
    """Whether a ZIP entry's header stands here: four bytes alone occur in compressed pixels by chance."""
    if place + 30 > len(data):
        return False
    version, _, method = struct.unpack_from("<HHH", data, place + 4)
    name, extra = struct.unpack_from("<HH", data, place + 26)
    return (
        (version & 0xFF) <= 63 and method in ZIP_METHODS and 0 < name <= 4096 and place + 30 + name + extra <= len(data)
    )
