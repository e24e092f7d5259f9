"""Masking: what is masked and what isn't, by kind, and what holds for every text."""

import random
import string
from collections import Counter
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.privacy import mask as module
from operators.privacy import phones
from operators.privacy.mask import PLACEHOLDER, Finding, mask

KEY = "q7Xk2LmP9vRt4WzB8nYc3HdF6sJg1TaU"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7\nq2Vw==\n-----END RSA PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.dBjftJeZ4CVPmB92K27uhbUJU1p1rWW1gFWFOEjXk"

MASKED = [
    ("EMAIL", "write to {} please", "ada.lovelace+notes@mail.example.co.uk"),
    ("EMAIL", "Schreib an {}.", "jürgen@bücher.example"),
    ("EMAIL", "'{}'", "o'hara@example.org"),
    ("EMAIL", "mailto:{}?subject=x", "x_1@a-b.io"),
    ("EMAIL", "宛先は{}まで", "yui@example.jp"),
    ("EMAIL", "<{}>", "ivan@почта.рф"),
    ("PHONE", "or {} after six", "+49 30 23125 123"),
    ("PHONE", "or {} after six", "(212) 736-5000"),
    ("PHONE", "or {} after six", "212-736-5000"),
    ("PHONE", "or {} after six", "020 7946 0123"),
    ("PHONE", "or {} after six", "06.78.12.34.56"),
    ("PHONE", "my mobile is {}", "2127365000"),
    ("PHONE", "{} is my cell", "2127365000"),
    ("PHONE", "teléfono: {}", "612 345 678"),
    ("CARD", "card {} was refused", "4111111111111111"),
    ("CARD", "card {} was refused", "4111 1111 1111 1111"),
    ("CARD", "card {} was refused", "5555-5555-5555-4444"),
    ("CARD", "room 12 {} 11/29", "3782 822463 10005"),
    ("CARD", "card {}, thanks", "6011000990139424"),
    ("IBAN", "to {} today", "DE89370400440532013000"),
    ("IBAN", "to {} BIC COBADEFF", "DE89 3704 0044 0532 0130 00"),
    ("IBAN", "to {}.", "gb82 west 1234 5698 7654 32"),
    ("IBAN", "({})", "NL91ABNA0417164300"),
    ("IP", "from {} at noon", "10.1.2.3"),
    ("IP", "ping {}.", "203.0.113.77"),
    ("IP", "http://{}:8080/", "192.168.178.20"),
    ("IP", "from {} at noon", "2001:db8:85a3::8a2e:370:7334"),
    ("IP", "[{}]:443", "fe80::1ff:fe23:4567:890a"),
    ("IP", "http://{}:8080/", "2001:db8:2b51:97f8:9bd6:34f3:8e09:b477"),
    ("IP", "via {},", "::ffff:192.0.2.7"),
    ("SECRET", "the key {} leaked", "AKIAIOSFODNN7EXAMPLE"),
    ("SECRET", "the key {} leaked", "ghp_" + "a1B2" * 9),
    ("SECRET", "the key {} leaked", "sk-proj-" + KEY),
    ("SECRET", "the key {} leaked", "xoxb-123456789012-" + "a1B2" * 5),
    ("SECRET", "Authorization: Bearer {}", JWT),
    ("SECRET", "see\n{}\nthere", PEM),
    ("SECRET", "password={}", "hunter2!"),
    ("SECRET", 'password: "{}"', "correct horse 7"),
    ("SECRET", "DB_PASSWORD={}\nPORT=1", "s3cr3t#x"),
    ("SECRET", "Passwort: {}.", "Trellis-9041"),
    ("SECRET", "the password is {}", "pumice88"),
    ("SECRET", '{{"client_secret": "{}"}}', KEY),
    ("SECRET", "postgres://app:{}@db/vell", "pw"),
    ("SECRET", "it printed {} today", KEY),
]
ORDINARY = [
    "In 1987 the council moved 41 metres of wall; 1,234,567 people came, 12 345 678 wrote, 1.234.567 did not.",
    "on 2026-11-22 at 20:04:17.123456, or 22.11.2026 20:04, or 11/22/2026, or 20261122",
    "1.2.3 and v1.2.3.4 and version 10.0.19045.3803 and Version: 1.2.3.4 and § 1.2.3.4 and numpy==1.2.3.4",
    "ISBN 978-3-16-148410-0, ISBN 9783161484100, ISBN 0-306-40615-2, EAN 4006381333931",
    "order 4111111111111112, order 9464377090538273, order number 2127365000, invoice 20431187",
    "OID 1.3.6.1.4.1.311.21.20, DOI 10.1000/182, ticket INC0012345, 1763841857 s, 1763841857123 ms",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
    "lodash@4.17.21, git@github.com:tansy/vell.git, @app.route, 10 @ 4.50 each, x@y",
    "127.0.0.1, 0.0.0.0, 255.255.255.0, ::1, 300.1.2.3, std::vector, dead::beef, a[1:2:3], 16:9:4",
    "commit 9fceb02d0ae598e95dc970b74767f19372d61af8, 9fceb02, md5 d41d8cd98f00b204e9800998ecf8427e",
    "id 123e4567-e89b-42d3-a456-426614174000",
    "integrity sha512-" + KEY + KEY + "== and data:image/png;base64," + KEY + "aB3+/x9" * 40,
    "AbstractSingletonProxyFactoryBean3, css-1q2w3e-MuiButtonBase-root-MuiTab, /usr/lib/Python3/SitePackages/Core",
    "password: str, password=None, password: required, password = os.environ['PW'], password: <yours>, password: ****",
    "max_tokens=20480, tokens: 409600000, token = tokenizer.next_token(), tokenizer: bert-base-v2-uncased",
    "PASSWORD=${PASSWORD} PASSWORD=$PW the password is hard to guess",
    "GB82 WEST 1234 5698 7654 33, DE89370400440532013001, XX12 3456 7890 1234 5678",
    "Sort 0.123456 0.234567 0.345678 and 52.5200, 13.4050",
]


@pytest.mark.parametrize(("kind", "around", "value"), MASKED)
def test_a_value_is_masked_and_its_place_told(kind, around, value):
    text = around.format(value)
    masked = mask(text)
    start = text.index(value)
    assert masked.found == (Finding(kind=kind, start=start, end=start + len(value)),)
    assert masked.text == around.format(f"[{kind}]")


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_left_alone(text):
    assert mask(text).found == ()
    assert mask(text).text is text


@pytest.mark.parametrize("sign", ["\u200b", "\u200e", "\u200f", "\u2060", "\u00ad", "\ufeff"])
@pytest.mark.parametrize(("kind", "value"), [("CARD", "4111111111111111"), ("EMAIL", "ada@example.org")])
def test_an_invisible_sign_inside_hides_nothing(sign, kind, value):
    hidden = value[:3] + sign + value[3:9] + sign + value[9:]
    masked = mask(f"ä {hidden} ö")
    assert masked.found == (Finding(kind=kind, start=2, end=2 + len(hidden)),)
    assert masked.text == f"ä [{kind}] ö"


def test_full_width_and_foreign_digits_are_digits():
    assert mask("電話：０３－３５１２－３４５６", ("JP",)).text == "電話：[PHONE]"
    arabic = str.maketrans(string.digits, "٠١٢٣٤٥٦٧٨٩")
    assert mask("بطاقة " + "4111 1111 1111 1111".translate(arabic)).text == "بطاقة [CARD]"
    assert mask("non\u2011breaking 212\u2011736\u20115000").text == "non\u2011breaking [PHONE]"


def test_a_national_number_is_known_in_its_region_only():
    assert mask("ring 03-3512-3456", ("JP",)).text == "ring [PHONE]"
    assert mask("ring 03-3512-3456", ("US",)).found == ()
    assert mask("ring +81 3-3512-3456", ()).text == "ring [PHONE]"


def test_equal_values_get_equal_placeholders_and_numbers_only_where_there_are_several():
    assert mask("a@b.org and a@b.org").text == "[EMAIL] and [EMAIL]"
    assert mask("a@b.org, c@d.org, a@b.org, 10.1.2.3").text == "[EMAIL_1], [EMAIL_2], [EMAIL_1], [IP]"


def test_numbers_count_on_from_placeholders_already_there():
    assert mask("[EMAIL] met a@b.org").text == "[EMAIL] met [EMAIL_2]"
    assert mask("[EMAIL_7] met a@b.org and [IP] 10.1.2.3").text == "[EMAIL_7] met [EMAIL_8] and [IP] [IP_2]"


def test_touching_values_are_masked_apart():
    text = "a@b.org,4111111111111111;10.1.2.3 DE89370400440532013000"
    assert mask(text).text == "[EMAIL],[CARD];[IP] [IBAN]"


SIGNS = st.one_of(
    st.characters(),
    st.sampled_from("0123456789 -.@:/+()=\u200b\u200f\ud800４[]_"),
)
PIECES = st.one_of(
    st.text(SIGNS, max_size=8),
    st.sampled_from([value for _, _, value in MASKED]),
    st.sampled_from(["[EMAIL]", "[CARD_2]", "[IP_999999999]", "tel ", "password=", "token: ", "://u:", "0", "+", "v"]),
    st.from_regex(r"[0-9]{1,4}([ .-][0-9]{1,4}){0,6}", fullmatch=True),
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_masking_twice_is_masking_once(text):
    once = mask(text)
    again = mask(once.text)
    assert again.found == ()
    assert again.text == once.text


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_places_are_those_of_the_original_and_the_rest_is_kept(text):
    masked = mask(text)
    at, kept = 0, []
    for one in masked.found:
        assert at <= one.start < one.end
        kept.append(text[at : one.start])
        at = one.end
    kept.append(text[at:])
    rest, begin = [], 0
    for one, before in zip(masked.found, kept, strict=False):
        assert masked.text.startswith(before, begin)
        begin += len(before)
        placeholder = PLACEHOLDER.match(masked.text, begin)
        assert placeholder is not None
        assert placeholder[1] == one.kind
        begin = placeholder.end()
        rest.append(before)
    assert masked.text[begin:] == kept[-1]
    if not masked.found:
        assert masked.text == text


@settings(max_examples=200, deadline=None)
@given(st.text(SIGNS, max_size=20), st.sampled_from(MASKED), st.text(SIGNS, max_size=20))
def test_spaces_around_are_enough(before, case, after):
    """Whatever stands before and after, a value between line ends is not readable any more."""
    kind, around, value = case
    text = before + "\n\n" + around.format(value) + "\n\n" + after
    if kind != "PHONE" and around.format(value) == value:
        assert value not in mask(text).text


NEAR = [
    "a", "@", "a@", "a@a.", "a@" + "b." * 30, "1", "1 ", "1-", "1.", "1.1.", "+1", "(0", "1/(", "DE12 ", "de89 37",
    "::", "ab:", "fe80:", "eyJ", "eyJaaaaaaaaaa.", "-----BEGIN PRIVATE KEY-----AAAA ", "-----", "://a:", "password",
    "password=", 'password: "', "token   ", "[EMAIL", "sk-a", "SG." + "a" * 20 + ".", "aB3/", "a" * 60 + "1B ",
    "aA" * 40 + "1 ", "tel ", "4111 ", "4111-", "1\u200b", "１", "é@", "\ud800", "_", "'", "\n", "[EMAIL]",
]  # fmt: skip


SLOW = {"(0", "1/(", "DE12 ", "1 ", "1-", "1.", "+1"}
"""Read by the libraries sign by sign: 10 to 40 µs each, so 30 kB of them have to do."""


@pytest.mark.slow
@pytest.mark.parametrize("unit", NEAR)
def test_long_rows_of_near_matches_end(unit):
    """Ends within the timeout of a test. A pattern that backtracks over one of these would need hours."""
    size = 30_000 if unit in SLOW else 300_000
    mask((unit * (size // len(unit) + 1))[:size])


@pytest.mark.parametrize("unit", [*NEAR, *(value + " " for _, _, value in MASKED)])
def test_every_sign_is_read_a_bounded_number_of_times(unit, monkeypatch):
    """However often pieces are cut and searched again, all detectors together read a bounded multiple of the text."""
    read = Counter()

    def counting(name, detector):
        def detect(text):
            read[name] += len(text)
            return detector(text)

        return detect

    detectors = module._detectors(("US",))
    counted = [(kind, counting(place, detector)) for place, (kind, detector) in enumerate(detectors)]
    monkeypatch.setattr(module, "_detectors", lambda regions: counted)
    text = (unit * (30_000 // len(unit) + 1))[:30_000]
    mask(text)
    assert max(read.values(), default=0) <= 4 * len(text)


MANY = [
    "0", "01 ", "01-", "(1", "(01) ", "1(0", "00 - ", "0049 ", "+1 ", "07- 138 - ", "0123456 ", "012 345 6789 ",
    "012-34567, ", "020 7946 0123 ", "020 7946 0123; ", "02079460123 ", "+49 30 23125 123 ", "212-736-5000 ",
    "2127365000 tel ", "tel 2 345 678 ", "tel 1 1 1 1 1 1 1 ", "[EMAIL]0171 234567", "[IP]01 23 45 6, ", "01.02.2024 ",
]  # fmt: skip
SIZE = 32_000
"""The most that a question may have (``http.max_text_chars``)."""


@pytest.fixture
def tried(monkeypatch):
    """Counts how often the slow library really parses."""
    import phonenumbers

    count = Counter()

    class Counting(phonenumbers.PhoneNumberMatcher):
        def _parse_and_verify(self, candidate, offset):
            count["parsed"] += 1
            return super()._parse_and_verify(candidate, offset)

    monkeypatch.setattr(phonenumbers, "PhoneNumberMatcher", Counting)
    return count


@pytest.mark.parametrize("unit", MANY)
def test_the_slow_library_is_asked_a_bounded_number_of_times(unit, tried):
    text = (unit * (SIZE // len(unit) + 1))[:SIZE]
    once = mask(text)
    assert tried["parsed"] <= phones.MOST_TRIES + 2 * SIZE // phones.SIGNS_A_TRY
    assert mask(once.text).text == once.text


def test_numbers_without_a_try_left_are_masked_all_the_same(tried):
    texts = [f"020 7946 0{n:03}, 0171 2345{n:03}" for n in range(1000)]
    assert not set(string.digits) & set(PLACEHOLDER.sub("", mask("\n".join(texts)).text))
    assert tried["parsed"] < 4 * len(texts)


def test_bare_numbers_and_dates_never_come_to_the_slow_library(tried):
    rng = random.Random(0)
    bare = " ".join(f"0{rng.randrange(10**10)}" for _ in range(3000))
    dates = " ".join(
        f"{rng.randint(1, 28):02}.{rng.randint(1, 12):02}.2024 2024-01-0{rng.randint(1, 9)}," for _ in range(999)
    )
    assert mask(bare).found == mask(dates).found == ()
    assert tried["parsed"] == 0


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(0, 40), st.integers(1, 40))
def test_masking_twice_is_masking_once_also_where_tries_run_out(text, most, signs):
    with mock.patch.multiple(phones, MOST_TRIES=most, SIGNS_A_TRY=signs):
        once = mask(text)
        assert mask(once.text).found == ()


def test_random_digits_do_not_shake_it():
    rng = random.Random(0)
    for alphabet in ("0123456789 -./()+", "0123456789abcdef:.", string.printable, string.digits + " "):
        once = mask("".join(rng.choices(alphabet, k=3000)))
        assert mask(once.text).text == once.text
