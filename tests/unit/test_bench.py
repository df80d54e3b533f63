"""The benches' own arithmetic, their sides, and the page of what they found."""

import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(autouse=True)
def _bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


def test_the_page_of_speeds_says_what_is_stored():
    import table

    text = (table.DOCS / "speed.md").read_text(encoding="utf-8")
    assert table.page(text) == text, "python bench/table.py --write"


def test_every_aim_belongs_to_a_comparison_and_every_comparison_to_a_file():
    import table

    rows = table.rows()
    assert set(table.WANTED) <= {(row.work, row.beside) for row in rows if row.processor == "AMX"}
    assert all((table.RESULTS / row.source).is_file() for row in rows)
    assert len({row[:2] + row[3:] for row in rows}) == len(rows)


def test_sides_take_turns_and_the_first_round_is_not_counted(tmp_path):
    import sides

    script = tmp_path / "echo.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCH)!r})\nimport sides\n"
        "print('a library speaks')\nsides.serve(lambda number, of: {'said': [sys.argv[1], number, of]}, echo='1')\n"
    )
    made = {name: lambda name=name: sides.Side(sys.executable, str(script), name) for name in "ab"}
    with sides.sides_of(made) as both:
        assert both["a"].versions["echo"] == "1"
        answers = sides.turns(both, 2, of=7)
    assert answers == {name: [{"said": [name, number, 7]} for number in (1, 2)] for name in "ab"}


def test_arithmetic_of_growth():
    import growth

    config = growth.SMOLLM2
    bare = growth.decoding(config, 1, 0)
    assert bare.bytes == 2 * config.num_params() == 269_030_016
    eight = growth.decoding(config, 8, 1024)
    assert eight.bytes - bare.bytes == 8 * 1024 * 30 * 2 * 3 * 64 * 2
    assert eight.flops - 8 * bare.flops == 8 * 1024 * 30 * 4 * 9 * 64
    assert eight.exps == 8 * 1024 * 30 * 9
    assert growth.reading(config, 1024).flops > 2 * growth.reading(config, 512).flops
    assert growth.reading(config, 1024).exps == 1024 * 512 * 30 * 9
    few, many = growth.mixture(8), growth.mixture(128)
    assert few.active_params() - many.active_params() == 7 * (8 - 128) * (512 + 1)  # the router's rows alone
    assert growth.training(many).bytes / growth.training(few).bytes == many.num_params() / few.num_params()
    one = growth.weights_used(many, 1)
    assert one == pytest.approx(many.active_params())
    assert growth.weights_used(many, 10_000) == pytest.approx(many.num_params())


def test_steepness_is_one_where_cost_is_what_arithmetic_says(monkeypatch, capsys):
    import growth

    monkeypatch.setattr(
        growth, "speeds_of_torch", lambda: {"bytes_a_second": 1e9, "flops_a_second": 1e12, "exps_a_second": 1e10}
    )
    curves = growth.Growth(1)
    works = [growth.Work(1e9, 1e12, 0), growth.Work(2e9, 1e12, 1e10), growth.Work(4e9, 0, 0)]
    curves.judge("context", "a name", [1, 2, 3], [4.0, 8.0, 16.0], works)
    (curve,) = curves.curves
    assert curve["steepness"] == [1.0, 1.0, 2.0]
    assert curve["arithmetic_seconds"] == [4.0, 8.0, 8.0]
    assert curve["efficiency"] == 0.5
    assert "a name" in capsys.readouterr().out
    json.dumps(curve)
