"""Names of arriving files: which are refused, and how any name is kept, shown and made safe.

A name comes from outside and goes into paths, shells, tables, web pages and people's eyes: what could mean something
else in any of them is refused. The scripts follow the idea of Unicode TS 39 (Unicode Security Mechanisms), section 5.
"""

import os
import re
import unicodedata
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import quote, unquote, unquote_to_bytes

from components.foundation.errors import printable
from components.images.decode import EXTENSIONS
from components.images.layout import is_hidden

MAX_NAME_BYTES = 200  # of one part; file systems allow 255, and outcomes add a number and an ending
MAX_KEY_BYTES = 900  # of the whole; S3 allows 1024
FORMULA_SIGNS = "=+@"  # with "-", what makes a spreadsheet take a cell for a formula
MARKUP_SIGNS = "<>\"'&`"
PATH_SIGNS = "\\:"
EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "IDEOGRAPHIC")
FORBIDDEN_CLASSES = (
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Cn",
    "Zl",
    "Zp",
)  # control, format, surrogate, private, unassigned, breaks


class Refusal(NamedTuple):
    """Why something does not pass: a code for programs, and a clause for people that follows the file's name."""

    code: str
    words: str


def check_name(key: str) -> Refusal | None:
    """Check the name of an arriving file relative to its category's inbox, with forward slashes; None if it passes.

    Codes: name-path, name-hidden, name-dash, name-formula, name-markup, name-control, name-unicode, name-long,
    name-extension. Bytes that are no UTF-8 come as surrogates (`os.fsdecode`) and count as control characters.
    """
    if len(os.fsencode(key)) > MAX_KEY_BYTES:
        return Refusal("name-long", f"has a path longer than {MAX_KEY_BYTES} bytes")
    for part in key.split("/"):
        if refusal := _check_part(part):
            return refusal
    suffix = PurePosixPath(key).suffix.lower()
    if suffix not in EXTENSIONS:
        return Refusal("name-extension", f"does not end in {', '.join(sorted(EXTENSIONS))}")
    return None


def shown_name(key: str) -> str:
    """The name with nothing in it that a terminal, a web page or a spreadsheet could take for its own."""
    text = "".join(f"\\x{ord(sign):02x}" if sign in MARKUP_SIGNS else sign for sign in printable(key))
    return f"_{text}" if text[:1] in f"{FORMULA_SIGNS}-" else text


def safe_stem(key: str) -> str:
    """A plain ASCII stem that recalls the name: letters, digits, '.', '-' and '_', at most 60 of them."""
    ascii_only = unicodedata.normalize("NFKD", PurePosixPath(key).stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "_", ascii_only).strip("._-")[:60].strip("._-") or "file"


def safe_suffix(key: str) -> str:
    """The name's extension in small letters if it is an image's, else ".bin", which nothing opens."""
    suffix = PurePosixPath(key).suffix.lower()
    return suffix if suffix in EXTENSIONS else ".bin"


def encode_key(key: str) -> str:
    """Any key as printable ASCII, for JSON; `decode_key` gives it back, whatever its bytes are."""
    return quote(os.fsencode(key))


def decode_key(text: str) -> str:
    """The inverse of `encode_key`."""
    return os.fsdecode(unquote_to_bytes(text))


def _check_part(part: str) -> Refusal | None:
    if part in ("", ".", "..") or any(sign in part for sign in PATH_SIGNS) or "/" in unquote(part):
        return Refusal("name-path", "has a name that leads to another folder")
    if part[0] == ".":
        return Refusal("name-hidden", "has a hidden name (it begins with a dot)")
    if is_hidden(part):
        return Refusal("name-hidden", "has a name of a system's own files")
    if part[0] == "-":
        return Refusal("name-dash", "has a name that begins with a dash, as an option does")
    if part[0] in FORMULA_SIGNS:
        return Refusal("name-formula", "has a name that a spreadsheet would take for a formula")
    if any(sign in MARKUP_SIGNS for sign in part):
        return Refusal("name-markup", "has a name with signs of HTML or of quoting")
    if len(os.fsencode(part)) > MAX_NAME_BYTES:
        return Refusal("name-long", f"has a name longer than {MAX_NAME_BYTES} bytes")
    return _check_signs(part)


def _check_signs(part: str) -> Refusal | None:
    classes = {unicodedata.category(sign) for sign in part}
    if classes.intersection(FORBIDDEN_CLASSES):
        return Refusal("name-control", "has invisible, control or undecodable characters in its name")
    if unicodedata.normalize("NFKC", part) != part or unquote(part) in (".", ".."):
        return Refusal("name-unicode", "has a name that is not in its normal form (NFKC)")
    if part != part.strip() or any(sign.isspace() and sign != " " for sign in part):
        return Refusal("name-unicode", "has spaces at an end of its name, or unusual ones in it")
    if "Mn" in classes or len(_scripts(PurePosixPath(part).stem)) > 1:
        return Refusal("name-unicode", "mixes the letters of several scripts in its name, some of which look alike")
    return None


def _scripts(text: str) -> set[str]:
    """The scripts of the letters, by the first word of their Unicode names; East Asian ones count as one."""
    words = {unicodedata.name(sign, "UNKNOWN").split()[0] for sign in text if sign.isalpha()}
    return {"CJK" if word in EAST_ASIAN else word for word in words}
