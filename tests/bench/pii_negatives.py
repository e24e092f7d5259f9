"""Values that look like personal data and are none: the hard negatives of the masking benchmark."""

from __future__ import annotations

import base64
import random
import string
import uuid

HEX = "0123456789abcdef"


def _digits(rng: random.Random, n: int) -> str:
    return rng.choice("123456789") + "".join(rng.choices(string.digits, k=n - 1))


def _hex(rng: random.Random, n: int) -> str:
    return "".join(rng.choices(HEX, k=n))


def _check13(body: str) -> str:
    """The check digit of EAN-13 and ISBN-13 for twelve digits."""
    return str(-sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(body)) % 10)


def luhn_digit(digits: str) -> str:
    """The digit that makes ``digits`` followed by it pass Luhn."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 - place % 2)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


def isbn(rng: random.Random) -> str:
    body = rng.choice(["978", "979"]) + rng.choice(["0306406", "3161484", "8175257"]) + f"{rng.randrange(100):02}"
    whole = body + _check13(body)
    return rng.choice(
        [whole, f"{whole[:3]}-{whole[3]}-{whole[4:8]}-{whole[8:12]}-{whole[12]}", f"0-{whole[4:9]}-{whole[9:12]}-X"]
    )


def order(rng: random.Random) -> str:
    """Sixteen digits that fail Luhn."""
    body = _digits(rng, 15)
    return body + str((int(luhn_digit(body)) + rng.randrange(1, 10)) % 10)


def ean(rng: random.Random) -> str:
    body = _digits(rng, 12)
    return body + _check13(body)


def date(rng: random.Random) -> str:
    day, month, year = rng.randrange(1, 29), rng.randrange(1, 13), rng.randrange(1890, 2035)
    return rng.choice(
        [
            f"{year}-{month:02}-{day:02}",
            f"{day:02}.{month:02}.{year}",
            f"{month}/{day}/{year}",
            f"{day}/{month}/{year % 100:02}",
            f"{day} March {year}",
            f"{year}{month:02}{day:02}",
            f"{year}-{month:02}-{day:02} 20:0{day % 10}:17",
            f"{year}-{month:02}-{day:02}T09:15:00Z",
        ]
    )


def time(rng: random.Random) -> str:
    hour, minute = rng.randrange(24), rng.randrange(60)
    return rng.choice(
        [
            f"{hour:02}:{minute:02}",
            f"{hour:02}:{minute:02}:09",
            f"{hour:02}.{minute:02}",
            f"{hour:02}:{minute:02}:09.123456",
        ]
    )


def version(rng: random.Random) -> str:
    a, b, c, d = (rng.randrange(30) for _ in range(4))
    return rng.choice(
        [
            f"v{a}.{b}.{c}.{d}",
            f"version {a}.{b}.{c}.{d}",
            f"{a}.{b}.{c}",
            f"version {a}.0.19045.{3000 + d}",
            f"release {a}.{b}.{c}.{d}",
        ]
    )


def quantity(rng: random.Random) -> str:
    n = rng.randrange(10**5, 10**9)
    return rng.choice(
        [
            "41 metres",
            f"{n:,}",
            f"{n:,}".replace(",", " "),
            f"{n:,}".replace(",", "."),
            f"${n:,}.50",
            f"{n / 1e4:.4f} kg",
            f"{n} bytes",
            "1920 x 1080",
            "10 000 000",
            f"€ {n // 100}",
        ]
    )


def table(rng: random.Random) -> str:
    return rng.choice(
        [
            " ".join(str(rng.randrange(1, 5000)) for _ in range(rng.randrange(4, 9))),
            " ".join(map(str, range(1, 21))),
            "6-4 6-3 7-5",
            "\t".join(f"{rng.random():.3f}" for _ in range(6)),
        ]
    )


def identifier(rng: random.Random) -> str:
    return rng.choice(
        [
            f"INC{rng.randrange(10**7):07}",
            "RFC 2119",
            f"10.1000/{rng.randrange(1000)}",
            f"SKU-{rng.randrange(10**6)}-A",
            f"#{rng.randrange(10**6)}",
            f"ticket {rng.randrange(10**7, 10**8)}",
            f"{rng.randrange(10**9, 2 * 10**9)}",
            f"17{_digits(rng, 11)}",
            f"1Z{_hex(rng, 16).upper()}",
            "1.3.6.1.4.1.311.21.20",
        ]
    )


def coordinates(rng: random.Random) -> str:
    return f"{rng.uniform(-90, 90):.4f}, {rng.uniform(-180, 180):.4f}"


def commit(rng: random.Random) -> str:
    return _hex(rng, rng.choice([7, 12, 32, 40, 64]))


def uid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def image(rng: random.Random) -> str:
    return (
        "data:image/png;base64,"
        + base64.b64encode(b"\x89PNG\r\n\x1a\n" + rng.randbytes(rng.randrange(60, 300))).decode()
    )


def integrity(rng: random.Random) -> str:
    return "sha512-" + base64.b64encode(rng.randbytes(64)).decode()


def at(rng: random.Random) -> str:
    return rng.choice(
        [
            "lodash@4.17.21",
            "git@github.com:tansy/vell.git",
            "@kestrel_works",
            "@app.route",
            "react-dom@18.2.0",
            "10 @ 4.50 each",
            "numpy @ 2.4",
            "@types/node@22.1.0",
            "x@y",
            "m@th",
        ]
    )


def code(rng: random.Random) -> str:
    return rng.choice(
        [
            "std::vector<int>",
            "dead::beef",
            "a[1:2:3]",
            "Foo::Bar::baz",
            "::before",
            "if x == 127: pass",
            "ratio 16:9:4",
            "max_tokens=512",
            "password: str",
            "api_key: string",
            'password = os.environ["DB_PASSWORD"]',
            "token = tokenizer.next_token()",
            "password=None",
            "secret: ********",
            "password: <your password>",
            "PASSWORD=${PASSWORD}",
            "token_count: 20480",
            "tokens: 4096",
            "AbstractSingletonProxyFactoryBeanConfigurationException",
            "ACGTTGCATTAGCCGATTACAGGCATTACGATCGAT",
            "css-1q2w3e-MuiButtonBase-root-MuiTab",
            "/usr/local/lib/python3.11/site-packages/numpy/core",
            "Donaudampfschifffahrtsgesellschaftskapitän",
            "secret_name: db-credentials",
        ]
    )


def host(rng: random.Random) -> str:
    return rng.choice(["127.0.0.1", "0.0.0.0", "255.255.255.0", "localhost:8265", "::1"])


def draw(rng: random.Random, kind: str) -> str:
    """A value of the hard negative ``kind``: the name of a function above."""
    value = globals()[kind](rng)
    assert isinstance(value, str)
    return value
