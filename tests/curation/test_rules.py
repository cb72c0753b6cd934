"""Rules: what they may say, that splitting keeps their meaning, and what they answer."""

from __future__ import annotations

import json
import multiprocessing

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.functions import FUNCTIONS, callable_functions, locked_duckdb
from curation.rules import (
    BASE_COLUMNS,
    RuleColumn,
    RuleError,
    combine_sql,
    judge,
    outcome_sql,
    parse_rule,
    reason,
    rule_digest,
    rule_from_json,
    rule_to_json,
)

MEDIA = frozenset({"image", "video"})
KNOWN = {
    **BASE_COLUMNS,
    "width": RuleColumn(pa.int32(), MEDIA, "medium"),
    "height": RuleColumn(pa.int32(), MEDIA, "medium"),
    "aspect_ratio": RuleColumn(pa.float64(), MEDIA, "medium"),
    "aesthetic": RuleColumn(pa.float32(), frozenset({"image"}), "medium"),
    "duration": RuleColumn(pa.float64(), frozenset({"video"}), "medium"),
    "boxes": RuleColumn(pa.list_(pa.int32()), MEDIA, "medium"),
    "embedding": RuleColumn(pa.list_(pa.float32()), MEDIA, "medium", wide=True),
    "sharp": RuleColumn(pa.bool_(), MEDIA, "medium"),
    "größe": RuleColumn(pa.int32(), MEDIA, "medium"),
}
P = {name: RuleColumn(pa.bool_()) for name in "pqrs"} | {name: RuleColumn(pa.int32()) for name in "xyz"}


def rule(expression, known=KNOWN, **more):
    return parse_rule("r", expression, known, **more)


def flat(*rows):
    """Rows (uid, m, medium_kind, {column: value}) as a table with all narrow columns of KNOWN."""
    data = {"uid": [r[0] for r in rows], "m": pa.array([r[1] for r in rows], pa.int16()), "medium_kind": [r[2] for r in rows]}
    for name, column in KNOWN.items():
        data[name] = pa.array([r[3].get(name) for r in rows], column.type)
    return pa.table(data)


def outcomes(checked, *rows):
    table = judge(checked, flat(*rows))
    assert table.schema == pa.schema([("uid", pa.string()), ("outcome", pa.int16())])
    return dict(zip(table["uid"].to_pylist(), table["outcome"].to_pylist(), strict=True))


def outcome(checked, kind="image", **values):
    return outcomes(checked, ("u", 0, kind, values))["u"]


@pytest.mark.parametrize(
    ("expression", "conjuncts"),
    [
        (
            "aspect_ratio between 0.33 and 3.0 and least(width, height) >= 64",
            ["aspect_ratio between 0.33 and 3.0", "least(width, height) >= 64"],
        ),
        ("width BETWEEN 1 AND 2", ["width BETWEEN 1 AND 2"]),
        ("width not between 1 and 2 and not (height between 3 and 4)", ["width not between 1 and 2", "not (height between 3 and 4)"]),
        ("caption = 'this and that' AND source = 'it''s and'", ["caption = 'this and that'", "source = 'it''s and'"]),
        ("caption = e'\\' and (' and width > 1", ["caption = e'\\' and ('", "width > 1"]),
        ("width > 1 and height > 1 or sharp", ["width > 1 and height > 1 or sharp"]),
        ("not (width > 1 and height > 1)", ["not (width > 1 and height > 1)"]),
        ("(width > 1 and (height > 2)) and sharp", ["width > 1", "(height > 2)", "sharp"]),
        ("width > 1 and ((height > 2 and (sharp)))", ["width > 1", "height > 2", "(sharp)"]),
        ("(width+1)*2 > 3 and 2*(1+height) > 3", ["(width+1)*2 > 3", "2*(1+height) > 3"]),
        ("case when sharp and width > 1 then 1 else 2 end > 1 and sharp", ["case when sharp and width > 1 then 1 else 2 end > 1", "sharp"]),
        ("kind in ('image', 'a and b')and(sharp)", ["kind in ('image', 'a and b')", "(sharp)"]),
        (
            "len(list_filter(boxes, lambda b: b > 1 and b < 9)) = 0 and sharp",
            ["len(list_filter(boxes, lambda b: b > 1 and b < 9)) = 0", "sharp"],
        ),
        ("\"width\" > 1\n  AND\n  caption LIKE '%é and ü%' and größe > 1", ['"width" > 1', "caption LIKE '%é and ü%'", "größe > 1"]),
        ("caption is not null and transcription is null", ["caption is not null", "transcription is null"]),
        ("sharp", ["sharp"]),
    ],
)
def test_top_level_ands_split_and_nothing_else(expression, conjuncts):
    assert list(rule(expression).conjuncts) == conjuncts


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("width >", "not an SQL expression"),
        ("1=1); drop table t; --", "semicolon|comment"),
        ("1=1) or (1=1", "not an SQL expression"),
        ("width > 1 -- and height > 1", "comment"),
        ("width > 1 /* and */", "comment"),
        ("width > 1;", "semicolon"),
        ("width > 1 group by width", "condition alone"),
        ("width > 1 order by width", "condition alone"),
        ("width > 1 limit 1", "condition alone"),
        ("width > 1 union select 1", "condition alone"),
        ("width > 1 having true", "condition alone"),
        ("width > 1 qualify true", "condition alone|not an SQL"),
        ("width > (select 1)", "subquery"),
        ("exists (select 1)", "subquery"),
        ("width in (select 1)", "subquery"),
        ("width = any([1, 2])", "subquery"),
        ("width in (from 'x.csv')", "subquery"),
        ("sum(width) > 1", r"sum\(\) is not among"),
        ("count(*) > 1", "is not among"),
        ("max(width) filter (where sharp) > 1", "is not among|FILTER"),
        ("row_number() over () = 1", "window"),
        ("sum(width) over () = 1", "window"),
        ("width > ?", "parameter|not an SQL"),
        ("width > $x", "parameter"),
        ("caption = $$a$$", "quoted"),
        ("width > :x", "parameter|not an SQL"),
        ("#1 = 1", "by number"),
        ("columns(*) > 1", "name the columns"),
        ("*", "name the columns"),
        ("caption collate nocase = 'x'", "COLLATE"),
        ("width = default", "DEFAULT"),
        ("main.upper(caption) = 'X'", "bare name"),
        ("system.main.upper(caption) = 'X'", "bare name"),
        ("caption.upper() = 'X'", "bare name"),
        ("caption -> '$.a' = '1'", "lambda"),
        ("widht > 1", "did you mean 'width'"),
        ("flat.width > 1", "no column 'flat.width'"),
        ("t.width > 1", "no column 't.width'"),
        ("typed.width > 1", "no column"),
        ("rowid > 1", "no column 'rowid'"),
        ("current_date > '2020-01-01'", "no column 'current_date'"),
        ("current_timestamp is null", "no column"),
        ("current_user = 'root'", "no column"),
        ("list_filter(boxes, lambda b: c > b) = [1]", "no column 'c'"),
        ("len(list_filter(boxes, lambda b: b > 1)) > b", "no column 'b'"),
        ("embedding is not null", "wide"),
        ("uid = 'x'", "no column 'uid'"),
        ("medium_kind = 'image'", "no column"),
        ("width", "INTEGER, not a condition"),
        ("null", "not a condition"),
        ("upper(width) = 'X'", "No function matches"),
        ("width > 'wide'", "onvert"),
        ("caption::foo = 1", "foo"),
        ("boxes > 1", "r: |annot"),
        ("aesthetic > 1 + duration", "would never apply"),
        ("caption = 'x\0y'", "control character"),
        ("caption = '\ud800'", "control character"),
        ("caption = 'open", "never closed"),
        ('"width > 1', "never closed"),
        ("(" * 5000 + "sharp" + ")" * 5000, "characters"),
        ("(" * 4000, "nested brackets"),
        ("(" * 101 + "sharp" + ")" * 101, "nested brackets"),
        ("not " * 2000 + "sharp", "nested more than"),
        ("width" + " + 1" * 2000 + " > 1", "nested more than"),
        ("width" + "::int" * 900 + " > 1", "nested more than"),
        ("case when sharp then " * 150 + "true" + " end" * 150, "nested more than"),
        ("caption = '" + "x" * 10_000 + "'", "characters"),
    ],
)
def test_what_is_no_rule_is_refused(expression, told):
    with pytest.raises(RuleError, match=told):
        rule(expression)


IMPURE = """random() uuid() gen_random_uuid() now() today() current_setting('threads') getvariable('x') getenv('HOME')
nextval('s') currval('s')
txid_current() version() current_database() current_schema() current_schemas(true) current_query() get_current_time() current_localtime()
current_localtimestamp() transaction_timestamp() age(make_date(2020,1,1)) setseed(0.5) error('x') sleep_ms(1) write_log('x') stats(width)
pg_sleep(1) assert_true(sharp) user() session_user() in_search_path('a','b') read_text('/etc/passwd') read_blob('/etc/passwd')
read_csv('x') glob('/etc/*') list_aggr(boxes,'reservoir_quantile',0.5) list_aggregate(boxes,'sum') aggregate(boxes,'sum') unnest(boxes)
generate_series(1,100000000) range(100000000) repeat('x',1000000000) lpad('x',1000000000,'y') json_serialize_sql('x')
json_deserialize_sql('{}') json_execute_serialized_sql('{}') query('x') hash(width) ago(to_days(1)) invoke(width) alias(width)
get_block_size('memory') current_connection_id() parse_duckdb_log_message('a','b') create_sort_key(width,'asc') cast_to_type('1',1)
any_value(width) first(width) list(width) string_agg(caption) grouping(width) __internal_compress_string_utinyint(caption)""".split()


@pytest.mark.parametrize("call", [*IMPURE, "upper(random()::varchar)", "coalesce(1, now())", "[random()]"])
def test_functions_that_are_not_pure_are_refused(call):
    for frame in ("{} is null", "sharp and (width > 1 or {} is not null)", "list_transform([1], lambda b: {}) is null"):
        with pytest.raises(RuleError, match=r"is not among|not an SQL|GROUPING|no column"):
            rule(frame.format(call))


def test_every_listed_function_exists_and_none_is_volatile():
    assert callable_functions() == FUNCTIONS
    rows = locked_duckdb().execute("select distinct function_name from duckdb_functions() where stability <> 'CONSISTENT'").fetchall()
    assert not FUNCTIONS & {name for (name,) in rows}


def test_the_engine_is_locked(tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    local = pa.table({"a": [1]})
    assert local.num_rows == 1
    files = [f"select * from '{secret}'", f"select * from read_text('{secret}')", f"copy (select 1) to '{tmp_path}/out.csv'"]
    settings = ["set threads = 4", "set enable_external_access = true", "install httpfs"]
    for query in (*files, *settings, f"attach '{tmp_path}/x.db'", "select * from local"):
        with pytest.raises(Exception, match=r"Permission|configuration|does not exist|disabled"):
            locked_duckdb().execute(query)
    assert list(tmp_path.iterdir()) == [secret]


def test_positions_point_into_the_expression():
    with pytest.raises(RuleError) as told:
        rule("caption = 'é' and widht > 1")
    assert told.value.position == len("caption = 'é' and ")
    with pytest.raises(RuleError) as told:
        rule("sharp and width > > 1 ~")
    assert told.value.position is not None


def test_known_names_are_found_whatever_their_case():
    checked = rule('WIDTH > 1 and "Height" > 1')
    assert checked.columns == {"width", "height"}
    assert outcome(checked, width=2, height=1) == 2


def test_the_first_part_that_fails_or_is_missing_is_the_reason():
    checked = parse_rule("size", "width >= 64 and height >= 64 and aspect_ratio < 3", KNOWN)
    assert outcome(checked, width=64, height=64, aspect_ratio=1.0) == 0
    assert outcome(checked, width=63, height=1, aspect_ratio=9.0) == 1
    assert outcome(checked, width=64, height=1, aspect_ratio=None) == 2
    assert outcome(checked, width=64, height=None, aspect_ratio=9.0) == -2
    assert outcome(checked, width=None, height=1, aspect_ratio=9.0) == -1
    assert reason(checked, 2) == "size: height >= 64"
    assert reason(checked, -3) == "missing score: aspect_ratio < 3"


def test_a_value_the_expression_fails_on_is_missing_and_not_an_end_of_the_run():
    checked = rule("caption::int > 3 and 10 // turns > 1")
    table = [("a", 0, "text", {"caption": "7", "turns": 1}), ("b", 0, "text", {"caption": "x", "turns": 1}),
             ("c", 0, "text", {"caption": "7", "turns": 0}), ("d", 0, "text", {"caption": "3", "turns": 1})]  # fmt: skip
    assert outcomes(checked, *table) == {"a": 0, "b": -1, "c": -2, "d": 1}


def test_a_part_passes_where_its_columns_do_not_apply():
    checked = rule("aesthetic > 5 and duration < 10 and caption_chars > 0")
    assert [p.kinds for p in checked.parts] == [{"image"}, {"video"}, {"text", "image", "video", "pdf"}]
    assert outcome(checked, "text", caption_chars=1) == 0
    assert outcome(checked, "text", caption_chars=0) == 3
    assert outcome(checked, "image", caption_chars=1, aesthetic=4) == 1
    assert outcome(checked, "image", caption_chars=1) == -1
    assert outcome(checked, "video", caption_chars=1) == -2
    assert outcome(checked, "video", caption_chars=1, duration=1.0) == 0


def test_for_narrows_a_rule():
    checked = rule("caption_chars > 0", kinds=frozenset({"image"}))
    assert outcome(checked, "text", caption_chars=0) == 0
    assert outcome(checked, "image", caption_chars=0) == 1
    with pytest.raises(RuleError, match="never apply"):
        rule("aesthetic > 1", kinds=frozenset({"video"}))
    with pytest.raises(RuleError, match="one or more of"):
        rule("sharp", kinds=frozenset({"audio"}))
    with pytest.raises(RuleError, match="quantifier"):
        rule("sharp", quantifier="most")


def mixed(uid, *media):
    return [(uid, m, kind, values) for m, (kind, values) in enumerate(media)]


def test_all_media_must_pass_and_the_first_that_does_not_decides():
    checked = rule("width > 10 and height > 10")
    rows = [
        *mixed("a", ("image", {"width": 11, "height": 11}), ("image", {"width": 11, "height": 11})),
        *mixed("b", ("image", {"width": 11, "height": 11}), ("image", {"width": 11, "height": 1}), ("image", {"width": 1, "height": 1})),
        *mixed("c", ("image", {"width": None, "height": 11}), ("image", {"width": 1, "height": 1})),
        *mixed("d", *[("image", {"width": 11, "height": 11})] * 12, ("image", {"width": 1, "height": 1})),
    ]
    assert outcomes(checked, *rows) == {"a": 0, "b": 2, "c": -1, "d": 1}
    assert outcomes(checked, *reversed(rows)) == {"a": 0, "b": 2, "c": -1, "d": 1}


def test_any_medium_may_pass_but_one_the_rule_is_not_about_has_no_vote():
    checked = rule("aesthetic > 5 and n_media < 9", quantifier="any")
    good, bad, none = ("image", {"aesthetic": 6, "n_media": 2}), ("image", {"aesthetic": 4, "n_media": 2}), ("image", {"n_media": 2})
    film = ("video", {"n_media": 2})
    rows = [
        *mixed("good", bad, good), *mixed("bad", bad, bad), *mixed("unknown", bad, none), *mixed("known", none, good),
        *mixed("film", film), *mixed("bad film", film, bad), *mixed("good film", film, good), *mixed("text", ("text", {"n_media": 0})),
        *mixed("many", ("video", {"n_media": 9})),
    ]  # fmt: skip
    assert outcomes(checked, *rows) == {
        "good": 0, "bad": 1, "unknown": -1, "known": 0, "film": 0, "bad film": 1, "good film": 0, "text": 0, "many": 2,
    }  # fmt: skip


def test_any_and_all_agree_on_samples_of_one_medium():
    rows = [(f"{i}", 0, kind, {"aesthetic": a, "width": w}) for i, (kind, a, w) in enumerate(
        (kind, a, w) for kind in ("text", "image", "video") for a in (None, 1, 9) for w in (None, 1, 99))]  # fmt: skip
    expression = "aesthetic > 5 and width > 10"
    assert outcomes(rule(expression), *rows) == outcomes(rule(expression, quantifier="any"), *rows)


def test_judge_orders_by_uid_and_takes_an_empty_unit():
    assert judge(rule("sharp"), flat()).num_rows == 0
    table = judge(rule("sharp"), flat(*[(f"{i:02}", 0, "image", {"sharp": True}) for i in (3, 1, 2)]))
    assert table["uid"].to_pylist() == ["01", "02", "03"]


def test_rules_survive_json_and_their_digest_holds_all_they_say():
    checked = rule("width > 1 and (caption = 'é' or sharp)", kinds=frozenset({"image"}), quantifier="any")
    again = rule_from_json(json.loads(json.dumps(rule_to_json(checked))))
    assert again == checked
    assert rule_digest(again) == rule_digest(checked)
    others = [
        rule("width > 2 and (caption = 'é' or sharp)", kinds=frozenset({"image"}), quantifier="any"),
        rule("width > 1 and (caption = 'é' or sharp)", quantifier="any"),
        rule("width > 1 and (caption = 'é' or sharp)", kinds=frozenset({"image"})),
    ]
    assert len({rule_digest(r) for r in [checked, *others]}) == 4


def _in_child(queue):
    queue.put(outcome(rule("width > 1"), width=2))


def test_a_forked_process_gets_an_engine_of_its_own():
    assert outcome(rule("width > 1"), width=1) == 1
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_in_child, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == 0
    process.join(60)
    assert process.exitcode == 0


ATOMS = st.sampled_from(
    """p|q|r|not s|x > 0|y between -1 and 1|z not between x and 2|x in (1, 2)|y not in (0, 1)|z is null|x is not null|p is true
q is distinct from r|coalesce(x, y, 0) > 1|case when p and q then x > 1 else y > 1 end|x + y * 2 > -(z - 1)|(x + 1) * 2 > 3|least(x, y) > 0
'a and b' = 'a and b'|'it''s (' <> ')'|concat(x, ' and ') like '1%'|nullif(x, y) > 0|abs(x)::varchar = '1'|list_contains([x, y], 1)
len(list_filter([x, y], lambda v: v > 0 and v < 2)) = 1|1 in [x, y]|xor(x, y) > 0""".replace("\n", "|").split("|")
)


def _joined(children):
    spaced = st.sampled_from([" and ", " AND ", "\nand\n", " or ", " OR "])
    return st.one_of(
        st.tuples(children, spaced, children).map(lambda t: f"{t[0]}{t[1]}{t[2]}"),
        children.map(lambda e: f"({e})"),
        children.map(lambda e: f"not ({e})"),
        st.tuples(children, children).map(lambda t: f"({t[0]})and({t[1]})"),
    )


VALUES = st.fixed_dictionaries(
    {**{n: st.sampled_from([True, False, None]) for n in "pqrs"}, **{n: st.sampled_from([None, -2, 0, 1, 2]) for n in "xyz"}}
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(expression=st.recursive(ATOMS, _joined, max_leaves=8), rows=st.lists(VALUES, min_size=1, max_size=12))
def test_splitting_keeps_the_meaning(expression, rows):
    checked = parse_rule("r", expression, P)
    data = {name: pa.array([row[name] for row in rows], column.type) for name, column in P.items()}
    table = pa.table(
        {"uid": [f"{i:02}" for i in range(len(rows))], "m": pa.array([0] * len(rows)), "medium_kind": ["image"] * len(rows), **data}
    )
    found = judge(checked, table)["outcome"].to_pylist()
    connection = locked_duckdb()
    connection.register("rows", table)
    whole = [v for (v,) in connection.execute(f"select ({expression}) from rows order by uid").fetchall()]
    pieces = [connection.execute(f"select ({c}) from rows order by uid").fetchall() for c in checked.conjuncts]
    connection.unregister("rows")
    for i, value in enumerate(whole):
        assert (found[i] == 0) == (value is True), expression
        expected = next(((k if piece[i][0] is False else -k) for k, piece in enumerate(pieces, 1) if piece[i][0] is not True), 0)
        assert found[i] == expected, expression


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_any_text_is_a_rule_or_a_rule_error(text):
    try:
        checked = rule(text)
    except RuleError:
        return
    assert outcome_sql(checked)
    assert combine_sql(checked, "o", "m")
