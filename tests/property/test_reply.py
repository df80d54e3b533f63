"""Laws of replies: any text is parsed, and a stream may be cut anywhere."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.text.reply import TAGS, StreamSplitter, parse_reply, render_reply

# Tags, halves of tags, white space and anything else, so that nearly well-formed replies are common.
PIECES = st.one_of(
    st.sampled_from([*TAGS, "<", "</", "<think", "answer>", "</ans", " ", "\n", "x", "7", "<b>"]), st.text(max_size=5)
)
REPLIES = st.lists(PIECES, max_size=12).map("".join)
PLAIN = st.text(min_size=1, max_size=30).filter(lambda text: text.strip() and not any(tag in text for tag in TAGS))


@given(REPLIES, st.booleans())
def test_parse_is_total_and_says_what_is_wrong(text, thinking):
    reply = parse_reply(text, thinking=thinking)
    assert reply.well_formed == (reply.problem is None)
    if reply.well_formed:
        assert reply.answer
        assert bool(reply.reasoning) == thinking
        assert [text.count(tag) for tag in TAGS] == ([1, 1, 1, 1] if thinking else [0, 0, 1, 1])


@given(PLAIN, PLAIN, st.booleans())
def test_parse_undoes_render(reasoning, answer, thinking):
    reply = parse_reply(render_reply(reasoning if thinking else None, answer), thinking=thinking)
    # A text may make a tag together with its neighbours; then the reply is refused, never misread.
    if reply.well_formed:
        assert reply.answer == answer.strip()
        assert reply.reasoning == (reasoning.strip() if thinking else None)
    else:
        assert "<" in reasoning + answer or ">" in reasoning + answer


@given(REPLIES, PIECES.filter(str.strip))
def test_nothing_can_be_added_around_a_well_formed_reply(text, more):
    if parse_reply(text).well_formed:
        assert not parse_reply(text + more).well_formed
        assert not parse_reply(more + text).well_formed


def split(chunks):
    splitter = StreamSplitter()
    pieces = [piece for chunk in chunks for piece in splitter.push(chunk)] + splitter.finish()
    assert all(text for _, text in pieces)
    joined = {"reasoning": "", "answer": ""}
    for kind, text in pieces:
        joined[kind] += text
    return joined


@given(REPLIES, st.lists(st.integers(0, 80), max_size=6))
def test_a_stream_may_be_cut_anywhere(text, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert split(chunks) == split([text]) == split(list(text))


@given(REPLIES)
def test_a_stream_of_a_well_formed_reply_is_its_parse(text):
    for thinking in (True, False):
        reply = parse_reply(text, thinking=thinking)
        if reply.well_formed:
            assert split(list(text)) == {"reasoning": reply.reasoning or "", "answer": reply.answer}
