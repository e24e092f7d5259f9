import math

import pytest

from operators.networks import form

QUESTION = "Which of these is 12 times 3, by A. Turing's rule?\nA. 36\nB. thirty-six\nC. 3.6"


def test_a_question_with_choices():
    read = form.of(QUESTION, 30, 99)
    assert (read.query_tokens, read.conversation_characters) == (30, 99)
    assert read.list_items == 3
    assert read.item_digits == pytest.approx(2 / 3)
    assert read.item_length == pytest.approx((2 + 10 + 3) / 3)
    assert read.stem_characters == QUESTION.index("A. 36")
    assert read.stem_question == 1.0
    assert read.stem_numbers == 2
    assert read.number_count == 4
    assert read.largest_number == 12
    assert read.lookup_form == 1.0
    assert read.line_count == 3
    assert read.hyphen_count == 1


def test_a_text_without_any_form():
    for text in ("", " ", "\n\n"):
        assert all(math.isfinite(value) for value in form.of(text, 0, 0))


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("Fill in: the ____ is a __.", "blanks", 2),
        ("Größe", "foreign_share", 2 / 5),
        ("if x = y", "lone_letters", 3 / 3),
        ("```py\n```", "code_fence", 1),
        ("Paris and Rome", "capital_words", 1),
        ("Paris and Rome", "capital_word_share", 2 / 3),
        ("a, b, (c)", "bracket_count", 1),
        ("extraordinarily long", "long_words", 0.5),
        ('"so"', "quote_marks", 2),
    ],
)
def test_one_value_each(text, name, value):
    assert getattr(form.of(text, 1, 1), name) == pytest.approx(value)


def test_only_the_beginning_is_read():
    assert form.of("a" * 4096 + "?" * 100, 1, 1).question_count == 0


@pytest.mark.parametrize("text", ["_" * 100_000, "1." * 50_000, "a" * 100_000, " " * 100_000, "\n- " * 30_000])
def test_no_text_takes_long(text):
    import time

    began = time.process_time()
    form.of(text, 1, 1)
    assert time.process_time() - began < 1.0  # a regular expression that backtracks takes minutes
