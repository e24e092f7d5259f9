"""The questions of ``ruvllm evaluate live``, and the rules that say whether an answer is right."""

import pytest

from jobs.live.answers import numbers, right
from jobs.live.questions import KINDS, MOST, Question, make


def test_the_same_seed_asks_the_same_and_phases_share_nothing():
    first, fresh = make(3, (120, 80))
    assert repr(make(3, (120, 80))) == repr((first, fresh))
    assert repr(make(4, (120, 80))[0]) != repr(first)
    texts = [question.text for question in (*first.questions, *fresh.questions)]
    assert (len(first.questions), len(fresh.questions), len(set(texts))) == (120, 80, 200)
    assert {question.kind for question in first.questions} == set(KINDS)
    assert not set(first.facts) & set(fresh.facts)


def test_there_are_as_many_as_promised():
    first, fresh = make(0, (MOST - 1, 1))
    assert len({question.text for question in (*first.questions, *fresh.questions)}) == MOST


def test_what_the_memory_must_hold_says_the_answer():
    made, _ = make(1, (130, 0))
    facts = " ".join(made.facts)
    for question in made.questions:
        if question.kind in ("fact", "founder", "tower", "colour", "two_hops"):
            assert question.truth in facts


def test_no_question_says_its_own_answer():
    made, _ = make(2, (300, 0))
    for question in made.questions:
        if question.check == "number":
            assert float(question.truth) not in numbers(question.text)


def test_the_truth_alone_is_right_and_every_option_alone_is_wrong():
    made, _ = make(2, (130, 0))
    for question in made.questions:
        assert right(question, question.truth.replace(" ", ", ") if question.check == "order" else question.truth)
        assert not any(right(question, option) for option in question.options)
        assert not right(question, "")
        assert not right(question, "I don't know.")


SUM = Question(kind="sum", text="5 + 7 =", truth="12", check="number")
LONG = Question(kind="long_sum", text="What is 4821 + 3976?", truth="8797", check="number")
LARGER = Question(kind="larger", text="Which is larger, 246 or 703?", truth="703", check="first", options=("246",))
LETTER = Question(kind="first_letter", text="What is the first letter of monkey?", truth="m", check="letter")
SYMBOL = Question(kind="symbol", text="Symbol for copper?", truth="Cu", check="symbol", options=("C", "Cr"))
ORDER = Question(kind="order", text="Put in order: 9, 4, 30.", truth="4 9 30", check="order")
GATE = Question(kind="colour", text="Colour?", truth="blue", check="first", options=("red",), about="gate")
DAY = Question(kind="two_hops", text="On which day?", truth="Friday", check="first", options=("Monday",))


@pytest.mark.parametrize(
    ("question", "answer", "truth"),
    [
        (SUM, "5 + 7 = 12.", True),
        (SUM, "The answer is 12, for 7 + 5 is twelve", True),
        (SUM, "12.0", True),
        (SUM, "5 + 7 = 13, or rather 12", False),
        (SUM, "57", False),
        (SUM, "5 + 7 = 7 + 5", False),
        (SUM, "112", False),
        (LONG, "It is 8,797.", True),
        (LONG, "It is 8.797", False),
        (LARGER, "703", True),
        (LARGER, "<b>703</b> is the larger.", True),
        (LARGER, "Of 246 and 703, 703 is larger.", True),
        (LARGER, "246 is larger than 703", False),
        (LARGER, "To find the larger of 246 and 703, we", False),
        (LARGER, "1703", False),
        (LETTER, 'The first letter of "monkey" is "M".', True),
        (LETTER, "<i>M</i>", True),
        (LETTER, "It is a letter: m", True),
        (LETTER, "It is a letter.", False),
        (LETTER, "monkey", False),
        (LETTER, "Its letters are 'n' and 'm'.", False),
        (SYMBOL, "The symbol for copper is Cu.", True),
        (SYMBOL, "The symbol is C, not Cu.", False),
        (SYMBOL, "CU", False),
        (ORDER, "4, 9, 30", True),
        (ORDER, "4 < 9 < 30", True),
        (ORDER, "9, 4, 30 becomes 4, 9, 30", False),
        (GATE, "The flag is red, its gate is blue.", True),
        (GATE, "The gate is red, the flag blue.", False),
        (GATE, "Blue", True),
        (DAY, "On Fridays.", True),
        (DAY, "Not on Monday, on Friday", False),
    ],
)
def test_an_answer_is_read_as_a_reader_would(question, answer, truth):
    assert right(question, answer) is truth
