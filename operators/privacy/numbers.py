"""Numbers with a check digit: payment cards (Luhn and the issuer's range) and IBANs (mod 97 and the country's form)."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator

from operators.privacy import Span

RUN = re.compile(r"(?<![0-9A-Za-z])(?<!\d[ .-])\d++(?:[ .-]\d++)*+(?![0-9A-Za-z])")
"""Groups of digits with one space, dot or hyphen between them."""
GROUP = re.compile(r"\d+")
MOST_GROUPS = 5
ISSUERS = (
    (re.compile(r"4"), (13, 16, 19)),  # Visa
    (re.compile(r"5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"), (16,)),  # Mastercard
    (re.compile(r"3[47]"), (15,)),  # American Express
    (re.compile(r"3(?:0[0-5]|09|[689])"), (14, 16, 19)),  # Diners
    (re.compile(r"35(?:2[89]|[3-8])"), (16, 17, 18, 19)),  # JCB
    (re.compile(r"6(?:011|4[4-9]|5)"), (16, 17, 18, 19)),  # Discover
    (re.compile(r"62|81"), (16, 17, 18, 19)),  # UnionPay
    (re.compile(r"5[06-8]|6(?:0[0-9]|[37])"), (16, 17, 18, 19)),  # Maestro, RuPay, Elo
    (re.compile(r"220[0-4]"), (16, 17, 18, 19)),  # Mir
)
"""First digits and lengths in use (ISO/IEC 7812). Without them a tenth of all long numbers would be cards."""
IBAN = re.compile(r"(?<![0-9A-Za-z])[A-Za-z]{2}\d{2}(?=((?:[ -]?[0-9A-Za-z]){11,30}))")
AS_NUMBERS = {ord(letter): str(number) for number, letter in enumerate(string.ascii_uppercase, 10)}
"""A = 10 to Z = 35, as the check digits of an IBAN count letters."""


def cards(text: str) -> Iterator[Span]:
    """Card numbers of 13 to 19 digits, whole or in at most five groups (fours, or of three and more)."""
    from stdnum import ean, luhn

    for run in RUN.finditer(text):
        groups = [group.span() for group in GROUP.finditer(text, *run.span())]
        at = 0
        while at < len(groups):
            for last in reversed(range(at, min(at + MOST_GROUPS, len(groups)))):
                window = groups[at : last + 1]
                digits = "".join(text[a:b] for a, b in window)
                if _is_issued(digits) and _stands_alone(text, groups, at, last) and luhn.is_valid(digits):
                    if len(digits) == 13 and ean.is_valid(digits):
                        continue  # a barcode: shops have those, and cards of 13 digits are no longer issued
                    yield window[0][0], window[-1][1]
                    at = last
                    break
            at += 1


def _is_issued(digits: str) -> bool:
    return 13 <= len(digits) <= 19 and any(
        len(digits) in lengths and prefix.match(digits) for prefix, lengths in ISSUERS
    )


def _stands_alone(text: str, groups: list[Span], at: int, last: int) -> bool:
    """Grouped as cards are, and joined to other digits by a space at most: no decimals, no longer hyphened code."""
    window = groups[at : last + 1]
    sizes = [b - a for a, b in window]
    in_fours = set(sizes[:-1]) == {4} and sizes[-1] <= 4
    if len(window) > 1 and not (in_fours or (sizes[0] >= 4 and min(sizes) >= 3)):
        return False
    if len({text[b] for _, b in window[:-1]}) > 1:
        return False
    before = at > 0 and text[window[0][0] - 1] != " "
    after = last + 1 < len(groups) and text[window[-1][1]] != " "
    return not (before or after)


def ibans(text: str) -> Iterator[Span]:
    """IBANs, whole or in groups, in capitals or not."""
    from stdnum import iban

    done = 0
    for match in IBAN.finditer(text):
        if match.start() < done:
            continue
        end = match.end(1)
        while end - match.start() >= 15:
            whole = end == len(text) or not text[end].isalnum() or not text[end].isascii()
            if whole:
                value = re.sub("[ -]", "", text[match.start() : end])
                # the sum first, and quickly: iban.is_valid reads the country's form before it adds up
                numbers = (value[4:] + value[:4]).upper().translate(AS_NUMBERS)
                if int(numbers) % 97 == 1 and iban.is_valid(value, check_country=False):
                    yield match.start(), end
                    done = end
                    break
            end -= 1
            while text[end - 1] in " -":
                end -= 1
