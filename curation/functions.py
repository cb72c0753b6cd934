"""DuckDB for expressions out of a recipe: a locked connection, and the pure functions that an expression may call."""

from __future__ import annotations

import os
import threading
from functools import cache

import duckdb

MAX_DEPTH = 100  # nested nodes of an expression's tree
MEMORY = "1GB"

# A list of what may be called, not of what may not: DuckDB marks functions consistent that read the clock (current_localtime, age),
# give its version, or run a name as a function, and each version adds some. Left out too: what makes much out of little (repeat, range,
# lpad), and hash(), whose value is DuckDB's own affair.
FUNCTIONS = frozenset(
    # arithmetic
    "+ - * / // % ** ^ & | << >> ~ @ abs acos asin atan atan2 cbrt ceil ceiling cos cot degrees divide even exp fdiv floor fmod gcd "
    "greatest isfinite isinf isnan lcm least ln log log10 log2 mod multiply pi pow power radians round round_even sign sin sqrt subtract "
    "add tan tanh trunc xor bit_count if nullif constant_or_null "
    # text
    "~~ !~~ ~~* !~~* ~~~ || ^@ ascii bit_length char_length character_length chr concat concat_ws contains damerau_levenshtein ends_with "
    "hamming instr jaccard jaro_similarity jaro_winkler_similarity lcase left left_grapheme len length length_grapheme levenshtein "
    "like_escape not_like_escape ilike_escape not_ilike_escape lower ltrim md5 mismatches nfc_normalize ord parse_dirname parse_dirpath "
    "parse_filename parse_path position prefix regexp_extract regexp_extract_all regexp_full_match regexp_matches regexp_replace "
    "regexp_split_to_array regexp_escape replace reverse right right_grapheme rtrim sha256 split split_part starts_with str_split "
    "str_split_regex string_split string_split_regex strip_accents strlen strpos substr substring substring_grapheme suffix translate "
    "trim ucase unicode upper url_decode "
    # lists, structs, maps
    "&& @> <@ array_contains array_extract array_has array_has_all array_has_any array_length array_position array_slice array_to_string "
    "cardinality element_at flatten list_apply list_any_value list_avg list_bool_and list_bool_or list_cat list_concat "
    "list_contains list_count list_distinct list_element list_extract list_filter list_first list_has list_has_all list_has_any "
    "list_indexof list_intersect list_last list_max list_median list_min list_pack list_position list_reduce list_reverse list_slice "
    "list_sort list_reverse_sort list_sum list_stddev_pop list_stddev_samp list_transform list_unique list_value list_var_pop "
    "list_var_samp list_where list_zip list_cosine_similarity list_cosine_distance list_distance list_dot_product list_inner_product "
    "map map_contains map_extract map_extract_value map_keys map_values row struct_extract struct_pack struct_keys "
    # JSON in a text
    "->> json_array_length json_contains json_exists json_extract json_extract_string json_keys json_type json_valid json_value "
    # dates
    "century date_diff date_part date_trunc datediff datepart datetrunc day dayofmonth dayofweek dayofyear decade epoch epoch_ms hour "
    "isodow isoyear last_day make_date minute month quarter second strftime strptime try_strptime to_days to_hours to_minutes to_seconds "
    "to_months to_years to_weeks week weekday weekofyear year".split()
)


def locked_duckdb() -> duckdb.DuckDBPyConnection:
    """This process's and thread's DuckDB: no files, no network, no extensions, one thread, UTC, configuration locked."""
    held = getattr(_local, "held", None)
    if held is None or held[0] != os.getpid():
        # A forked child must not use its parent's engine, nor close it: that waits for threads the child does not have.
        _inherited.append(held)
        _local.held = held = (os.getpid(), _connect())
    connection: duckdb.DuckDBPyConnection = held[1]
    return connection


_local = threading.local()
_inherited: list[object] = []


def _connect() -> duckdb.DuckDBPyConnection:
    settings = {
        "enable_external_access": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "python_enable_replacements": "false",
        "threads": "1",
        "memory_limit": MEMORY,
    }
    connection = duckdb.connect(":memory:", config=settings)
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(f"SET max_expression_depth = {MAX_DEPTH}")
    connection.execute("SET lock_configuration = true")
    return connection


@cache
def callable_functions() -> frozenset[str]:
    """FUNCTIONS, without any that this DuckDB calls volatile. `if` and some list functions are macros over pure ones."""
    rows = locked_duckdb().execute(
        "SELECT lower(function_name) FROM duckdb_functions() GROUP BY 1 "
        "HAVING bool_and(function_type IN ('scalar', 'macro') AND coalesce(stability, 'CONSISTENT') = 'CONSISTENT')"
    )
    return FUNCTIONS & {name for (name,) in rows.fetchall()}
