"""Escaping of user text, so that Markdown, LaTeX and matplotlib show it unchanged. All escaping rules are here."""

from __future__ import annotations

import re
import unicodedata

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MARKDOWN = re.compile(
    r"[\\`*~$|<]"
    r"|(?<![^\W_])_+|_+(?![^\W_])"  # an underscore inside a word is not emphasis
    r"|\](?=[(\[:])|&(?=#?\w+;)"
    r"|^(?:[\[#+=>:-]|\d+(?=[.)]))"  # at the start of a line: headings, lists, quotes, definitions
    r"|^ | $|#+$"
)

_SIGNS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "`": r"\`{}"}
_SIGNS |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\char34{}"}
_SIGNS |= {sign: "\\" + sign for sign in "&%$#_{}"}
_SIGNS |= {"±": r"$\pm$", "†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"\S{}", "–": "--", "°": r"$^{\circ}$"}
_SIGNS |= {"≤": r"$\leq$", "≥": r"$\geq$", "×": r"$\times$", "·": r"$\cdot$", "µ": r"$\mu$", "−": "$-$"}
_SIGNS |= {"•": r"\textbullet{}"}
_GREEK = re.compile(r"GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)")
_RAISED = re.compile(r"<(super|sub)> 00([2-7][0-9A-F])")
_LIGATURE = re.compile(r"(?<=(['\-,]))\1")
_LATIN_END = 0x17F
"""Without more packages, pdfLaTeX can write Unicode characters up to about this one."""


def escape_markdown(text: str) -> str:
    """Return a line of text that Markdown (CommonMark with GitHub's tables) shows unchanged, also in a table cell."""

    def escaped(found: re.Match[str]) -> str:
        signs = found[0]
        if signs == " ":
            return "&#32;"
        return f"{signs}\\" if signs[0].isdecimal() else "".join(f"\\{sign}" for sign in signs)

    return _MARKDOWN.sub(escaped, _CONTROL.sub(" ", text))


def escape_latex(text: str) -> str:
    """Return text that LaTeX typesets unchanged, also at the start of a table row."""
    text = _CONTROL.sub(" ", text)
    broken = _LIGATURE.sub(lambda found: f"\0{found[0]}", text)  # -- must not become a dash, '' not a quotation mark
    signs = "".join("{}" if sign == "\0" else _latex_sign(sign) for sign in broken)
    return (
        f"{{{signs[0]}}}{signs[1:]}" if signs[:1] in ("[", "*") else signs
    )  # after \\ LaTeX would read them as arguments


def escape_bibtex(text: str) -> str:
    """Return text for a field of a BibTeX entry, which counts all braces, also those after a backslash."""
    return escape_latex(text).replace(r"\{", r"\textbraceleft{}").replace(r"\}", r"\textbraceright{}")


def latex_comment(text: str) -> str:
    """Return text as a LaTeX comment line."""
    return f"% {_CONTROL.sub(' ', text)}\n"


def beyond_latex(text: str) -> str:
    """Return the characters of a text, each once, that need XeLaTeX or LuaLaTeX and a font with these characters."""
    return "".join(sorted({sign for sign in text if ord(sign) > _LATIN_END and _latex_sign(sign) == sign}))


def plot(text: str) -> str:
    """Return text that matplotlib draws unchanged: a dollar sign does not start a formula."""
    return text.replace("$", r"\$")


def _latex_sign(sign: str) -> str:
    if sign in _SIGNS or sign.isascii():
        return _SIGNS.get(sign, sign)
    if raised := _RAISED.fullmatch(unicodedata.decomposition(sign)):
        base = chr(int(raised[2], 16))
        return f"${'^' if raised[1] == 'super' else '_'}{{{_SIGNS.get(base, base)}}}$"
    if greek := _GREEK.fullmatch(unicodedata.name(sign, "")):
        letter = greek[2].replace("LAMDA", "LAMBDA")
        if greek[1] == "SMALL" and letter != "OMICRON":
            return rf"$\{letter.lower()}$"
        if letter in ("GAMMA", "DELTA", "THETA", "LAMBDA", "XI", "PI", "SIGMA", "UPSILON", "PHI", "PSI", "OMEGA"):
            return rf"$\{letter.capitalize()}$"
    return sign
