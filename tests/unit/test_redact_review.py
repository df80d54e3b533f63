"""The page on which people mark what redaction missed and what it replaced needlessly."""

import json

import pytest

from school import artifact, draft
from schoolhouse.core.run import Run
from schoolhouse.prepare import redact
from schoolhouse.prepare.redaction.measure import read_reviews
from schoolhouse.prepare.redaction.report import PAGE
from schoolhouse.prepare.redaction.review import REVIEW, page
from schoolhouse.text.sourced import Document, Origin, write_documents

TEXT = '🩺 Dr. Ana Ünal <b>saw</b> him & "them"\r\n</script><script>alert(1)</script> Bed 4, zq called.'
ROWS = [
    {
        "id": "a",
        "text": TEXT,
        "spans": [{"start": 6, "end": 9, "type": "name"}, {"start": 10, "end": 14, "type": "name"}],
    },
    {"id": "b", "text": "Nothing here.", "spans": []},
    {"id": "c", "text": "Nor here.", "spans": []},
]


@pytest.fixture
def opened(browser, tmp_path):
    """The page of ROWS in a browser, and everything that it complains of or wants to fetch."""
    (tmp_path / PAGE).write_text(page(ROWS), encoding="utf-8")
    tab, wrong = browser.new_context(accept_downloads=True).new_page(), []
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda asked: None if asked.url.startswith(("file:", "blob:")) else wrong.append(asked.url))
    tab.goto((tmp_path / PAGE).as_uri())
    return tab, wrong


def select(tab, words):
    """As a mouse would: the words, and a blank behind them."""
    tab.evaluate(
        """words => {
          const walker = document.createTreeWalker(document.querySelector(".text"), NodeFilter.SHOW_TEXT);
          while (walker.nextNode()) {
            const at = walker.currentNode.data.indexOf(words);
            const node = walker.currentNode;
            if (at >= 0) return getSelection().setBaseAndExtent(node, at, node, at + words.length);
          }
          throw new Error("no such words");
        }""",
        words,
    )
    tab.wait_for_function("!document.querySelector('#types').hidden")


def saved(tab, path):
    with tab.expect_download() as download:
        tab.click("#save")
    download.value.save_as(path)
    return read_reviews(path)


def test_what_is_marked_on_the_page_is_saved_with_its_places(opened, tmp_path):
    tab, wrong = opened
    assert tab.locator(".text").first.evaluate("body => body.textContent") == TEXT
    tab.click("#save")
    assert "No text was read yet" in tab.text_content("#said")
    select(tab, " zq ")
    tab.click("#types button:text-is('name')")
    tab.locator(".text mark").first.click()
    tab.locator("article").nth(1).locator("input").check()
    reviews = saved(tab, tmp_path / "reviewed.jsonl")
    assert set(reviews) == {"a", "b"}
    (place,) = reviews["a"].missed
    assert (TEXT[place[0] : place[1]], place[2]) == ("zq", "name")
    assert reviews["a"].wrong == ((6, 9),)
    assert reviews["a"].text == TEXT
    assert reviews["b"].missed == reviews["b"].wrong == ()
    assert not wrong


def test_a_mark_can_be_taken_back_and_what_is_coloured_is_not_marked_again(opened, tmp_path):
    tab, wrong = opened
    select(tab, "Bed 4")
    tab.click("#types button:text-is('address')")
    tab.locator("mark.missed").last.click()
    tab.locator(".text mark").first.click()
    tab.locator(".text mark").first.press("Enter")
    tab.evaluate("getSelection().selectAllChildren(document.querySelector('.text'))")
    tab.wait_for_function("document.querySelector('#said').textContent.includes('coloured already')")
    assert tab.locator("#types").is_hidden()
    tab.evaluate("getSelection().removeAllRanges()")
    review = saved(tab, tmp_path / "reviewed.jsonl")["a"]
    assert review.missed == review.wrong == ()
    assert not wrong


def test_the_stage_leaves_the_page_and_takes_its_marks(tmp_path, browser):
    def run(name, **more):
        source = tmp_path / name
        source.mkdir()
        write_documents(
            source, [Document("id", "Dr. Vandermeer came. qzx is her niece.", Origin("a.txt", "whole file", "ab"))]
        )
        config = redact.Config(data="d", key_file=str(tmp_path / "key"), gold=str(gold), **more)
        out = draft(tmp_path / f"{name}-out")
        redact.check(config)
        redact.run(config, {"d": artifact(source)}, Run.for_tests(tmp_path / f"{name}-run"), out)
        return out

    gold = tmp_path / "gold.jsonl"
    gold.write_text('{"text": "Dr. Quell came.", "spans": [{"start": 4, "end": 9, "type": "name"}]}\n')
    first = run("first")
    (row,) = map(json.loads, (first.path / REVIEW).read_text().splitlines())
    tab = browser.new_page()
    tab.goto((first.path / PAGE).as_uri())
    select(tab, "qzx")
    tab.click("#types button:text-is('name')")
    saved(tab, tmp_path / "reviewed.jsonl")
    second = run("second", reviewed=str(tmp_path / "reviewed.jsonl"))
    assert second.meta["redaction"]["reviewed"] == {"name": [1, 2]}
    assert "qzx" in row["text"]
    assert "qzx" not in (second.path / "documents.jsonl").read_text()
