"""How names are written in flags: the signs between them, quotes around them, and how messages show them.

Most names are written unchanged. A name that holds ``, | = " \\`` or begins or ends with a space is put in double
quotes; inside them ``\\"`` is a quote and ``\\\\`` a backslash (``tumour="Tumor, invasive"``). Instead of quotes, each
such sign may have a backslash before it. `quoted` writes names in this form, and every message uses it: names can be
copied from a message into a flag.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fmcache.errors import SpecError

NO_CLASS = "(no class)"
"""In flags this means regions without a class; a class that has this text as its name is written in quotes."""

SIGNS = ",|="
# keyboards of other scripts type these, and word processors replace plain quotes with them; never part of a name
FOREIGN = "，、｜＝＂“”„«»"
_TOKEN = re.compile(
    r'\s*(?:(?P<sign>[,|=])|"(?P<quoted>(?:[^"\\]|""|\\.)*)"(?P<rest>[^,|=]*)|(?P<bare>(?:[^,|=\\]|\\.|\\$)+))',
    re.DOTALL,
)
_BARE_ESCAPE = re.compile(rf'\\([{SIGNS}"\\{FOREIGN}])')
# invisible characters are written by their number; surrogates are excluded, because one is half a character
_ESCAPE = re.compile(
    rf'""|\\(?:([{SIGNS}"\\])|u((?![dD][89a-fA-F])[0-9a-fA-F]{{4}})|U(00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{{4}}))'
)
COLON = re.compile(r":(?=\S)|:\s*(?:\d[\d\s-]*|#[0-9a-fA-F]*)?$")
_JOINERS = str.maketrans("", "", "\u200c\u200d")  # invisible, but part of the spelling in Persian and Indian scripts


class Word(NamedTuple):
    """A name or value of a flag; a `quoted` one is always a name, never a colour or another special word."""

    text: str
    quoted: bool = False

    @property
    def as_class(self) -> str:
        """The class that the word means; '' for regions without a class."""
        return "" if self.text == NO_CLASS and not self.quoted else self.text


def quoted(name: str) -> str:
    """Return the name of a label or class as flags accept it, in quotes if necessary; `NO_CLASS` for an empty name."""
    if not name:
        return NO_CLASS
    seen = name.translate(_JOINERS).isprintable() and name == unicodedata.normalize("NFC", name)
    signs = set(name) & {*SIGNS, *FOREIGN, '"', "\\"}
    if seen and not signs and name == name.strip() and name[0] != "#" and name != NO_CLASS and not COLON.search(name):
        return name
    return '"' + "".join(_shown(sign, seen) for sign in name) + '"'


def tokens_of(text: str, flag: str) -> list[Word | str]:
    """Return the words of a flag, and the signs ``,``, ``|`` and ``=`` between them.

    Raises
    ------
    SpecError
        When quotes are not closed, or a sign is written with punctuation of another script.
    """
    tokens: list[Word | str] = []
    at = 0
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SpecError(f"{flag} {text!r} is not UTF-8 text", next_step="type it again") from None
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        # a quote inside a word, or a quote that is not closed
        odd = found is None or (found["rest"] or "").strip() or _bare_quote(found["bare"] or "")
        if found is None or odd:
            raise SpecError(
                f"{flag} {text!r}: a double quote too many or too few",
                expected='a whole name in quotes, such as "Tumor, invasive"',
                next_step='close the quotes; a quote that is part of a name is written \\"',
            )
        at = found.end()
        if found["sign"]:
            tokens.append(found["sign"])
        elif found["quoted"] is not None:
            tokens.append(Word(_ESCAPE.sub(_unescaped, found["quoted"]), quoted=True))
        elif bare := found["bare"].strip():
            _refuse_foreign(bare, text, flag)
            tokens.append(Word(_BARE_ESCAPE.sub(r"\1", bare)))
    return tokens


def alternatives(text: str, flag: str) -> list[Word]:
    """Return the words of a flag in which ``|`` joins them."""
    tokens = tokens_of(text, flag)
    refuse_signs(tokens, text, flag, ",=", "|")
    return [token for token in tokens if isinstance(token, Word)]


def with_whole_name(part: Sequence[Word | str], text: str) -> list[Word | str]:
    """Return the tokens of `part`, from ``name=value|value`` in `text`; all before the first ``=`` becomes one word.

    ``|`` joins values only. Before the ``=`` it is part of the name.
    """
    end = part.index("=") if "=" in part else 0
    words = [token.text for token in part[:end] if isinstance(token, Word) and not token.quoted]
    if 2 * len(words) != end + 1 or len(words) < 2 or set(part[1:end:2]) != {"|"}:
        return list(part)
    written = re.search(r"\s*\|\s*".join(map(re.escape, words)), text)  # with the spaces around the sign
    return [Word(written[0]), *part[end:]] if written else list(part)


def refuse_signs(tokens: Sequence[Word | str], text: str, flag: str, signs: str, joint: str) -> None:
    """Raise SpecError when the tokens of a flag contain one of `signs`; its names are joined with `joint` only."""
    if any(token in signs for token in tokens if isinstance(token, str)):
        words = [token.text for token in tokens if isinstance(token, Word)]
        raise SpecError(
            f"{flag} {text!r}: names are joined with {joint!r}",
            expected=joint.join(quoted(word) for word in words),
            next_step=f"write them as expected; put a name that holds one of {' '.join(signs)} in double quotes: "
            f"{quoted(text.strip())}",
        )


def split_at(tokens: Sequence[Word | str], sign: str) -> Iterator[list[Word | str]]:
    """Yield the tokens between the signs of one kind, as lists."""
    part: list[Word | str] = []
    for token in tokens:
        if token == sign and isinstance(token, str):
            yield part
            part = []
        else:
            part.append(token)
    yield part


def _bare_quote(bare: str) -> bool:
    return '"' in _BARE_ESCAPE.sub("", bare)


def _refuse_foreign(bare: str, text: str, flag: str) -> None:
    if foreign := sorted(set(_BARE_ESCAPE.sub("", bare)) & set(FOREIGN)):
        raise SpecError(
            f'{flag} {text!r}: {" ".join(foreign)} is not one of the signs , | = "',
            next_step=f'type the plain sign; if it is part of a name, put the name in double quotes: "{bare}"',
        )


def _shown(sign: str, seen: bool) -> str:
    if sign in '"\\':
        return "\\" + sign
    if (sign.isprintable() or sign in "\u200c\u200d") and (seen or not unicodedata.combining(sign)):
        return sign
    return f"\\u{ord(sign):04x}" if ord(sign) < 0x10000 else f"\\U{ord(sign):08x}"


def _unescaped(found: re.Match[str]) -> str:
    sign, short, long = found.groups()
    return sign or (chr(int(short or long, 16)) if short or long else '"')
