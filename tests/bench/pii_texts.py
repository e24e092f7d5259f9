"""Labelled texts for the masking benchmark: seeded, written for it, with the place of every personal value known.

A text is one template of ``pii_templates.py`` with its slots filled. A slot ``{kind}`` draws a value of that kind and
labels it; slots in small letters that are no kind (``{isbn}``, ``{commit}``) are hard negatives: drawn, not labelled.
Checksums are computed here and not by the libraries that check them. Templates alternate between two halves:
``dev`` may be looked at while patterns are written, ``held`` may not.
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
import string
from dataclasses import dataclass

from tests.bench import pii_negatives
from tests.bench.pii_negatives import luhn_digit
from tests.bench.pii_templates import FILLERS, TEMPLATES

LABELLED = ("EMAIL", "PHONE", "CARD", "IBAN", "IP", "SECRET", "NAME")
SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}")
B64 = string.ascii_letters + string.digits
WORDS = ("nordwind", "harbourview", "quillpost", "tansy-labs", "vell", "blaupunkt3", "orangerie", "posta", "bücherei")
ENDINGS = (
    "org",
    "com",
    "net",
    "co.uk",
    "de",
    "fr",
    "es",
    "it",
    "pl",
    "com.br",
    "nl",
    "jp",
    "in",
    "io",
    "dev",
    "museum",
)
FIRST = {
    "en": "Amelia Jack Priya Oliver Grace Tyrone Siobhan Wei Hannah Marcus",
    "de": "Jürgen Anneliese Lukas Käthe Matthias Heike Björn Sabine",
    "fr": "Zoé Étienne Margaux Thibault Océane Rémi Solène",
    "es": "Íñigo Lucía Álvaro Ximena Rocío Joaquín",
    "it": "Giulia Niccolò Chiara Matteo Ilaria Davide",
    "pl": "Małgorzata Paweł Zofia Łukasz Agnieszka",
    "pt": "João Inês Thiago Beatriz Caetano",
    "nl": "Sjoerd Femke Joris Maartje Bram",
    "ja": "Haruto Yui Sakura Ren Kaito",
    "hi": "Aarav Ananya Rohan Lakshmi Vikram",
}
LAST = {
    "en": "Whitfield O'Connor Okafor Prescott Langley Abernathy Chen-Ross",
    "de": "Vogelsang Krämer Oberhuber Weiß Schönfeld",
    "fr": "Delacroix Lefèvre Beaumont d'Aubigny Roussel",
    "es": "Echeverría Quintana Montoya Peñalver",
    "it": "Bellandi Rossetti Marchesi Fontanesi",
    "pl": "Wiśniewska Kowalczyk Zieliński Dąbrowski",
    "pt": "Cavalcanti Figueiredo Monteiro",
    "nl": "van Rijn de Wit Hoekstra Dijkstra",
    "ja": "Takahashi Yamamoto Fujiwara",
    "hi": "Krishnamurthy Banerjee Deshpande",
}
# X is any digit, N is 2-9; the plans are those of the countries' regulators
PHONES = {
    "US": ["(AAA) NXX-XXXX", "AAA-NXX-XXXX", "+1 AAA NXX XXXX", "+1 (AAA) NXX-XXXX", "AAA.NXX.XXXX", "1-AAA-NXX-XXXX",
           "+1AAANXXXXXX"],
    "GB": ["020 7946 0XXX", "+44 20 7946 0XXX", "07911 12XXXX", "+44 7911 12XXXX", "0161 496 0XXX",
           "+44 (0)161 496 0XXX", "01632 960XXX"],
    "DE": ["030 2312 5XXX", "+49 30 23125XXX", "0171 NXXXXXX", "+49 (0)89 NXXXXXX", "0151/NXXXXXXX", "089-NXXXXXXX"],
    "FR": ["01 42 NX XX XX", "06 12 XX XX XX", "+33 6 12 XX XX XX", "+33 (0)1 44 XX XX XX", "06.78.XX.XX.XX"],
    "ES": ["612 XXX XXX", "+34 612 XX XX XX", "91 4XX XX XX", "+34 93 4XX XX XX"],
    "IT": ["347 NXXXXXX", "+39 347 NXX XXXX", "06 69XX XXXX", "+39 02 76XX XXXX"],
    "PL": ["512 XXX XXX", "+48 512 XXX XXX", "22 62X XX XX", "+48 22 62X XX XX"],
    "BR": ["(11) 9NXXX-XXXX", "+55 11 9NXXX-XXXX", "(21) 3NXX-XXXX"],
    "NL": ["06-1NXXXXXX", "020 62X XXXX", "+31 6 1NXXXXXX", "+31 20 62X XXXX"],
    "JP": ["090-1NXX-XXXX", "03-35XX-XXXX", "+81 90-1NXX-XXXX", "+81 3 35XX XXXX"],
    "IN": ["98NXX XXXXX", "+91 98NXX XXXXX", "+91-98NXXXXXXX", "022 2NXX XXXX"],
}  # fmt: skip
REGION = {"en": "US GB", "de": "DE", "fr": "FR", "es": "ES", "it": "IT", "pl": "PL", "pt": "BR", "nl": "NL", "ja": "JP",
          "hi": "IN"}  # fmt: skip
AREAS = ["212", "415", "312", "617", "206", "713", "305", "404", "503", "702", "646", "818"]
BBAN = {"DE": "n18", "GB": "a4n14", "FR": "n10c11n2", "NL": "a4n10", "ES": "n20", "IT": "a1n10c12", "PL": "n24",
        "CH": "n5c12", "AT": "n16", "BE": "n12", "SE": "n20", "IE": "a4n14", "PT": "n21", "NO": "n11", "TR": "n5n1c16",
        "SA": "n2c18"}  # fmt: skip
CARDS = (("4", 16), ("51", 16), ("55", 16), ("2221", 16), ("34", 15), ("37", 15), ("6011", 16), ("3528", 16),
         ("36", 14), ("62", 16), ("62", 19), ("4", 13))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A text and its personal values as ``(kind, start, end)``, in order; ``half`` is ``dev`` or ``held``."""

    text: str
    spans: tuple[tuple[str, int, int], ...]
    half: str
    language: str


def some(rng: random.Random, alphabet: str, n: int) -> str:
    return "".join(rng.choices(alphabet, k=n))


def name(rng: random.Random, language: str) -> str:
    return f"{rng.choice(FIRST[language].split())} {rng.choice(LAST[language].split())}"


def email(rng: random.Random, language: str) -> str:
    plain = str.maketrans("üäöéèíñçłżąęšõãúáóâßôàòìùěŁÉÍÁ", "uaoeeinclzaesoauaoasoaoiueLEIA")
    first, last = (
        re.sub(r"[^a-z]", "", part.lower().translate(plain)) or "x" for part in name(rng, language).split(" ", 1)
    )
    number = rng.randrange(100)
    local = rng.choice([f"{first}.{last}", f"{first[0]}{last}", f"{last}_{number}", f"{first}+news", f"{first}-{last}",
                        f"{first}{1950 + number}", f"{first.title()}.{last.title()}", f"{number}{last}"])  # fmt: skip
    word = rng.choice(WORDS)
    tld = rng.choice(ENDINGS)
    return f"{local}@{rng.choice(['', 'mail.', 'dept-7.'])}{word}.{tld}"


def phone(rng: random.Random, language: str) -> str:
    plan = rng.choice(PHONES[rng.choice(REGION[language].split())]).replace("AAA", rng.choice(AREAS))
    return re.sub("[XN]", lambda slot: str(rng.randrange(2 if slot[0] == "N" else 0, 10)), plan)


def card(rng: random.Random, language: str) -> str:
    prefix, length = rng.choice(CARDS)
    digits = prefix + some(rng, string.digits, length - 1 - len(prefix))
    digits += luhn_digit(digits)
    gap = rng.choice(["", " ", "-"])
    cuts = [4, 10] if length in (14, 15) else [4, 8, 12, 16]
    return gap.join(digits[a:b] for a, b in zip([0, *cuts], [*cuts, length], strict=True) if a < b)


def iban(rng: random.Random, language: str) -> str:
    country = rng.choice(list(BBAN))
    alphabets = {"n": string.digits, "a": string.ascii_uppercase, "c": string.digits + string.ascii_uppercase}
    body = "".join(some(rng, alphabets[kind], int(n)) for kind, n in re.findall(r"([nac])(\d+)", BBAN[country]))
    number = int("".join(str(int(letter, 36)) for letter in body + country + "00"))
    whole = f"{country}{98 - number % 97:02}{body}"
    return whole if rng.random() < 0.4 else " ".join(whole[i : i + 4] for i in range(0, len(whole), 4))


def ip(rng: random.Random, language: str) -> str:
    if rng.random() < 0.6:
        first = rng.choice([10, 172, 192, 203, 81, 8, 145, 193])
        return f"{first}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"
    tail = [f"{rng.randrange(1, 65536):x}" for _ in range(6)]
    return rng.choice([f"2001:db8:{':'.join(tail)}", f"fe80::{':'.join(tail[:4])}", f"2a02:{tail[0]}::{tail[1]}",
                       f"::ffff:192.0.2.{rng.randrange(255)}"])  # fmt: skip


def secret(rng: random.Random, style: str) -> str:
    """A credential with a provider's prefix, or by ``style``: ``jwt``, ``pem``, a random string (``raw``;
    ``url``: without signs that a URL would escape), a chosen ``password``."""
    if style == "jwt":
        parts = (b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"%d"}' % rng.randrange(10**9), rng.randbytes(32))
        return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    if style == "pem":
        kind = rng.choice(["RSA ", "", "EC ", "OPENSSH "])
        lines = "\n".join(some(rng, B64 + "+/", 64) for _ in range(rng.randrange(3, 20)))
        return f"-----BEGIN {kind}PRIVATE KEY-----\n{lines}\n-----END {kind}PRIVATE KEY-----"
    if style in ("raw", "url"):
        alphabet = B64 if style == "url" else rng.choice([B64, B64 + "+/", B64 + "-_"])
        return some(rng, B64, 1) + some(rng, alphabet, rng.randrange(30, 48)) + some(rng, B64, 1)
    if style == "password":
        word = rng.choice(["copper", "Heron", "Trellis", "pumice", "Marigold", "zephyr"])
        return rng.choice([f"{word}{rng.randrange(10, 9999)}!", f"{some(rng, B64, 10)}#{some(rng, B64, 3)}",
                           f"{word}-{rng.choice(['lantern', 'orbit', 'thistle'])}-{rng.randrange(100)}"])  # fmt: skip
    up = string.ascii_uppercase + string.digits
    return rng.choice(
        [
            "AKIA" + some(rng, up, 16),
            "ghp_" + some(rng, B64, 36),
            "github_pat_" + some(rng, B64, 22) + "_" + some(rng, B64, 59),
            "sk-" + some(rng, B64, 48),
            "sk-proj-" + some(rng, B64 + "-_", 60) + "A",
            "sk-ant-api03-" + some(rng, B64 + "-_", 80) + "A",
            "xoxb-" + some(rng, string.digits, 12) + "-" + some(rng, B64, 24),
            "sk_live_" + some(rng, B64, 24),
            "AIza" + some(rng, B64 + "_-", 34) + "A",
            "glpat-" + some(rng, B64, 20),
            "npm_" + some(rng, B64, 36),
            "hf_" + some(rng, string.ascii_letters, 34),
            "SG." + some(rng, B64, 22) + "." + some(rng, B64, 43),
        ]
    )


DRAW = {"EMAIL": email, "PHONE": phone, "CARD": card, "IBAN": iban, "IP": ip, "NAME": name}


def disguised(rng: random.Random, value: str, how: str | None) -> str:
    """``value`` in full-width signs (``wide``) or with zero-width and direction marks inside (``marks``)."""
    if how == "wide":
        return "".join(chr(ord(sign) + 0xFEE0) if sign.isdigit() and sign.isascii() else sign for sign in value)
    if how == "marks":
        place = rng.randrange(1, len(value))
        return value[:place] + rng.choice("\u200b\u200e\u200f\u2060\u00ad") + value[place:]
    return value


def fill(template: str, language: str, rng: random.Random) -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """The template with every slot drawn. ``{SECRET:style}`` says the style, ``{PHONE:wide}`` the disguise;
    ``{EMAIL:1}`` twice in a template is the same value twice."""
    text, spans, at, drawn = "", [], 0, {}
    for slot in SLOT.finditer(template):
        text += template[at : slot.start()]
        at = slot.end()
        kind, how = slot.groups()
        if kind in LABELLED:
            if slot[0] not in drawn:
                value = (
                    secret(rng, how or "prefix") if kind == "SECRET" else disguised(rng, DRAW[kind](rng, language), how)
                )
                drawn[slot[0]] = value
                if not (how or "").isdigit():
                    drawn.pop(slot[0])
            else:
                value = drawn[slot[0]]
            spans.append((kind, len(text), len(text) + len(value)))
        else:
            value = pii_negatives.draw(rng, kind)
        text += value
    return text + template[at:], tuple(spans)


def texts(n: int, seed: int = 0) -> list[Labelled]:
    """``n`` texts, every template about equally often; a third stand among ordinary sentences without personal data."""
    rng = random.Random(int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8]))
    made = []
    for i in range(n):
        number = i % len(TEMPLATES)
        language, template = TEMPLATES[number]
        text, spans = fill(template, language, rng)
        if rng.random() < 0.35:
            before = " ".join(rng.sample(FILLERS, rng.randrange(1, 4))) + "\n"
            after = "\n" + " ".join(rng.sample(FILLERS, rng.randrange(1, 6)))
            text = before + text + after
            spans = tuple((kind, start + len(before), end + len(before)) for kind, start, end in spans)
        made.append(Labelled(text=text, spans=spans, half=("dev", "held")[number % 2], language=language))
    return made
