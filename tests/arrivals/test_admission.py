"""Admission of arriving files: what must be refused, and what must not."""

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.arrivals.admission import Opened, Refusal, check_listing, open_arrival
from components.arrivals.names import check_name, decode_key, encode_key, safe_stem, safe_suffix, shown_name
from components.foundation.limits import ImageLimits
from components.images.ending import foreign_content, image_end

LIMITS = ImageLimits(max_pixels=100_000, max_bytes=1_000_000)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)

BAD_NAMES = {
    "../../etc/passwd.png": "name-path",
    "a/../b.png": "name-path",
    "/etc/a.png": "name-path",
    "a//b.png": "name-path",
    "..\\..\\a.png": "name-path",
    "C:a.png": "name-path",
    "a%2fb.png": "name-path",
    "%2e%2e%2fa.png": "name-path",
    ".hidden.png": "name-hidden",
    ".git/hooks.png": "name-hidden",
    "@eaDir/000.png": "name-hidden",
    "__MACOSX/000.png": "name-hidden",
    "-rf.png": "name-dash",
    "sub/--help.png": "name-dash",
    "=1+1.png": "name-formula",
    "+1.png": "name-formula",
    "@sum.png": "name-formula",
    "=cmd|' /C calc'!A0.png": "name-formula",
    "<script>alert(1)</script>.png": "name-markup",
    "<img src=x onerror=alert(1)>.png": "name-markup",
    'a".png': "name-markup",
    "a'.png": "name-markup",
    "a&b.png": "name-markup",
    "`id`.png": "name-markup",
    "a\nb.png": "name-control",
    "a\0b.png": "name-control",
    "a\x1b[31mb.png": "name-control",
    "a\u202egnp.exe.png": "name-control",
    "a\u200bb.png": "name-control",
    "a\u2066b.png": "name-control",
    "\ufeffa.png": "name-control",
    "a\udcffb.png": "name-control",
    "a\u2028b.png": "name-control",
    "u\u0308ber.png": "name-unicode",
    "\uff41.png": "name-unicode",
    "ﬁle.png": "name-unicode",
    "b\u043ettle.png": "name-unicode",
    "p\u03b1rt.png": "name-unicode",
    "a\u00a0b.png": "name-unicode",
    " a.png": "name-unicode",
    "x\u0335.png": "name-unicode",
    "a" * 250 + ".png": "name-long",
    "/".join(["abcdefgh"] * 120) + ".png": "name-long",
    "a.exe": "name-extension",
    "a.png.zip": "name-extension",
    "a": "name-extension",
}
GOOD_NAMES = (
    *("000.png", "line 1/2026-11-22T10_00_00.JPEG", "Prüfling_1 (2).tif", "部品-1.bmp", "деталь.png", "a,b;c.png"),
    *("50%.png", "a+b=c@d.tiff", "v1.2.3.jpg"),
)


@pytest.mark.parametrize(("name", "code"), BAD_NAMES.items())
def test_a_dangerous_name_is_refused(name: str, code: str) -> None:
    refusal = check_name(name)
    assert refusal is not None
    assert refusal.code == code


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_harmless_name_passes(name: str) -> None:
    assert check_name(name) is None


@given(st.text(st.characters(codec=None), max_size=60))
def test_what_is_made_of_any_name_is_harmless(name: str) -> None:
    shown, stem = shown_name(name), safe_stem(name)
    assert shown.isprintable()
    assert not set(shown) & set("<>\"'&`")
    assert shown[:1] not in set("=+-@") or not shown
    assert stem.isascii()
    assert stem[0].isalnum()
    assert "/" not in stem
    assert check_name(f"{stem}.png") is None
    assert safe_suffix(name) in {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".bin"}


@given(st.binary(max_size=60).map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_a_key_survives_json(name: str) -> None:
    assert encode_key(name).isascii()
    assert decode_key(encode_key(name)) == name


@pytest.mark.parametrize(
    ("key", "kind", "size", "code"),
    [
        ("a.png", "link", 10, "link"),
        ("a.png", "other", 0, "not-a-file"),
        ("a.png", "file", 0, "empty"),
        ("a.png", "file", 1_000_001, "too-many-bytes"),
        ("../a.png", "link", 10, "name-path"),
    ],
)
def test_what_a_listing_shows_is_judged_without_reading(key: str, kind: str, size: int, code: str) -> None:
    refusal = check_listing(key, kind, size, LIMITS)
    assert refusal is not None
    assert refusal.code == code
    assert check_listing("a.png", "file", 1_000_000, LIMITS) is None


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("evil.sh", "rm -rf /")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(data: bytes) -> bytes:
    """A PNG file with a text chunk before its pixels."""
    image = encoded("PNG")
    return image[:33] + chunk(b"tEXt", b"Comment\0" + data) + image[33:]


def bomb() -> bytes:
    """30,000 × 30,000 pixels of zeros in a small file."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def pages() -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(PIXELS)
    image.save(file, "TIFF", save_all=True, append_images=[image])
    return file.getvalue()


def other_crc() -> bytes:
    image = bytearray(encoded("PNG"))
    image[len(image) // 2] ^= 0xFF
    return bytes(image)


BAD_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip": (zipped, "archive"),
    "zip bomb, gzipped": (lambda: gzip.compress(bytes(1 << 20)), "archive"),
    "tar": (tarred, "archive"),
    "text": (lambda: b"no pixels\n", "not-an-image"),
    "gif": (lambda: encoded("GIF"), "not-an-image"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not-an-image"),
    "program": (lambda: b"MZ" + bytes(200), "not-an-image"),
    "pixel bomb": (bomb, "too-many-pixels"),
    "two pages": (pages, "several-images"),
    "zip behind a PNG": (lambda: encoded("PNG") + zipped(), "foreign-content"),
    "zip behind a JPEG": (lambda: encoded("JPEG") + zipped(), "foreign-content"),
    "zip behind a TIFF": (lambda: encoded("TIFF") + zipped(), "foreign-content"),
    "zip behind a BMP": (lambda: encoded("BMP") + zipped(), "foreign-content"),
    "text behind a PNG": (lambda: encoded("PNG") + b"#!/bin/sh\n", "foreign-content"),
    "text behind a progressive JPEG": (lambda: encoded("JPEG", progressive=True) + b"x", "foreign-content"),
    "zip inside a PNG": (lambda: with_chunk(zipped()), "foreign-content"),
    "script inside a PNG": (lambda: with_chunk(b"<ScRipt>alert(1)</script>"), "foreign-content"),
    "PHP inside a JPEG": (lambda: encoded("JPEG", comment=b"<?php system($_GET[0]); ?>"), "foreign-content"),
    "truncated PNG": (lambda: encoded("PNG")[:-900], "undecodable"),
    "truncated JPEG": (lambda: encoded("JPEG")[:-400], "undecodable"),
    "damaged PNG": (other_crc, "undecodable"),
}
GOOD_FILES: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: encoded("PNG"),
    "JPEG": lambda: encoded("JPEG"),
    "progressive JPEG": lambda: encoded("JPEG", progressive=True, quality=95),
    "JPEG with restarts": lambda: encoded("JPEG", restart_marker_blocks=2),
    "TIFF": lambda: encoded("TIFF"),
    "compressed TIFF": lambda: encoded("TIFF", compression="tiff_lzw"),
    "BMP": lambda: encoded("BMP"),
    "padded PNG": lambda: encoded("PNG") + bytes(512),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_dangerous_file_is_refused(case: str) -> None:
    make, code = BAD_FILES[case]
    refusal = open_arrival(make(), "a.png", LIMITS)
    assert not isinstance(refusal, Opened)
    assert refusal.code == code


@pytest.mark.parametrize("case", GOOD_FILES)
@pytest.mark.parametrize("missing", [1, 2, 7, 12, 13, 40])
def test_a_file_that_lacks_any_of_its_last_bytes_is_refused(case: str, missing: int) -> None:
    data = GOOD_FILES[case]().rstrip(b"\0") if case == "padded PNG" else GOOD_FILES[case]()
    refusal = open_arrival(data[:-missing], "a.png", LIMITS)
    assert not isinstance(refusal, Opened)
    assert refusal.code in ("undecodable", "not-an-image")


@pytest.mark.parametrize("case", GOOD_FILES)
def test_a_usual_image_passes_with_its_pixels(case: str) -> None:
    data = GOOD_FILES[case]()
    opened = open_arrival(data, "a.png", LIMITS)
    assert isinstance(opened, Opened)
    assert opened.pixels.shape == PIXELS.shape
    if "JPEG" not in case:
        assert (opened.pixels == PIXELS).all()
    assert image_end(data) == len(data.rstrip(b"\0")) or case in ("BMP", "TIFF", "compressed TIFF")


@pytest.mark.parametrize(
    "case", ["PNG", "JPEG", "progressive JPEG", "JPEG with restarts", "TIFF", "compressed TIFF", "BMP"]
)
def test_one_byte_behind_the_end_is_seen(case: str) -> None:
    data = GOOD_FILES[case]()
    assert foreign_content(data) is None
    assert foreign_content(data + b"\x01") == "1 bytes behind the end of the image"


@pytest.mark.parametrize("mark", [b"<sVg", b"<HTML", b"<script", b"%PDF-", b"PK\x03\x04", b"Rar!"])
def test_letters_that_pixels_may_spell_by_chance_are_no_foreign_content(mark: bytes) -> None:
    assert foreign_content(with_chunk(mark + np.random.default_rng(1).bytes(200))) is None


@pytest.mark.parametrize(
    "mark", [b"Rar!\x1a\x07\x01\x00", b"7z\xbc\xaf\x27\x1c", b"\xfd7zXZ\x00", b"%PDF-1.7", b"<svg/onload=a()>"]
)
def test_content_of_another_kind_is_named(mark: bytes) -> None:
    found = foreign_content(with_chunk(mark))
    assert found is not None
    assert found.startswith("content of another kind inside the image (")


def test_a_tiff_without_its_width_is_no_image() -> None:
    data = encoded("TIFF")
    first = int.from_bytes(data[4:8], "little") + 2  # the first entry of the directory, the width by its order
    damaged = data[:first] + (0xFFFF).to_bytes(2, "little") + data[first + 2 :]
    found = open_arrival(damaged, "a.tif", LIMITS)
    assert isinstance(found, Refusal)
    assert found.code == "not-an-image"


@given(st.sampled_from(["PNG", "JPEG", "TIFF", "BMP"]), st.data())
def test_no_damage_makes_admission_fail(kind: str, data: st.DataObject) -> None:
    content = bytearray(encoded(kind))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    kept = data.draw(st.integers(0, len(content)))
    open_arrival(bytes(content[:kept]), "a.png", LIMITS)  # any answer, no exception
