"""Each metric against examples that were published with it, or that its definition settles by hand."""

from __future__ import annotations

import importlib.util

import pytest

from shards.errors import ConfigError
from training.answers import Answer, Score, score_answers, wanted_metrics
from training.captions import caption_scores, words
from training.intervals import intervals_of, iou
from training.scores import anls, characters, choice, chosen, exact_match, metrics_of, normalised, options_of


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("A red, round Ball!", "red round ball"),  # visualqa.org/evaluation, rule by rule: case, articles, punctuation
        ("100,978", "100978"),
        ("two dogs and ten cats", "2 dogs and 10 cats"),
        ("none", "0"),
        ("3.5 p.m.", "3.5 pm"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("it is 10:30", "it is 10:30"),
        ("the man's hat", "man's hat"),
        ("black-and-white\nstripes", "black and white stripes"),
    ],
)
def test_answers_are_normalised_as_vqa_does(said: str, meant: str) -> None:
    assert normalised(said) == meant


def test_exact_match_takes_any_gold_answer_and_nothing_less() -> None:
    assert exact_match("The red one.", ["blue", "red one"]) == 1
    assert exact_match("a red one there", ["red one"]) == 0
    assert exact_match("Isnt it 2?", ["isn't it two"]) == 1
    assert exact_match("an", ["The"]) == 0, "nothing is left of either, and yet they differ"
    assert exact_match("the ", ["The"]) == 1


def test_anls_is_the_best_similarity_and_nothing_beyond_the_threshold() -> None:
    """Biten et al. 2019, eq. 1: s = 1 - NL where NL < 0.5, else 0; the best of the gold answers."""
    assert anls("coca-cola", ["pepsi", "Coca  Cola"]) == pytest.approx(1 - 1 / 9)
    assert anls("kitten", ["sitting"]) == pytest.approx(1 - 3 / 7)
    assert anls("abcd", ["abxy"]) == 0, "NL = 0.5 is not below it"
    assert anls("abcde", ["abcxy"]) == pytest.approx(0.6)
    assert anls("", ["word"]) == 0


def test_characters_are_what_is_right_of_the_gold_text() -> None:
    assert characters("hallo", ["hello"]) == pytest.approx(0.8)
    assert characters("Total  12.50", ["Total\n12.50"]) == 1
    assert characters("total", ["Total"]) == pytest.approx(0.8), "case is part of what is read"
    assert characters("a very long story", ["no"]) == 0
    assert characters("x", ["far off", "x"]) == 1


LINES = "Which?\nA. a cat\nB. a dog\nC. the red dog"


@pytest.mark.parametrize(
    ("question", "options"),
    [
        (LINES, {"A": "a cat", "B": "a dog", "C": "the red dog"}),
        ("Pick one: (A) left (B) to the right", {"A": "left", "B": "to the right"}),
        ("A) 1\nB) 2\n", {"A": "1", "B": "2"}),
        ("A: first try\nB: old\n\nNow:\n(A) yes\n(B) no\n(C) perhaps", {"A": "yes", "B": "no", "C": "perhaps"}),
        ("A. alone", {}),
        ("B. two\nC. three", {}),
        ("Where is it? U.S.A. or at home", {}),
    ],
)
def test_options_are_found_where_letters_run_from_a(question: str, options: dict[str, str]) -> None:
    assert options_of(question) == options


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("C.", "C"),
        ("B. a dog", "B"),
        ("(C) the red dog", "C"),
        ("The answer is (B).", "B"),
        ("Option C, because it is red", "C"),
        ("The answer is A dog", "B"),
        ("A cat!", "A"),
        ("I see the red dog there", "C"),
        ("a dog or a cat", None),
        ("D", None),
        ("something else", None),
        ("", None),
    ],
)
def test_the_option_an_answer_names(answer: str, letter: str | None) -> None:
    assert chosen(answer, options_of(LINES)) == letter


def test_choice_compares_options_however_they_are_told() -> None:
    options = options_of(LINES)
    assert choice("The answer is B", ["a dog"], options) == 1
    assert choice("a cat", ["B"], options) == 0
    assert choice("no idea", ["neither"], options) == 0, "an answer that names nothing is not right because the gold names nothing"


def test_captions_score_as_published() -> None:
    """The example in the documentation of aac-metrics (README, "Usage"), there tokenized by COCO's own Java program."""
    captions = ["a man is speaking", "rain falls"]
    references = [
        ["a man speaks.", "someone speaks.", "a man is speaking while a bird is chirping in the background"],
        ["rain is falling hard on a surface"],
    ]
    found = caption_scores(captions, references)
    if importlib.util.find_spec("pycocoevalcap") is None:
        pytest.fail("pycocoevalcap is part of the development install")
    assert found.corpus["cider_d"] == pytest.approx(0.9614, abs=5e-5)
    assert found.each["cider_d"] == pytest.approx([1.3641, 0.5587], abs=5e-5)
    # By hand: 5 of 6 words, 3 of 4 pairs, 2 of 2 threes, 1 of 1 fours; 6 words beside 3 + 7, whose references are nearest.
    assert found.corpus["bleu4"] == pytest.approx((5 / 6 * 3 / 4 * 1 * 1) ** 0.25 * 2.718281828 ** (1 - 10 / 6), abs=1e-4)
    # Longest common subsequences: "a man" of 4 and 3 words; "rain" of 2 and 7.
    assert found.each["rouge_l"] == pytest.approx([2 * 2 / 7, 2 * 1 / 9], abs=1e-6)


def test_a_single_caption_has_no_cider_and_words_are_those_of_the_treebank() -> None:
    assert caption_scores(["a dog"], [["a dog"]]).corpus.keys() == {"bleu4", "rouge_l"}
    assert words("A man's black-and-white dog, \"running\" fast. It isn't 3.5 m tall.") == (
        "a man 's black-and-white dog running fast it is n't 3.5 m tall"
    )
    assert caption_scores(["", "x"], [["a dog"], ["x"]]).corpus["rouge_l"] == 0.5


@pytest.mark.parametrize(
    ("task", "gold", "metrics"),
    [
        ("short_caption", "red", ("caption",)),
        ("vqa", "red", ("exact_match",)),
        ("vqa", "there is a red ball in it", ("caption",)),
        ("chart", "12 %", ("exact_match", "anls")),
        ("document", "word " * 100, ("anls", "characters")),
        ("ocr", "EXIT", ("anls", "characters")),
        ("video", "to the left", ("exact_match",)),
        ("temporal_grounding", "1.0-2.0 s", ("iou",)),
        ("temporal_grounding", "never", ("exact_match",)),
        ("streaming", "1.0-2.0 s", ("exact_match",)),
    ],
)
def test_auto_goes_by_the_task_and_by_how_long_the_gold_answer_is(task: str, gold: str, metrics: tuple[str, ...]) -> None:
    assert metrics_of(task, [gold], {}) == metrics


def test_auto_asks_for_a_choice_where_there_is_one() -> None:
    options = options_of(LINES)
    assert metrics_of("vqa", ["B"], options) == ("choice",)
    assert metrics_of("video", ["a horse"], options) == ("exact_match",), "the gold answer is none of the options"


def _answer(n: int, task: str, gold: str, said: str, question: str = "?") -> Answer:
    return Answer("u", task, n, 0, "s", question, (gold,), said, False, options_of(question))


def test_scores_are_means_over_the_answers_they_apply_to() -> None:
    asked = [
        _answer(0, "vqa", "red", "Red."),
        _answer(1, "vqa", "two", "3"),
        _answer(2, "vqa", "B", "a dog", LINES),
        _answer(3, "vqa", "B", "no idea", LINES),
        _answer(4, "ocr", "EXIT", "EXIT"),
        _answer(5, "short_caption", "a red ball on grass", "a red ball on grass"),
        _answer(6, "short_caption", "two dogs in the snow", "a red ball on grass"),
    ]
    scored, by_task = score_answers(asked, ["auto"])
    assert by_task["vqa"] == {"exact_match": Score(0.5, 2), "choice": Score(0.5, 2), "named": Score(0.5, 2)}
    assert by_task["ocr"] == {"anls": Score(1.0, 1), "characters": Score(1.0, 1)}
    assert by_task["short_caption"]["cider_d"].value == pytest.approx(5.0)
    assert by_task["short_caption"]["rouge_l"] == Score(pytest.approx(0.5), 2)
    assert [a.scores.get("exact_match") for a in scored] == [1.0, 0.0, None, None, None, None, None]
    assert scored[5].scores["cider_d"] == pytest.approx(10.0)
    assert [a.n for a in scored] == list(range(7))
    _, named = score_answers(asked, ["anls", "choice"])
    assert named["vqa"]["anls"].n == 4
    assert named["short_caption"]["anls"].n == 2


@pytest.mark.parametrize(
    ("text", "intervals"),
    [
        ("1.0-2.0 s", [(1.0, 2.0)]),
        ("It happens from 1 to 2.5 seconds.", [(1.0, 2.5)]),
        ("4.5s - 3s", [(3.0, 4.5)]),
        ("between 0:58 and 1:05.5", [(58.0, 65.5)]),
        ("1.0-2.0 s and 5.0-6.0 s, .5 to 01:00:00", [(1.0, 2.0), (5.0, 6.0), (0.5, 3600.0)]),
        ("start: 3.0, end: 4.5", [(3.0, 4.5)]),
        ("in 2020", []),
        ("1, 2, 3", []),
        ("never", []),
    ],
)
def test_intervals_however_they_are_told(text: str, intervals: list[tuple[float, float]]) -> None:
    assert intervals_of(text) == intervals


@pytest.mark.parametrize(
    ("answer", "golds", "value"),
    [
        ("1.0-2.0 s", ["1.0-2.0 s"], 1.0),
        ("from 2 to 4", ["1.0-3.0 s"], 1 / 3),
        ("0-4 s", ["1.0-2.0 s", "never", "0-3 s"], 3 / 4),
        ("1-2 s, 1.5-3 s", ["2-3 s, 5-6 s"], 1 / 3),  # 1 s of 1-3 and 5-6
        ("5-6 s", ["1-2 s"], 0.0),
        ("I do not know", ["1-2 s"], 0.0),
        ("2-2 s", ["2.0-2.0 s"], 1.0),
        ("2-2 s", ["1-3 s"], 0.0),
    ],
)
def test_overlap_of_intervals(answer: str, golds: list[str], value: float) -> None:
    assert iou(answer, golds) == pytest.approx(value)


def test_moments_are_scored_by_their_overlap() -> None:
    said = ["1.0-2.0 s", "1.0-3.5 s", "9 to 10", "?"]
    asked = [_answer(n, "temporal_grounding", "1.0-2.0 s", text) for n, text in enumerate(said)]
    scored, by_task = score_answers([*asked, _answer(4, "temporal_grounding", "never", "Never.")], ["auto"])
    assert by_task["temporal_grounding"] == {
        "exact_match": Score(1.0, 1),
        "iou": Score(pytest.approx((1 + 0.4) / 4), 4),
        "recall_0.3": Score(0.5, 4),
        "recall_0.5": Score(0.25, 4),
        "recall_0.7": Score(0.25, 4),
    }
    assert scored[1].scores["recall_0.3"] == 1.0


def test_metrics_that_are_not_known_are_refused() -> None:
    assert wanted_metrics(["loss", "anls", "loss"]) == ("loss", "anls")
    assert wanted_metrics(["auto"]) == ("auto",)
    with pytest.raises(ConfigError, match="did you mean 'caption'"):
        wanted_metrics(["captions"])
    for wrong in ([], ["auto", "anls"]):
        with pytest.raises(ConfigError, match="metrics: auto"):
            wanted_metrics(wrong)
