"""Code systems: where terms come from, what is found wrong, what is held out, and what the questions promise."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from school import artifact, draft, fp32_run
from schoolhouse.core.errors import DataError, RecipeError, Stopped
from schoolhouse.prepare import ontology
from schoolhouse.prepare.ontologies.checks import check_terms, cycles
from schoolhouse.prepare.ontologies.obo import read_obo
from schoolhouse.prepare.ontologies.questions import ANSWERED_BY, INFERRED, SEEN, TOLD, UNSEEN, Questions, hold_out
from schoolhouse.prepare.ontologies.sources import ICD, Read, read_source
from schoolhouse.prepare.ontologies.terms import Term, below, key, sample
from schoolhouse.prepare.ontologies.wordings import KINDS, TAUGHT, WORDINGS, held_out_wording
from schoolhouse.tasks.load import TaskTable, load_task
from schoolhouse.tasks.verify import exact, load_verifier
from schoolhouse.text.records import read_conversations
from schoolhouse.text.reply import THINK_OPEN, render_reply
from schoolhouse.text.sourced import read_documents

ANIMALS = """code,name,parent,synonyms,eats
A,animals,,,
M,mammals,A,beasts,
B,birds,A,,
F,fish,A,,
G,plants,,,
M1,cat,M,house cat|puss,F1|B1
M2,dog,M,,G1
M3,horse,M,,G1
M4,cow,M,,G1
B1,sparrow,B,,G1
B2,eagle,B,,M1
B3,owl,B,,M1
B4,gull,B,,F1
F1,herring,F,,
F2,salmon,F,,F1
F3,pike,F,,F1
F4,carp,F,,G1
G1,grass,G,,
G2,moss,G,,
"""


def made(tmp_path, text=ANIMALS, name="animals.csv", seed=0, **config):
    """The stage's folder for a source that is written first."""
    source = tmp_path / name
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    asked = ontology.Config(source=str(source), **config)
    ontology.check(asked)
    out = draft(tmp_path / f"out-{len(list(tmp_path.iterdir()))}")
    ontology.run(asked, {}, fp32_run(tmp_path, seed), out)
    return out


def rows(out, kind):
    return [json.loads(line) for line in (out.path / f"{kind}.jsonl").read_text().splitlines()]


def read_table(tmp_path, text, name="codes.csv", **columns):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_source(str(tmp_path / name), columns)


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory):
    """Questions on a chapter's part and one code."""
    folder = tmp_path_factory.mktemp("icd")
    config = ontology.Config(source=ICD, below=["E08-E13", "I10"], held_out=0.2)
    ontology.check(config)
    out = draft(folder / "out")
    ontology.run(config, {}, fp32_run(folder), out)
    return out


@pytest.fixture(scope="module")
def icd():
    import simple_icd_10_cm

    return simple_icd_10_cm


def test_icd_is_read_whole_and_a_block_with_the_code_of_its_category_is_that_category(icd):
    read = read_source(ICD, {})
    terms = {term.code: term for term in read.terms}
    assert len(icd.get_all_codes()) == 98_505
    assert len(terms) == len(read.terms) == 98_505 - 39
    assert read.left_out == {"blocks that have the code of their only category": 39}
    assert terms["I10"].name == "Essential (primary) hypertension"
    assert terms["I10"].parents == ("I10-I1A",)
    assert terms["B20"].parents == ("1",)
    assert terms["E08-E13"].name == "Diabetes mellitus"
    assert terms["1"].parents == ()
    assert any("Includes: high blood pressure" in note for note in terms["I10"].notes)


def test_what_is_asked_of_a_part_of_icd_agrees_with_the_package(diabetes, icd):
    codes = {"E08-E13", "I10", *icd.get_descendants("E08-E13")}
    assert diabetes.meta["terms"] == len(codes) == 584
    for row in rows(diabetes, "code_to_name")[1:]:
        assert row["answer"] in (icd.get_description(row["meta"]["code"]), "Diabetes mellitus")
    assert all(row["answer"] == row["meta"]["code"] for row in rows(diabetes, "name_to_code"))
    assert {row["meta"]["code"] for kind in KINDS[:-1] for row in rows(diabetes, kind)} == codes
    for row in rows(diabetes, "synonym_to_code"):
        assert any(f'"{term}"' in row["question"] for term in icd.get_inclusion_term(row["answer"]))
    for row in rows(diabetes, "is_a"):
        other = row["meta"]["others"][0]
        assert (row["answer"] == "yes") == icd.is_ancestor(other, row["meta"]["code"])
    for row in rows(diabetes, "choice"):
        parent, *wrong = row["meta"]["others"]
        assert icd.get_parent(row["meta"]["code"]) == parent
        assert len(wrong) == 3
        assert not any(icd.is_descendant(code, parent) for code in wrong)
    for row in rows(diabetes, "parent"):
        name = row["meta"]["answers"][0]
        assert name in (icd.get_description(icd.get_parent(row["meta"]["code"])), "Diabetes mellitus")


def test_the_levels_hold_what_they_say(diabetes):
    counts = diabetes.meta["questions"]
    assert "relation" not in counts
    held = {document.facts["code"] for document in read_documents(diabetes.path / "held_out")}
    assert len(held) == diabetes.meta["held_out"] > 50
    for kind, counted in counts.items():
        found = Counter(row["split"] if row["split"] == "train" else row["level"] for row in rows(diabetes, kind))
        assert {name: found[name] for name in ("train", SEEN, TOLD, UNSEEN)} == {
            name: n for name, n in counted.items() if name != "left_out"
        }
        assert (counted[UNSEEN] + counted[TOLD] > 0) == (kind in INFERRED)
        assert counted[SEEN] > 0
        for row in rows(diabetes, kind):
            assert (row["meta"]["code"] in held) == (row["level"] != SEEN)
            if row["split"] == "train":
                assert held.isdisjoint(row["meta"]["others"])
    assert 0 < counts["choice"][UNSEEN] < counts["choice"][TOLD]


def test_what_comparing_words_would_tell_is_a_level_of_its_own():
    terms = [Term("A", "red things"), Term("B", "blue things")]
    terms += [Term(f"A{n}", f"{n} red", ("A",)) for n in range(30)] + [
        Term(f"B{n}", f"{n} sky", ("B",)) for n in range(30)
    ]
    whole, _ = check_terms(Read(terms))
    questions = Questions(whole, hold_out(whole, 0.4, 0), "colours", 0.1, 0)
    for kind in ("is_a", "choice"):
        levels = {(r.asked.code[0], r.level) for r in questions.rows(kind, 1) if r.asked.code in questions.held}
        assert levels == {("A", TOLD), ("B", UNSEEN)}


def test_every_file_is_a_task_whose_gold_answers_are_right_and_others_wrong(tmp_path):
    out = made(tmp_path, held_out=0.3)
    folder = artifact(out.path)
    assert set(out.meta["questions"]) == set(KINDS)
    for kind in KINDS:
        table = TaskTable(task=f"{kind}.jsonl", of="codes", verifier=ANSWERED_BY[kind])
        task = load_task(table, {"codes": folder})
        assert task.set_aside == ()
        for split in ("train", "test"):
            for level in task.levels:
                for example in task.examples(split, level, 50, 0):
                    golds = example.meta.get("answers", [example.answer])
                    for gold in (*golds, golds[0].upper(), f" {golds[0]}. "):
                        assert task.judge(example, render_reply("well", gold)).score == 1, (example, gold)
                    wrong = {"yes": "no", "no": "yes", "A": "B"}.get(golds[0], "A")
                    assert wrong not in golds
                    assert task.judge(example, render_reply("well", wrong)).score < 1
                    assert task.judge(example, render_reply("well", f"{golds[0]} {golds[0]}")).score < 1


def test_a_relation_to_several_terms_is_answered_by_any_of_them(tmp_path):
    out = made(tmp_path)
    cat = [row for row in rows(out, "relation") if row["meta"]["code"] == "M1"]
    right = load_verifier("regex")
    for row in cat:
        assert row["meta"]["answers"] == ["herring", "sparrow"]
        assert right("Herring", row["answer"])
        assert right("sparrow.", row["answer"])
        assert not right("herring, sparrow", row["answer"])
        assert not right("pike", row["answer"])
    said = [c.messages[-1].content for c in read_conversations(out.path / "conversations.jsonl").good
            if c.meta["task"] == "relation" and c.meta["code"] == "M1"]  # fmt: skip
    assert said == ["<answer>herring</answer>", "<answer>sparrow</answer>"]


def test_conversations_are_the_training_questions_with_bare_answers(tmp_path):
    out = made(tmp_path, title="zoology")
    learnt = read_conversations(out.path / "conversations.jsonl").good
    asked = {row["question"] for kind in KINDS for row in rows(out, kind) if row["split"] == "train"}
    assert {c.messages[1].content for c in learnt} == asked
    assert len(learnt) == out.meta["rows"]
    one = next(c for c in learnt if c.meta["task"] == "name_to_code")
    assert one.messages[0].content == "Give only the result in <answer></answer>."
    assert one.messages[2].content == f"<answer>{one.meta['code']}</answer>"
    assert one.meta["source"] == "zoology"
    assert one.meta["id"].startswith("name_to_code/seen/")
    assert "zoology" in one.messages[1].content
    assert not any(THINK_OPEN in c.messages[2].content for c in learnt)


def test_a_yes_or_no_has_a_worked_way_that_names_what_is_above(tmp_path):
    asked = rows(made(tmp_path), "is_a")
    row = next(r for r in asked if r["meta"]["code"] == "M1" and r["answer"] == "yes")
    assert row["trace"].startswith('Above "cat" stand: mammals; animals. "')
    assert row["trace"].endswith('" is among them.')
    assert all(("trace" in row) == (row["split"] == "train") for row in asked)


def test_a_document_says_what_is_known_of_a_term_and_never_names_a_held_out_one(tmp_path):
    table = "code,name,parent,notes\nR,root,,\n" + "".join(f"T{n},thing {n},R,\n" for n in range(20))
    plain = made(tmp_path, table, seed=1)
    held = {d.facts["code"] for d in read_documents(plain.path / "held_out")}
    one, kept = sorted(held)[0], next(f"T{n}" for n in range(20) if f"T{n}" not in held)
    notes = f"See {one}.|Not this: thing {one[1:]} ({one})|Other: Thing {one[1:]}.|See {kept}|A note"
    out = made(tmp_path, table.replace(f"{kept},thing {kept[1:]},R,", f"{kept},thing {kept[1:]},R,{notes}"), seed=1)
    document = next(d for d in read_documents(out.path) if d.facts["code"] == kept)
    assert document.text == f"animals {kept}: thing {kept[1:]}\nComes under R: root\nSee {kept}\nA note"
    assert document.facts == {"code": kept, "name": f"thing {kept[1:]}", "parent": "R"}
    assert (document.kind, document.source.file) == ("term", "animals.csv")
    assert document.source.place == f"line {int(kept[1:]) + 3}"
    assert document.source.sha256 == ontology.fingerprint(ontology.Config(source=str(tmp_path / "animals.csv")))
    assert out.meta["lines_left_out"] == 3
    assert out.meta["documents"] + out.meta["documents_held_out"] == 21


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_ones(tmp_path):
    def files(folder, seed):
        out = made(tmp_path / folder, seed=seed)
        return {path.name: path.read_bytes() for path in out.path.rglob("*.json*")}

    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    assert files("a", 3) == files("b", 3)
    assert files("a", 3)["is_a.jsonl"] != files("a", 4)["is_a.jsonl"]


def test_keys_decide_what_is_asked_and_how_often(tmp_path):
    out = made(tmp_path, ask=["parent", "code_to_name"], phrasings=3, below=["M", "B"], licence="CC0-1.0")
    assert set(out.meta["questions"]) == {"parent", "code_to_name"}
    assert not (out.path / "is_a.jsonl").exists()
    asked = Counter(row["meta"]["code"] for row in rows(out, "code_to_name") if row["split"] == "train")
    assert set(asked.values()) == {3}
    assert set(asked) < {"M", "B", *(f"{kind}{n}" for kind in "MB" for n in range(1, 5))}
    assert out.meta["terms"] == 10
    assert out.meta["licence"] == "CC0-1.0"
    card = (out.path / "README.md").read_text()
    assert "CC0-1.0" in card
    assert "SNOMED CT needs one of your own" in card
    assert made(tmp_path, most=7).meta["terms"] == 7
    few, many = (made(tmp_path, held_out=share).meta["held_out"] for share in (0.01, 0.5))
    assert 1 == few < many


def test_a_part_keeps_the_answers_that_lie_outside_of_it(tmp_path):
    out = made(tmp_path, "code,name,parent\nA,a,\nB,b,\nC,c,A|B\nD,d,A\nE,e,A\n", below=["A"])
    for row in rows(out, "parent"):
        if row["meta"]["code"] == "C":
            assert row["meta"]["answers"] == ["a", "b"]


def test_the_first_columns_may_have_any_name_and_words_are_relations_too(tmp_path):
    text = "ATC;drug;group;treats;price\nN;nerves;;;\nN1;aspirin;N;pain|fever;2\nN2;ergot;N;migraine;5\n"
    out = made(tmp_path, text, columns={"code": "ATC", "name": "drug", "parent": "group", "treats": "treats"})
    asked = [row for row in rows(out, "relation") if row["meta"]["code"] == "N1"]
    assert {tuple(row["meta"]["answers"]) for row in asked} == {("pain", "fever")}
    assert out.meta["checks"]["relations by words"] == 1
    assert "price" not in (out.path / "relation.jsonl").read_text()


def test_a_table_is_read_with_its_bad_rows_set_aside(tmp_path):
    text = 'code,name,parent\na,one,\nb,two\n\nc,\xff,\nd,"fo"ur,\ne,five,a\n'.encode("latin-1")
    read = read_table(tmp_path, b"\xef\xbb\xbf" + text)
    assert [(t.code, t.name, t.parents, t.place) for t in read.terms] == [
        ("a", "one", (), "line 2"), ("e", "five", ("a",), "line 7"),
    ]  # fmt: skip
    assert [(bad.line, bad.reason[:8]) for bad in read.bad] == [(3, "2 cells,"), (5, "not UTF-"), (6, "quotes t")]
    tabs = read_table(tmp_path, 'code\tname\tsynonyms\n1\t5" tube\t"a ""b""|c"\n', "codes.tsv").terms
    assert (tabs[0].name, tabs[0].synonyms) == ('5" tube', ('a "b"', "c"))


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("name,parent\nx,y\n", {}, "no column 'code'"),
        ("id,name\n1,x\n", {"code": "idd", "name": "name"}, "did you mean 'id'"),
        ("code,code,name\n1,1,x\n", {}, "two columns"),
        ("", {}, "first line must name the columns"),
    ],
)
def test_a_table_without_its_columns_is_refused_before_anything_starts(tmp_path, text, columns, words):
    with pytest.raises(DataError, match=words):
        made(tmp_path, text, columns=columns)


def test_what_cannot_be_a_source_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "x.pdf").write_text("")
    (tmp_path / "x.obo").write_text("")
    for config, words in [
        ({"source": "icd-10"}, "did you mean 'icd-10-cm'"),
        ({"source": str(tmp_path / "x.pdf")}, "give 'icd-10-cm', an .obo file or a table"),
        ({"source": str(tmp_path / "x.obo"), "columns": {"code": "id"}}, "leave them out"),
        ({"source": ICD, "licence": "MIT"}, "states its licence itself"),
        ({"source": ICD, "title": " "}, "title is empty"),
    ]:
        with pytest.raises(RecipeError, match=words):
            ontology.check(ontology.Config(**config))
    with pytest.raises(DataError, match="holds no term that can be used"):
        made(tmp_path, "code,name\n,x\n")
    with pytest.raises(DataError, match="which is no code of the source"):
        made(tmp_path, below=["Q"])
    with pytest.raises(DataError, match="no term gives a question"):
        made(tmp_path, "code,name\n1,x\n", ask=["is_a"])


def test_without_its_package_icd_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'schoolhouse\[prepare\]'"):
        ontology.check(ontology.Config(source=ICD))


def test_the_fingerprint_follows_the_file_and_the_package(tmp_path):
    made(tmp_path)
    config = ontology.Config(source=str(tmp_path / "animals.csv"))
    before = ontology.fingerprint(config)
    (tmp_path / "animals.csv").write_text(ANIMALS + "Z,zebra,M,,\n")
    assert ontology.fingerprint(config) != before
    assert ontology.fingerprint(ontology.Config(source=ICD)).startswith("simple-icd-10-cm 1.")


def test_it_stops_when_asked_to(tmp_path):
    run = fp32_run(tmp_path)
    run.interrupted.set()
    (tmp_path / "x.csv").write_text(ANIMALS)
    with pytest.raises(Stopped):
        ontology.run(ontology.Config(source=str(tmp_path / "x.csv")), {}, run, draft(tmp_path / "out"))


def test_every_kind_of_trouble_is_found_counted_and_shown(tmp_path):
    text = (
        "code,name,parent,synonyms,part of\n"
        "A,alpha,,,\nB,beta,A|Q,,C\nB,beta,C,,\nB,other,A,,\nC,gamma,A,,A|Nowhere|beta\n"
        "X,ex,Y,,\nY,why,Z|A,,\nZ,zed,X,,\nS,self,S,,\n"
        ",none,,,\nN,,,,\nT,tag <answer>,,,\nL,lonely,,,\n"
        "D1,twin,A,syn|alpha|,\nD2,Twin.,A,syn|twin,\nd1,lower,A,,\nshort,row\n"
    )
    out = made(tmp_path, text)
    assert out.meta["checks"] == {
        "unreadable rows": 1,
        "terms without a code": 1,
        "terms without a name": 1,
        "terms that hold a tag of the form of replies": 1,
        "rows that say more of a code": 1,
        "codes with two names": 1,
        "parents that do not exist": 1,
        "cycles": 2,
        "terms without parent and child": 4,
        "relations to codes that do not exist": 1,
        "names of several terms": 1,
        "codes that differ by case alone": 1,
        "synonyms that are the name of another term": 1,
        "synonyms of several terms": 1,
    }
    found = json.loads((out.path / "checks.json").read_text())
    assert found["parents that do not exist"]["examples"] == ["line 3: B names Q"]
    assert found["codes with two names"]["examples"] == ["line 5: B is 'other', was 'beta'"]
    assert found["cycles"]["examples"] == ["X, Y, Z (line 7)", "S (line 10)"]
    assert found["unreadable rows"]["examples"][0].startswith("animals.csv:18: 2 cells")
    card = (out.path / "README.md").read_text()
    assert all(f"- {what}: {n}" in card for what, n in out.meta["checks"].items())
    terms = {d.facts["code"]: d.facts["parent"] for part in ("", "held_out") for d in read_documents(out.path / part)}
    assert (terms["B"], terms["Y"], terms["X"], terms["S"]) == ("A | C", "A", None, None)
    assert not any("win" in row["question"].partition("?")[0] for row in rows(out, "name_to_code"))
    assert not any('"syn"' in row["question"] for row in rows(out, "name_to_code"))
    assert {"D1", "d1"}.isdisjoint(row["answer"] for row in rows(out, "name_to_code"))
    gamma = next(row for row in rows(out, "relation") if row["meta"]["code"] == "C")
    assert gamma["meta"]["answers"] == ["alpha", "beta"]


OBO = r"""format-version: 1.4
! before the first stanza
[Term]
id: X:1 ! the first
name: Root\, with \{braces\} and a bang\! here ! a comment
def: "A \"quoted\" root\; see http\://x.org ! no comment" [PMID:1 "a title"] {source="a\"b"}
comment: Line one\nline two {not="a", part="of it"}
synonym: "Top" EXACT [] ! c
synonym: "Upper" RELATED LAY [PMID:2, PMID:3]
synonym: "Wide!" EXACT layperson [] {a="b"}
synonym: "of old" []
exact_synonym: "older" []

[Term]
id: X:2
name: Child {source="PMID:1", note="x, y"} ! comment {no="modifier"}
is_a: X:1 {is_inferred="true"} ! Root
relationship: part_of X:1 {all_some="true"} ! Root
relationship: BFO:0000051 X:3
xref: what ever "is odd

[Term]
id: X:3
name: 5" tube ! 6" tube
is_a: \
X:2
is_obsolete: false

[Term]
id: X:4
name: gone
is_obsolete: true

[Term]
id: X:5
name: bad
is_a X:1

[Term]
name: no id

[Term]
id: X:6
synonym: no quotes EXACT []

[Term]
id: X:7
name: one
name: two

[Instance]
id: X:8

[Typedef]
id: BFO:0000051
name: has part

[Term]
id: X:9
name: last"""


def test_obo_is_read_with_escapes_comments_modifiers_and_obsolete_terms(tmp_path):
    (tmp_path / "x.obo").write_bytes(OBO.encode() + b"\xff\n")
    found = read_obo(tmp_path / "x.obo")
    root, child, tube = found.terms
    assert root.name == "Root, with {braces} and a bang! here"
    assert root.notes == ('A "quoted" root; see http://x.org ! no comment', "Line one\nline two")
    assert root.synonyms == ("Top", "Wide!", "older")
    assert (child.name, child.parents, child.place) == ("Child", ("X:1",), "line 14")
    assert child.relations == {"part_of": ("X:1",), "has part": ("X:3",)}
    assert (tube.name, tube.parents) == ('5" tube', ("X:2",))
    assert found.obsolete == 1
    assert [(bad.line, bad.reason) for bad in found.bad] == [
        (34, "Term: line 37: no tag in 'is_a X:1'"),
        (39, "Term: no id"),
        (42, "Term: line 44: no text between double quotes in 'no quotes EXACT []'"),
        (46, "Term: 2 lines 'name' that differ"),
        (58, "Term: line 60: not UTF-8"),
    ]


def test_an_obo_file_becomes_questions(tmp_path):
    terms = [f"[Term]\nid: X:{n}\nname: thing {n}\nis_a: X:{n // 4}\n" for n in range(1, 40)]
    out = made(tmp_path, "[Term]\nid: X:0\nname: all\n" + "\n".join(terms), "x.obo", title="X")
    assert out.meta["terms"] == 40
    assert out.meta["questions"]["is_a"][UNSEEN] > 0


@given(st.text(max_size=12), st.text(max_size=12))
def test_two_texts_have_one_key_exactly_where_the_verifier_takes_them_for_the_same(one, two):
    assert (key(one) == key(two)) == exact(one, two)
    assert key(one) == key(f"  {one.upper()} ") or one.upper().casefold() != one.casefold()


@st.composite
def graphs(draw):
    """Terms with parents among those before them, some names and synonyms twice, some relations."""
    count = draw(st.integers(1, 30))
    terms = []
    for n in range(count):
        above = draw(st.lists(st.integers(max(0, n - 12), n - 1), max_size=2)) if n else []
        name = f"name {draw(st.integers(0, 40)) if draw(st.booleans()) else 100 + n}"
        others = draw(st.lists(st.sampled_from([f"name {k}" for k in range(100, 160)] + ["a", "b"]), max_size=1))
        related = draw(st.lists(st.integers(0, count), max_size=1))
        terms.append(
            Term(
                f"T{n}", name, tuple(f"T{k}" for k in above), {"kin": tuple(f"T{k}" for k in related)}, tuple(others)
            )
        )  # fmt: skip
    return terms


@settings(max_examples=60)
@given(graphs(), st.integers(0, 5), st.sampled_from([0.05, 0.3, 0.5]), st.integers(1, TAUGHT))
def test_nothing_of_a_held_out_term_can_be_learnt(terms, seed, share, wordings):
    whole, _ = check_terms(Read(terms))
    held = hold_out(whole, share, seed)
    questions = Questions(whole, held, "It", share, seed)
    taught = set(whole.terms) - held
    for code in held:
        term = whole.terms[code]
        assert term.parents
        for parent in term.parents:
            assert parent in taught
            assert any(child in taught for child in whole.children[parent])
    names = {key(whole.terms[code].name) for code in held}
    for kind in KINDS:
        found = list(questions.rows(kind, wordings))
        assert len({row.question for row in found}) == len(found)
        assert not found or {"train", "test"} == {row.split for row in found}
        for row in found:
            asked = row.asked
            if row.split == "train":
                said = [*asked.answers, *asked.options, *asked.fields.values()]
                assert held.isdisjoint([asked.code, *asked.others])
                assert names.isdisjoint(map(key, said))
                assert held.isdisjoint(said)
                assert row.wording != held_out_wording(kind, seed)
            elif row.level == SEEN:
                assert asked.code in taught
                assert row.wording == held_out_wording(kind, seed)
            else:
                assert asked.code in held
                assert kind in INFERRED
                assert row.wording != held_out_wording(kind, seed)
            assert _is_true(kind, row, whole)


def _is_true(kind, row, whole):
    term, asked = whole.terms[row.asked.code], row.asked
    if kind == "is_a":
        return (row.said == "yes") == (asked.others[0] in whole.ancestors(term.code))
    if kind == "choice":
        parent, *wrong = asked.others
        lines = row.question.splitlines()[-4:]
        under = [parent in whole.ancestors(code) for code in wrong]
        return f"{row.said}) {term.name}" in lines and parent in term.parents and not any(under)
    if kind == "parent":
        return {whole.terms[p].name for p in term.parents} == set(asked.answers)
    if kind == "relation":
        return {whole.terms[c].name for c in term.relations["kin"]} == set(asked.answers)
    return row.said == (term.name if kind == "code_to_name" else term.code)


@settings(max_examples=30)
@given(graphs(), st.integers(0, 3))
def test_each_thing_is_asked_in_so_many_wordings_and_yes_is_as_frequent_as_no(terms, seed):
    whole, _ = check_terms(Read(terms))
    questions = Questions(whole, hold_out(whole, 0.3, seed), "It", 0.3, seed)
    for kind in KINDS:
        train = Counter(row.asked.code for row in questions.rows(kind, 3) if row.split == "train")
        assert kind == "relation" or kind == "synonym_to_code" or set(train.values()) <= {6 if kind == "is_a" else 3}
    answers = Counter((row.split, row.level, row.said) for row in questions.rows("is_a", 2))
    for split, level, said in answers:
        assert answers[split, level, said] == answers[split, level, {"yes": "no", "no": "yes"}[said]]


@settings(max_examples=40)
@given(graphs(), st.integers(1, 30), st.integers(0, 3))
def test_a_sample_has_whatever_is_above_each_of_its_terms_and_is_no_larger_than_asked(terms, most, seed):
    whole, _ = check_terms(Read(terms))
    part = sample(whole, most, seed)
    assert 1 <= len(part.terms) <= most
    if most > len(whole.terms) - max(len(whole.ancestors(code)) for code in whole.terms):
        assert len(part.terms) == min(most, len(whole.terms))
    for code, term in part.terms.items():
        assert term.parents == whole.terms[code].parents
    assert sample(whole, most, seed).terms.keys() == part.terms.keys()


@settings(max_examples=30)
@given(graphs())
def test_a_part_is_its_tops_with_all_below_them(terms):
    whole, _ = check_terms(Read(terms))
    top = terms[0].code
    part = below(whole, [top])
    assert set(part.terms) == {top} | {code for code in whole.terms if top in whole.ancestors(code)}
    assert all(set(term.parents) <= set(part.terms) for term in part.terms.values())


@given(
    st.integers(1, 12).flatmap(lambda n: st.lists(st.lists(st.integers(0, n - 1), max_size=3), min_size=n, max_size=n))
)
def test_cycles_are_the_codes_that_reach_themselves_and_nothing_else(edges):
    parents = {str(n): [str(k) for k in above] for n, above in enumerate(edges)}

    def reached(start):
        seen, todo = set(), list(parents[start])
        while todo:
            now = todo.pop()
            if now not in seen:
                seen.add(now)
                todo += parents[now]
        return seen

    found = list(cycles(parents))
    assert sorted(code for group in found for code in group) == sorted(c for c in parents if c in reached(c))
    for group in found:
        assert all(reached(group[0]) >= {code} and group[0] in reached(code) for code in group)
    whole, _ = check_terms(Read([Term(code, f"n{code}", tuple(above)) for code, above in parents.items()]))
    assert all(code not in whole.ancestors(code) for code in whole.terms)


def test_a_chain_of_any_length_is_no_trouble():
    chain = [Term(f"C{n}", f"link {n}", (f"C{n - 1}",) if n else ()) for n in range(2000)]
    whole, findings = check_terms(Read(chain))
    assert findings["cycles"].count == 0
    assert len(whole.ancestors("C1999")) == 1999


def test_every_kind_has_wordings_that_use_what_it_is_about_and_name_the_system():
    needs = {
        "code_to_name": "{code}", "name_to_code": "{name}", "synonym_to_code": "{synonym}", "parent": "{name}",
        "is_a": "{other}", "choice": "{options}", "relation": "{relation}",
    }  # fmt: skip
    for kind in KINDS:
        assert len(set(WORDINGS[kind])) == len(WORDINGS[kind]) > TAUGHT
        assert all("{title}" in wording and needs[kind] in wording for wording in WORDINGS[kind])
    assert {held_out_wording("is_a", seed) for seed in range(60)} == set(range(len(WORDINGS["is_a"])))


def test_what_nothing_teaches_is_not_asked_of_a_term_never_met(tmp_path):
    out = made(tmp_path, "code,name,parent\nA,same,\nB,same,A\nC,other,A\n")
    assert out.meta["held_out"] == 1
    assert set(out.meta["questions"]) == {"code_to_name"}


def test_wrong_choices_come_from_further_away_where_none_are_near():
    lines = [("R", ""), ("M", "R"), ("P", "M"), ("P1", "P"), ("Q", "R"), *((f"Q{n}", "Q") for n in range(3))]
    whole, _ = check_terms(Read([Term(code, f"the {code}", (above,) if above else ()) for code, above in lines]))
    (asked,) = Questions(whole, frozenset(), "It", 0.1, 0).of("choice", "P1")
    assert asked.others[0] == "P"
    assert set(asked.others[1:]) == {"Q0", "Q1", "Q2"}
