"""Telling another language from the wanted one, sentence by sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.core.errors import RecipeError
from schoolhouse.tasks.load import load_tasks
from schoolhouse.text.language import check_language, share_in
from schoolhouse.text.reply import reasoning_of

SENTENCES = {
    "en": "First the blue box goes to the top, then green is added to it",
    "de": "Zuerst kommt die blaue Kiste nach oben, dann wird eine grüne dazugestellt",
    "fr": "D'abord la boîte bleue va en haut, puis on ajoute la verte",
    "zh": "首先把蓝色的盒子放到最上面",
    "ar": "أولا توضع العلبة الزرقاء في الأعلى",
}


@pytest.mark.parametrize("wanted", SENTENCES)
def test_a_text_in_one_language_is_in_it_and_in_no_other(wanted):
    for spoken, sentence in SENTENCES.items():
        assert share_in(f"{sentence}. {sentence}!", wanted) == float(spoken == wanted)


def test_the_share_is_that_of_the_letters():
    mixed = share_in(f"{SENTENCES['en']}. {SENTENCES['de']}.", "en")
    assert 0.4 < mixed < 0.55
    assert share_in(f"{SENTENCES['en']}. {SENTENCES['de']}.", "de") == pytest.approx(1 - mixed)


@pytest.mark.parametrize("text", ["", "3 + 4 = 7", "x = 12; y = 3", "ok. 7"])
def test_what_has_hardly_a_letter_speaks_against_no_language(text):
    assert share_in(text, "en") == share_in(text, "zh") == 1.0


@pytest.mark.parametrize("name", ["boxes", "arithmetic"])
def test_the_worked_traces_are_in_english(name):
    (task,) = load_tasks([name])
    for level in task.trace_levels:
        for example in task.examples("train", level, 20, 0):
            assert share_in(example.trace, "en") == 1.0


@given(st.text())
def test_any_text_has_a_share(text):
    assert 0.0 <= share_in(text, "en") <= 1.0


def test_a_language_that_cannot_be_told_is_refused_with_what_was_meant():
    check_language("en")
    with pytest.raises(RecipeError, match="language is 'eng'; did you mean 'en'"):
        check_language("eng")
    with pytest.raises(RecipeError, match="language is 'english': give a two-letter code"):
        check_language("english")


def test_reasoning_is_what_stands_in_the_think_block_or_else_everything():
    assert reasoning_of("<think>so it is</think><answer>7</answer>") == "so it is"
    assert reasoning_of("so it <think> is").split() == ["so", "it", "is"]
