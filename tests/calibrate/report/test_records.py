from calibrate.report.records import RecordTable, record_tables


def test_values_lists_and_nested_records_are_tables() -> None:
    record = {
        "seed": 3,
        "refit": True,
        "layers": [2, 4],
        "safety": {
            "C": 0.1,
            "alternatives": [{"C": 0.01, "log_loss": 0.51234}, {"C": 0.1, "log_loss": 0.5, "note": None}],
        },
    }
    assert list(record_tables(record)) == [
        RecordTable("", (), (("seed", "3"), ("refit", "yes"), ("layers", "2, 4"))),
        RecordTable("safety", (), (("C", "0.1"),)),
        RecordTable(
            "safety, alternatives",
            ("C", "log loss", "note"),
            (("0.01", "0.5123", ""), ("0.1", "0.5", "none")),
            chosen=1,
        ),
    ]


def test_records_within_alternatives_are_columns() -> None:
    record = {"layers": [4], "alternatives": [{"layers": [4], "sets": {"plain": {"brier": 0.25}}}]}
    assert list(record_tables(record))[1] == RecordTable(
        "alternatives", ("layers", "sets plain brier"), (("4", "0.25"),), chosen=0
    )


def test_nothing_is_chosen_where_nothing_agrees() -> None:
    (table,) = record_tables({"alternatives": [{"C": 1.0}, {"C": 2.0}]})
    assert table.chosen is None


def test_an_empty_record_has_no_tables() -> None:
    assert list(record_tables({})) == []
    assert list(record_tables({"rows": 1200, "names": []})) == [
        RecordTable("", (), (("rows", "1,200"), ("names", "none")))
    ]
