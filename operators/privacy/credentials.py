"""Keys, tokens and passwords: by the form their issuer gives them, by the word before them, or by looking random.

Forms are those of the issuers' own documents. Hashes, UUIDs, checksums and embedded images look random too and are
left alone: hex only, a known prefix, or far longer than a key.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from operators.privacy import Span

PEM = re.compile(r"-----(BEGIN|END) [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
PEM_BODY = re.compile(r"[A-Za-z0-9+/=\s:,-]{0,16000}+")
ISSUED = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}|AIza[\w-]{35}|ya29\.[\w-]{20,255}|GOCSPX-[\w-]{28}"
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255}|gl(?:pat|dt|rt|ptt|cbt)-[\w-]{20,255}"
    r"|xox[abceoprs]-[\w-]{10,255}|xapp-[\w-]{20,255}|(?:sk|pk|rk)_(?:live|test)_\w{16,255}|whsec_[\w+/=-]{24,255}"
    r"|sk-(?=[\w-]{0,80}\d)(?=[\w-]{0,80}[A-Z])[\w-]{20,255}|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,255}"
    r"|SG\.[\w-]{16,32}\.[\w-]{32,64}|dop_v1_[a-f0-9]{64}|shp(?:at|ss|ca|pa)_[a-fA-F0-9]{32}|hv[sb]\.[\w-]{24,255}"
    r"|AGE-SECRET-KEY-1[A-Z0-9]{58}|\d{8,10}:AA[\w-]{33}"
    r"|eyJ[\w-]{8,4096}\.[\w-]{4,8192}\.[\w-]{0,2048}"
    r")(?![A-Za-z0-9_])",
    re.ASCII,
)
IN_URL = re.compile(r"://[^\s/@:?#]{0,128}+:([^\s/@]{1,512}+)@")
CHOSEN_NAMES = (
    r"pass(?:word|wd|phrase|code)|passwor[dt]|kennwort|\bpwd|mot de passe|contraseña|senha|wachtwoord|hasło|パスワード"
)
ISSUED_NAMES = (
    r"secret|token|api[ _-]?key|access[ _-]?key|auth[ _-]?key|private[ _-]?key|signing[ _-]?key|bearer|credential"
)
ASSIGNED = re.compile(
    rf"(?:(?P<password>{CHOSEN_NAMES})|(?P<token>{ISSUED_NAMES}))s?(?!(?-i:[a-z]))[\w-]{{0,24}}+[\"'`]?"
    rf"\s{{0,3}}(?:[:=]>?=?|：|\bis\b|\blautet\b|\best\b|\bes\b|(?<=bearer)\s)\s{{0,3}}"
    rf"(?:(?P<quote>[\"'`])(?P<quoted>[^\n\"'`]{{4,256}}+)(?P=quote)|(?P<bare>[^\s\"'`,;<>{{}}\[\]]{{4,512}}+))",
    re.I,
)
NO_VALUE = re.compile(
    r"\$[({]|\$\w+\Z|%[(s]|\{\{|\{\w*\}|<|\(|\*+\Z|(.)\1+\Z"
    r"|[A-Za-z_][\w-]*(?:\.[A-Za-z_]\w*)*[(\[]|(?i:os|self|config|settings|env|process)\."
)
"""A reference to a value, or a mask, where the value would stand."""
WORDS = re.compile(r"[^\W\d_]+(?:[._/-]+[^\W\d_]+)*")
NAMED_PART = re.compile(r"[A-Z]?[a-z]+(?:[A-Z][a-z]+)*|[A-Z]+|\d{0,4}")
PART = re.compile(r"[-_/+]")
RANDOM = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{24,}+={0,2}+")
LONGEST = 200
"""Longer random runs are data (images, archives), not keys."""
CHECKSUM = re.compile(r"(?:sha\d{1,3}|md5|blake\w{1,3}|h1)[-:=]", re.I)


def credentials(text: str) -> Iterator[Span]:
    """Credentials that say what they are: PEM private keys, issuers' forms, passwords in URLs and assignments."""
    yield from _pem(text)
    for match in ISSUED.finditer(text):
        yield match.span()
    if "://" in text:
        for match in IN_URL.finditer(text):
            yield match.span(1)
    for match in ASSIGNED.finditer(text):
        name = "quoted" if match["quoted"] else "bare"
        value = match[name].rstrip(".,:)") if name == "bare" else match[name]
        if _is_chosen(value, match["password"] is not None):
            yield match.start(name), match.start(name) + len(value)


def _pem(text: str) -> Iterator[Span]:
    """Private key blocks; one without its end goes as far as it looks like one."""
    opened: re.Match[str] | None = None
    for mark in [*PEM.finditer(text), None]:
        if opened is not None and mark is not None and mark[1] == "END":
            yield opened.start(), mark.end()
        elif opened is not None:
            body = PEM_BODY.match(text, opened.end(), mark.start() if mark else len(text))
            yield opened.start(), body.end() if body else opened.end()
        opened = mark if mark is not None and mark[1] == "BEGIN" else None


def _is_chosen(value: str, password: bool) -> bool:
    """Whether an assigned value is a credential and no type, reference, count or ordinary word."""
    if NO_VALUE.match(value):
        return False
    if len(value) >= 16 and " " not in value and _changes_often(value):
        return True
    if WORDS.fullmatch(value.rstrip("!?")):
        return False
    if password:
        return len(value) >= 4
    digits, letters = sum(sign.isdigit() for sign in value), sum(sign.isalpha() for sign in value)
    return len(value) >= 8 and digits > 0 and letters > 2 and " " not in value


def random_runs(text: str) -> Iterator[Span]:
    """Runs of 24 to 200 signs that look drawn by chance: three kinds of sign, often changing, high entropy."""
    for match in RANDOM.finditer(text):
        value = match[0].rstrip("=")
        if len(value) <= LONGEST and _looks_random(value) and not _is_data(text, match):
            yield match.span()


def _looks_random(value: str) -> bool:
    if not {"a", "A", "0"} <= set(_kinds(value)):
        return False
    if 2 * sum(len(part) for part in PART.split(value) if NAMED_PART.fullmatch(part)) >= len(value):
        return False  # a path, the name of a class: words joined by signs
    share = [count / len(value) for count in Counter(value).values()]
    entropy = -sum(p * math.log2(p) for p in share)
    return _changes_often(value) and entropy >= 0.8 * math.log2(len(value))


def _kinds(value: str) -> list[str]:
    return ["a" if sign.islower() else "A" if sign.isupper() else "0" if sign.isdigit() else "-" for sign in value]


def _changes_often(value: str) -> bool:
    """Whether small letters, capitals, digits and signs alternate as in a drawn string (about 0.6 of all places)."""
    return sum(a != b for a, b in pairwise(_kinds(value))) >= 0.35 * len(value)


def _is_data(text: str, match: re.Match[str]) -> bool:
    """A checksum, an embedded file, or one of many lines of base64 (a certificate, an attachment)."""
    before = text[max(0, match.start() - 8) : match.start()]
    if CHECKSUM.match(match[0]) or CHECKSUM.search(before) or before.endswith("base64,"):
        return True
    alone = before[-1:] in ("", "\n") and text[match.end() : match.end() + 1] in ("", "\n", "\r")
    return alone and len(match[0]) in (64, 76)
