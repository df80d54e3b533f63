"""The strict form of a reply, and what people and models try against it."""

import pytest

from schoolhouse.text.reply import StreamSplitter, answer_of, formed_share, parse_reply, render_reply

GOOD = "<think>\n1 + 1 = 2\n</think>\n<answer>2</answer>"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "\n " + GOOD + " \n",
        "<think>a</think><answer>2</answer>",
        "<think>a < b </think>\n\n<answer>2\n</answer>",
    ],
)
def test_well_formed(text):
    reply = parse_reply(text)
    assert reply.well_formed
    assert reply.problem is None
    assert reply.answer == "2"


ATTACKS = {
    "": "missing",
    "2": "<think> is missing",
    "<answer>2</answer>": "<think> is missing",
    "<think>a</think>2": "<answer> is missing",
    "<think>a<answer>2</answer>": "</think> is missing",
    "<think>a</think><answer>2": "</answer> is missing",
    "<answer>2</answer><think>a</think>": "wrong order",
    "<think><answer>2</answer></think>": "wrong order",
    "<think>a</answer><answer>2</think>": "wrong order",
    "<think>a<answer></think>2</answer>": "wrong order",
    "<think>a</think><answer>1</answer><answer>2</answer>": "<answer> appears 2 times",
    "<think>a</think><think>b</think><answer>2</answer>": "<think> appears 2 times",
    "<think><think>a</think></think><answer>2</answer>": "<think> appears 2 times",
    "<think>a</think><answer><answer>2</answer></answer>": "<answer> appears 2 times",
    "<think>a</think><answer>2</answer></answer>": "</answer> appears 2 times",
    "<think></think><answer>2</answer>": "nothing between <think>",
    "<think> \n</think><answer>2</answer>": "nothing between <think>",
    "<think>\n</think</think><answer>2</answer>": "nothing between <think>",
    "<think>a</think> <answer></answer</answer>": "nothing between <answer>",
    "<think>a</think><answer>< / think ></answer>": "nothing between <answer>",
    "<think>a</think><answer> </answer>": "nothing between <answer>",
    "So: <think>a</think><answer>2</answer>": "text outside the blocks: 'So:'",
    "<think>a</think> thus <answer>2</answer>": "text outside",
    "<think>a</think><answer>2</answer> or 3": "text outside",
    "<think>a</think>\u200b<answer>2</answer>": "text outside",
    "<Think>a</Think><answer>2</answer>": "<think> is missing",
    "<think >a</think><answer>2</answer>": "<think> is missing",
    "\uff1cthink\uff1ea\uff1c/think\uff1e<answer>2</answer>": "<think> is missing",
    "<th\u0456nk>a</th\u0456nk><answer>2</answer>": "<think> is missing",  # a Cyrillic i
    "<think>a<\\/think><answer>2</answer>": "</think> is missing",
    "&lt;think&gt;a&lt;/think&gt;<answer>2</answer>": "<think> is missing",
}


@pytest.mark.parametrize(("text", "problem"), ATTACKS.items())
def test_attacks_are_not_well_formed_and_the_problem_is_named(text, problem):
    reply = parse_reply(text)
    assert not reply.well_formed
    assert problem in (reply.problem or "")


def test_the_only_whole_answer_block_is_given_even_so():
    assert parse_reply("hm <answer> 7 </answer>").answer == "7"
    assert parse_reply("<answer>7</answer><answer>8</answer>").answer is None
    assert parse_reply("<answer>7<think></answer>").answer is None
    assert parse_reply("<think>x</think> 7").reasoning == "x"


def test_without_thinking_only_the_answer_block_is_asked_for():
    assert parse_reply("<answer>2</answer>", thinking=False).well_formed
    assert not parse_reply(GOOD, thinking=False).well_formed
    assert not parse_reply("It is <answer>2</answer>", thinking=False).well_formed
    assert not parse_reply("2", thinking=False).well_formed


def test_long_hostile_replies_are_parsed_in_time():
    text = "<think>" * 50_000 + "<answer>" * 50_000
    assert parse_reply(text).problem == "<think> appears 50000 times"


def test_rendered_replies_are_well_formed():
    assert parse_reply(render_reply("a\nb", "2")).reasoning == "a\nb"
    assert render_reply(None, "2") == "<answer>2</answer>"


def split(text, cut):
    splitter = StreamSplitter()
    pieces = splitter.push(text[:cut]) + splitter.push(text[cut:]) + splitter.finish()
    return tuple("".join(t for kind, t in pieces if kind == wanted) for wanted in ("reasoning", "answer"))


def test_a_stream_is_split_at_the_tags_wherever_it_is_cut():
    for cut in range(len(GOOD) + 1):
        assert split(GOOD, cut) == ("1 + 1 = 2", "2")


def test_a_stream_without_tags_is_an_answer():
    assert split("Hello there. ", 3) == ("", "Hello there.")
    assert split("a <b> c <thin", 12) == ("", "a <b> c <thin")
    assert split("Well:<answer>5</answer>", 5) == ("", "Well:\n5")


def test_a_stream_shows_text_as_soon_as_it_is_certain():
    splitter = StreamSplitter()
    assert splitter.push("<think>so") == [("reasoning", "so")]
    assert splitter.push(" it") == [("reasoning", " it")]
    assert splitter.push(" is</") == [("reasoning", " is")]
    assert splitter.push("b>") == [("reasoning", "</b>")]


def test_signs_of_comparison_are_answers():
    for answer in ("<", ">", "/", "<>", "< 3"):
        assert parse_reply(f"<think>a < b</think><answer>{answer}</answer>").answer == answer
        assert parse_reply(f"<think>a < b</think><answer>{answer}</answer>").well_formed


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (GOOD, 1.0),
        ("nothing", 0.0),
        ("<think>\nno end", 0.0),
        ("<think>a</think>", 0.25),
        ("<think>a</think> b <answer>", 0.5),
        (GOOD + " more", 0.75),
        ("<think>\n<answer>7</answer>", 0.0),  # what is skipped is not made up for
        ("<think></think><answer>7</answer>", 0.0),  # an empty block closes nothing
        ("<think>a</think><answer> </answer>", 0.5),
        ("<think>a<think>", 0.0),
        ("<answer>7</answer><think>a</think>", 0.0),
        (GOOD + GOOD, 0.0),
    ],
)
def test_how_much_of_the_form_is_there(text, share):
    assert formed_share(text) == pytest.approx(share)


def test_without_thinking_the_form_is_the_answer_block():
    found = [formed_share(text, thinking=False) for text in ("<answer>7</answer>", "<answer>7", "7", GOOD)]
    assert found == pytest.approx([1.0, 0.0, 0.0, 0.0])


def test_what_a_user_is_shown():
    assert answer_of(GOOD) == "2"
    assert answer_of("Hello there.") == "Hello there."
    assert answer_of("<think>a</think>Hello.") == "Hello."
    assert answer_of("<think>never ends") == ""
