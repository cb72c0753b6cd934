"""Recipes: what compiles, what is refused and how it is said. No step runs here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.recipe import KEYS, RuleOp, StepOp, find_recipe, load_recipe, load_run_recipe, phases, recipe_summary
from pipeline.yamlpos import MAX_BYTES, parse_yaml
from shards.errors import RecipeError
from shards.media import Limits
from shards.store import open_store

SIZE, BEST, WORDS = "tests.steps.toy_size", "tests.steps.toy_best", "tests.steps.words"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a picture")
    (tmp_path / "records.jsonl").write_text('{"id": "1", "text": "a"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


HEAD = "name: toy\nsources:\n  - {name: photos, format: folder, path: data}\n"


def load(folder, text, head=HEAD):
    (folder / "my.yaml").write_text(head + text)
    return load_recipe("my.yaml")


def steps(folder, *lines):
    return load(folder, "steps:\n" + "".join(f"  - {line}\n" for line in lines)).ops


def refused(folder, text, head=HEAD):
    with pytest.raises(RecipeError) as told:
        load(folder, text, head)
    return str(told.value).splitlines()


def test_a_whole_recipe(folder, monkeypatch):
    monkeypatch.setenv("CORPUS", str(folder))
    recipe = load(
        folder,
        """
name: toy
sources:
  - {name: photos, format: folder, path: "${CORPUS}/data"}
  - {name: notes, format: manifest, path: "${NOWHERE:-records}.jsonl", where: "id = '1'", fields: {text: text}}
limits:
  image: {pixels: 1_000_000}
  video: {cpu_seconds: 30, decoded_frames: 100}
steps:
  - tests.steps.toy_size: {as: small, scale: 2, sizes: [3, 4], batch: 8, max_errors: 0.1}
  - keep: "small_width between 1 and 2 and small_height > 3"
  - tests.steps.toy_best: {as: best, by: small_width}
  - tests.steps.words
  - keep: {name: wordy, any: "words_n > 3", for: [image, video]}
write: {path: out, max_bytes: 1_000, max_samples: 5}
split: {val: 0.01, test: 0.02}
""",
        head="",
    )
    photos, notes = recipe.sources
    assert photos.path == str(folder / "data")
    assert (notes.path, notes.where, dict(notes.fields)) == (str(folder / "records.jsonl"), "id = '1'", {"text": "text"})
    assert recipe.limits == Limits(image_pixels=1_000_000, cpu_seconds=30.0, decoded_frames=100)
    small, keep, best, implied, words, wordy = recipe.ops
    assert [op.name for op in recipe.ops] == ["small", "keep", "best", "best", WORDS, "wordy"]
    assert isinstance(small, StepOp)
    assert (small.what.scale, small.what.sizes, small.how.batch, small.max_errors) == (2, (3, 4), 8, 0.1)
    assert [c.name for c in small.columns] == ["small_width", "small_height", "small_beauty", "small_vector"]
    assert small.stored == ("width", "height", "beauty", "vector")
    assert small.columns[2].kinds == {"image"}
    assert small.columns[0].kinds == {"image", "video"}  # what the step applies to narrows the column
    assert (small.prefix, small.roots, small.reads, small.line) == ("small_", ("media",), (), 10)
    assert isinstance(keep, RuleOp)
    assert keep.rule.conjuncts == ("small_width between 1 and 2", "small_height > 3")
    assert (best.reads, best.roots) == (("small_width",), ("media",))
    assert (implied.implied_by, implied.rule.expression) == ("best", "best_of is null or turns > 0")
    assert (words.roots, words.line) == (("texts",), 13)
    assert (wordy.rule.quantifier, wordy.rule.kinds) == ("any", {"image", "video"})
    assert (recipe.write.path, recipe.write.max_bytes, recipe.write.max_samples) == ("out", 1000, 5)
    assert recipe.split == {"val": 0.01, "test": 0.02}
    first, second = phases(recipe)
    assert [op.name for op in first.ops] == ["small", "keep"]
    assert first.border is best
    assert [op.name for op in second.ops] == ["best", WORDS, "wordy"]
    assert second.border is None
    assert any("implied by best" in line for line in recipe_summary(recipe))


def test_all_problems_are_told_at_once_with_their_lines(folder):
    lines = refused(
        folder,
        """name: toy
sources:
  - {name: photos, format: folder, patth: data}
  - name: photos2
    format: folder
    path: 7
limits:
  image: {pixel: 3}
steps:
  - tests.steps.toy_size:
      scael: 2
      threshold: "high"
  - keep: "widht > 3"
  - nosuch
write: {max_bytes: 0}
split: {val: 1.5}
extra: 1
""",
        head="",
    )
    told = "\n".join(lines)
    for expected in (
        "my.yaml:3: unknown key 'patth' in source 'photos'; did you mean 'path'?",
        "my.yaml:3: source 'photos' lacks 'path'",
        "my.yaml:6: 'path' of source 'photos2'",
        "my.yaml:8: unknown key 'pixel' in limits of image; did you mean 'pixels'?",
        "my.yaml:11: unknown key 'scael' in step 'tests.steps.toy_size'; did you mean 'scale'?",
        "my.yaml:12: 'threshold' of step 'tests.steps.toy_size': input should be a valid number, not \"high\"",
        "my.yaml:14: no step 'nosuch'",
        "my.yaml:15: 'max_bytes' of write is at least 1",
        "my.yaml:16: 'val' of split is a share between 0 and 1",
        "my.yaml:17: unknown key 'extra' in a recipe",
    ):
        assert expected in told
    assert [int(line.split(":")[1]) for line in lines] == sorted(int(line.split(":")[1]) for line in lines)
    assert "widht" not in told  # what the broken step writes is unknown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps:\n  - keep: 'widht > 1'\n  - tests.steps.toy_size\n", "no step writes the column 'widht'; did you mean 'width'"),
        (
            "steps:\n  - keep: 'width > 1'\n  - tests.steps.toy_size\n",
            "'width' is written by tests.steps.toy_size in line 6, which does not come before",
        ),
        ("steps:\n  - tests.steps.toy_size\n  - keep: 'widht > 1'\n", "(width is written by tests.steps.toy_size, line 5)"),
        ("steps:\n  - tests.steps.toy_size\n  - keep: 'width > 1 and 2 > > height'\n", "my.yaml:6: rule 'keep': not an SQL expression"),
        ("steps:\n  - tests.steps.toy_size\n  - keep: 'vector is null'\n", "wide column"),
        ("steps:\n  - keep: 'random() > 0.5'\n", "random() is not among the pure functions"),
        ("steps:\n  - keep: {name: x}\n", "keep takes one condition"),
        ("steps:\n  - keep: {if: 'turns > 1', any: 'turns > 2'}\n", "keep takes one condition"),
        ("steps:\n  - keep: {if: 'turns > 1', for: audio}\n", "one or more of text, image, video"),
        ("steps:\n  - keep: {if: 7}\n", "'if' of keep: input should be a valid string"),
        ("steps:\n  - keep: {iff: 'turns > 1'}\n", "unknown key 'iff' in keep; did you mean 'if'?"),
        (
            "steps:\n  - keep: {name: a, if: 'turns > 1'}\n  - keep: {name: a, if: 'turns > 2'}\n",
            "my.yaml:6: the name 'a' is taken (line 5)",
        ),
        ("steps:\n  - tests.steps.toy_best\n", "step 'tests.steps.toy_best' reads a column: no step writes the column 'width'"),
        ("steps:\n  - tests.steps.toy_best\n  - tests.steps.toy_size\n", "written by tests.steps.toy_size in line 6"),
        ("steps:\n  - tests.steps.toy_size\n  - tests.steps.toy_size\n", "two steps are named"),
        ("steps:\n  - tests.steps.toy_size: {as: a}\n  - tests.steps.words: {as: a}\n", "two steps are named 'a'"),
        ("steps:\n  - tests.steps.words\n  - tests.steps.toy_size: {as: words}\n", "both write columns words_…"),
        ("steps:\n  - tests.steps.toy_size: {as: Big One}\n", "'as' of tests.steps.toy_size is made of"),
        ("steps:\n  - tests.steps.toy_size: {scale: 0}\n", "my.yaml:5: step 'tests.steps.toy_size': scale: 0 is below 1"),
        (
            "steps:\n  - tests.steps.toy_size: {scale: 1.5}\n",
            "'scale' of step 'tests.steps.toy_size': input should be a valid integer, not 1.5",
        ),
        ("steps:\n  - tests.steps.toy_size: {scale: true}\n", "input should be a valid integer, not true"),
        ("steps:\n  - tests.steps.toy_size: {scale: '3'}\n", "input should be a valid integer"),
        ("steps:\n  - tests.steps.toy_size:\n      sizes:\n        - 1\n        - x\n", "my.yaml:8: 'sizes.1'"),
        ("steps:\n  - tests.steps.toy_size: {batch: 0}\n", "'batch' of tests.steps.toy_size is at least 1"),
        ("steps:\n  - tests.steps.toy_size: {max_errors: 1.5}\n", "'max_errors' of tests.steps.toy_size is a number of samples"),
        ("steps:\n  - tests.steps.toy_size: {max_errors: -1}\n", "'max_errors'"),
        ("steps:\n  - tests.steps.toy_size: {rule: false}\n", "unknown key 'rule'"),
        ("steps:\n  - tests.steps.toy_size: [1]\n", "must be a mapping"),
        ("steps:\n  - {tests.steps.toy_size: {}, tests.steps.words: {}}\n", "a step is a name or one"),
        ("steps:\n  - 7\n", "a step is a name or one"),
        ("steps:\n  - prob\n", "did you mean 'probe'"),
        ("steps:\n  - '../evil'\n", "is no name of a step"),
        ("steps:\n  - step\n", "is no step"),
        ("steps: probe\n", "`steps` must be a list"),
        ("steps: []\n", "`steps` must be a list"),
        ("", "lacks 'steps'"),
        ("steps: [probe]\nlimits: {image: {pixels: 0}}\n", "a limit is above 0"),
        ("steps: [probe]\nlimits: {image: {pixels: lots}}\n", "'pixels' of image"),
        ("steps: [probe]\nlimits: {audio: {}}\n", "unknown key 'audio' in limits"),
        ("steps: [probe]\nwrite: {path: ../elsewhere}\n", "without '..'"),
        ("steps: [probe]\nsplit: {train: 0.5}\n", "no name of a split"),
        ("steps: [probe]\nsplit: {a: 0.5, b: 0.5}\n", "nothing is left for train"),
        ("steps: [probe]\nname: two\n", "my.yaml:5: the key 'name' is there twice"),
    ],
)
def test_problems_of_steps_and_sections(folder, text, expected):
    assert expected in "\n".join(refused(folder, text))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (
            "deduplicate: {embedding: width}",
            "the column 'width' (written by probe, line 5) holds no vectors; name one that does: embedding",
        ),
        ("deduplicate: {embedding: minhash}", "the column 'minhash' (written by minhash, line 6) holds lists of uint32, not of float"),
        (
            "deduplicate: {keep_best: embedding}",
            "the column 'embedding' (written by embed, line 7) holds lists, which cannot be ordered by",
        ),
        ("balance: {embedding: kind}", "the column 'kind' holds no vectors"),
        ("balance: {embedding: minhash}", "holds lists of uint32, not of float; name one that does: embedding"),
        ("balance: {keep_best: embedding desc}", "which cannot be ordered by; name another column"),
        ("deduplicate: {embedding: embedding, keep_best: embedding}", "which cannot be ordered by"),
    ],
)
def test_vectors_are_where_a_global_step_asks_for_them(folder, step, expected):
    before = "steps:\n  - probe\n  - minhash\n  - embed: {weights: 'random:1'}\n"
    told = "\n".join(refused(folder, f"{before}  - {step}\n"))
    assert f"my.yaml:8: step '{step.partition(':')[0]}': " in told
    assert expected in told
    assert load(folder, f"{before}  - deduplicate: {{embedding: embedding, on: both}}\n  - balance\n").ops[-2].op == "balance"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{name: a, format: folder, path: gone}", "gone"),
        ("{name: a, format: foldr, path: data}", "folder"),
        ("{name: 'a b', format: folder, path: data}", "a name is letters"),
        ("{name: a, format: folder, path: '${UNSET_VARIABLE_OF_A_TEST}/x'}", "UNSET_VARIABLE_OF_A_TEST is not set"),
        ("{name: a, format: manifest, path: records.jsonl, explode: pages}", "explode"),
        ("photos", "must be a mapping"),
    ],
)
def test_problems_of_sources(folder, source, expected):
    told = refused(folder, "steps: [probe]\n", head=f"name: toy\nsources:\n  - {source}\n")
    assert any(line.startswith("my.yaml:3: ") and expected in line for line in told)


def test_two_sources_of_one_name_are_refused(folder):
    head = HEAD + "  - {name: photos, format: folder, path: data}\n"
    assert "my.yaml:4: two sources are named 'photos'" in refused(folder, "steps: [probe]\n", head)[0]


SECRETS = [
    "api_key: sk-abcdefghijklmnopqrstuv",
    "api_key: something",
    "endpoint: 'https://user:pass@example.com/v1'",
    "endpoint: 'https://example.com/v1?token=abcdef'",
    "endpoint: 'https://b.example.com/x?X-Amz-Signature=abcdef&y=1'",
    "endpoint: 's3://b/x?AWSAccessKeyId=abcdef'",
    "endpoint: 'https://example.com/v1?api-version=2&api-key=abcdef'",
    "endpoint: 'https://example.com/v1?Subscription-Key=abcdef'",
    "endpoint: 'https://example.com/v1?x-api-key=abcdef'",
    "endpoint: 'Bearer abcdefghijklmnopqrstuv'",
    "api_key_env: sk-abcdefghijklmnopqrstuv",
    "hf_token: abcdef",
    "token: abcdef",
    "password: abcdef",
]


@pytest.mark.parametrize("field", SECRETS)
def test_secrets_are_refused_and_never_repeated(folder, field):
    (line,) = refused(folder, "steps:\n  - tests.steps.toy_size: {" + field + "}\n")
    assert line.startswith("my.yaml:5: ")
    for secret in ("abcdef", "pass", "something"):
        assert secret not in line.replace("'password'", "").replace("password_env", "")


def test_secrets_by_name_and_harmless_words_pass(folder, monkeypatch):
    (op,) = steps(
        folder, "tests.steps.toy_size: {api_key_env: MY_KEY, endpoint: 'https://example.com/v1?model=a&api-version=2', kernel: token}"
    )
    assert op.how.api_key_env == "MY_KEY"
    monkeypatch.setenv("ENDPOINT", "https://me:hunter2@example.com")
    (line,) = refused(folder, "steps:\n  - tests.steps.toy_size: {endpoint: '${ENDPOINT}'}\n")
    assert "credentials" in line
    assert "hunter2" not in line


def test_settings_that_clash_are_told_without_the_mapping_they_are_in(folder):
    (line,) = refused(folder, "steps:\n  - caption: {model: m, backend: openai}\n")
    assert line == "my.yaml:5: step 'caption': backend openai wants a `url`: http://host:8000/v1"


def test_digests_follow_what_and_reads_but_not_how_and_names(folder):
    def digest(*lines, n=-1):
        found = [op for op in steps(folder, *lines) if isinstance(op, StepOp)]
        return found[n].digest

    plain = digest(SIZE)
    assert digest(f"{SIZE}: {{batch: 3, actors: 2, max_errors: 5}}") == plain
    assert digest(f"{SIZE}: {{as: other}}") == plain
    assert digest(f"{SIZE}: {{scale: 2}}") != plain
    assert digest(SIZE, BEST) != digest(f"{SIZE}: {{scale: 2}}", BEST)
    assert digest(SIZE, f"{BEST}: {{rule: false}}") == digest(SIZE, BEST)
    a, b = f"{SIZE}: {{as: a}}", f"{SIZE}: {{as: b, scale: 2}}"
    swapped = f"{SIZE}: {{as: b}}", f"{SIZE}: {{as: a, scale: 2}}"
    both = f"{WORDS}: {{columns: [a_width, b_width]}}"
    assert digest(a, b, both) != digest(*swapped, both)  # the same two steps, each under the other's name


def test_the_recipe_digest_holds_what_decides_the_result(folder):
    def digest(text="", head=HEAD, rule="width > 1"):
        return load(folder, f"steps:\n  - {SIZE}\n  - keep: '{rule}'\n{text}", head).digest

    shutil.copytree(folder / "data", folder / "moved")
    assert digest() == digest(head=HEAD.replace("path: data", "path: moved"))
    assert digest() == digest("write: {path: other}\n")
    others = [
        digest(rule="width > 2"),
        digest("write: {max_samples: 7}\n"),
        digest("split: {val: 0.1}\n"),
        digest("limits: {text: {chars: 5}}\n"),
    ]
    others.append(digest(head=HEAD.replace("name: photos", "name: pictures")))
    assert len({digest(), *others}) == 6


def test_roots_are_transitive_and_rule_false_drops_the_implied_rule(folder):
    ops = steps(folder, SIZE, f"{BEST}: {{rule: false}}", f"{WORDS}: {{columns: [best_of, caption_chars]}}")
    assert [op.name for op in ops] == [SIZE, BEST, WORDS]
    assert [op.roots for op in ops] == [("media",), ("media",), ("media", "texts")]


def test_unnamed_rules_get_names_of_their_own(folder):
    ops = steps(folder, "keep: 'turns > 1'", "keep: {name: keep_2, if: 'turns > 2'}", "keep: 'turns > 3'")
    assert [op.name for op in ops] == ["keep", "keep_2", "keep_3"]


def test_recipes_of_the_package_are_found_by_name(folder):
    assert find_recipe("shared-data").name == "shared-data.yaml"
    with pytest.raises(RecipeError, match="did you mean 'shared-data'"):
        load_recipe("shared-dta")
    with pytest.raises(RecipeError, match="there is no recipe"):
        load_recipe("../curation/shared-data")


def test_the_recipe_of_a_run_needs_no_sources(folder):
    load(folder, f"steps:\n  - {SIZE}\n")
    store = open_store(str(folder / "run"))
    with pytest.raises(RecipeError, match="no run was started"):
        load_run_recipe(store)
    store.put_replace("recipe.yaml", (folder / "my.yaml").read_bytes())
    shutil.rmtree(folder / "data")
    with pytest.raises(RecipeError):
        load_recipe("my.yaml")
    assert load_run_recipe(store).ops[0].name == SIZE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "a recipe is a mapping"),
        (b"- a\n", "a recipe is a mapping"),
        (b"just text", "a recipe is a mapping"),
        (b"name: [1\nsteps: 2\n", "not YAML"),
        (b"name: a\n\tb: c\n", "not YAML"),
        (b"name: \xff\n", "my.yaml:1: not UTF-8"),
        (b"name: a\x00b\n", "not YAML"),
        (b"name: a\n---\nname: b\n", "second document"),
        (b"a: 1\nb: 2\na: 3\n", "my.yaml:3: the key 'a' is there twice"),
        (b"a: {b: 1,\n b: 2}\n", "my.yaml:2: the key 'b' is there twice"),
        (b"a: !!python/object/apply:os.system [ls]\n", "tags are not allowed"),
        (b"a: !!binary aGk=\n", "tags are not allowed"),
        (b"? [1, 2]\n: 3\n", "a key that is no plain text"),
        (b"a: &x {b: 1}\nc:\n  <<: *x\n", "merge keys"),
        (b"a: &x [*x]\n", "contains itself"),
        (b"a: *x\n", "no anchor &x|undefined alias"),
        (b"a: &x 1\nb: &x 2\n", "defined twice"),
        (b"a: " + b"[" * 60 + b"]" * 60, "nested more than"),
        (b"a: " + b"[" * 20_000, "nested more than"),
        (b"#" * (MAX_BYTES + 1), "larger than"),
        (b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
            b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 12)), "aliases followed"),
    ],
)  # fmt: skip
def test_yaml_that_is_refused(folder, text, expected):
    (folder / "my.yaml").write_bytes(text)
    with pytest.raises(RecipeError, match=expected):
        load_recipe("my.yaml")


def test_scalars_are_those_of_the_core_schema():
    text = b"on: yes\nn: [1_000, 1e-3, 1:30, -5, .5, 007, 1., 0x10, '1', ~, no, True, 2020-01-01, 1.5e3, '', .inf]\n"
    document = parse_yaml(text, "f.yaml")
    assert document.value["on"] == "yes"
    values = [1000, 0.001, "1:30", -5, 0.5, "007", 1.0, 16, "1", None, "no", True, "2020-01-01", 1500.0, "", ".inf"]
    assert document.value["n"] == values
    assert [type(v) for v in document.value["n"]] == [type(v) for v in values]


def test_aliases_give_their_value_and_their_lines():
    document = parse_yaml(b"a: &x\n  b: [1, 2]\nc: *x\n", "f.yaml")
    assert document.value == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}}
    assert document.where(("c", "b", 1)) == ("f.yaml", 2)
    assert document.where(("c", "unknown", 5)) == ("f.yaml", 3)


JSONISH = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc_d", min_size=1, max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(JSONISH, st.booleans())
def test_what_a_dumper_writes_is_read_back(value, flow):
    text = yaml.safe_dump({"root": value}, default_flow_style=flow, allow_unicode=True)
    document = parse_yaml(text.encode(), "f.yaml")
    assert document.value == {"root": value}
    lines = text.splitlines()
    assert all(1 <= line <= len(lines) for _, line in document.lines.values())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from([*KEYS, "other"]), JSONISH, max_size=6))
def test_any_yaml_is_a_recipe_or_a_recipe_error(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("any") / "any.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True), "utf-8")
    with pytest.raises(RecipeError):
        load_recipe(path)


def test_the_recipe_of_the_shared_data_compiles(data_dir, qwen_tokenizer_dir, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("FOVEA_TEST_DATA", str(data_dir))
    monkeypatch.setenv("FOVEA_TOKENIZER", str(qwen_tokenizer_dir))
    recipe = load_recipe("shared-data")
    assert [s.name for s in recipe.sources] == ["caption", "ocr", "dup", "video", "sft", "text", "hostile"]
    assert [op.name for op in recipe.ops if isinstance(op, RuleOp)] == ["shape", "deduplicate"]
    assert len(phases(recipe)) == 2
