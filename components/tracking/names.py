"""Names that MLflow takes, made of text that a person chose, such as a kind of defect, and that text again.

MLflow's names may hold letters, digits, `_`, `-`, `.`, spaces, `/` and `:`. All but the last two are kept as they are;
whatever else there is, each byte of its UTF-8 becomes `:` and two hex digits.
"""

import re

from components.foundation.files import digest_of

MOST = 100  # signs of one part: MLflow takes 250 of the whole name
_KEPT = re.compile(r"[\w.\- ]")
_ESCAPED = re.compile(r"(?::[0-9A-F]{2})+")


def fit_name(text: str) -> str:
    """`text` as a part of a name: "a&b" becomes "a:26b". What is longer than 100 signs then ends with a digest."""
    fit = "".join(sign if _KEPT.fullmatch(sign) else _escaped(sign) for sign in text)
    return fit if len(fit) <= MOST else f"{fit[: MOST - 13]}-{digest_of(text)[:12]}"


def chosen_text(name: str) -> str:
    """The text of which `fit_name` made a name, where it was not too long."""
    return _ESCAPED.sub(lambda found: _unescaped(found.group()), name)


def _escaped(sign: str) -> str:
    return "".join(f":{byte:02X}" for byte in sign.encode(errors="surrogateescape"))


def _unescaped(signs: str) -> str:
    return bytes.fromhex(signs.replace(":", "")).decode(errors="surrogateescape")
