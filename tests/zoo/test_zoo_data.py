"""What the small models are trained on and measured on: right answers, and nothing held out among the batches."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from interp.errors import WrongUse
from interp.zoo import brackets, digits, numbers, numbers_decoder, tones

VALUES = {word: i for i, word in enumerate(numbers.ONES)} | {word: 10 * i for i, word in enumerate(numbers.TENS, 2)}


def value(words: str) -> int:
    """The number that words say, read from left to right, which is not how they are written."""
    thousands, total = 0, 0
    for word in words.split():
        if word == "thousand":
            thousands, total = total, 0
        else:
            total = total * 100 if word == "hundred" else total + VALUES[word]
    return 1000 * thousands + total


def test_every_number_is_written_in_words_that_say_it() -> None:
    some = [*range(2000), *np.random.default_rng(3).integers(2000, 10**6, 3000).tolist(), 999_999, 100_000, 42_007]
    assert [value(numbers.words(n)) for n in some] == some
    assert numbers.words(42_007) == "forty two thousand seven"
    assert numbers.words(300_000) == "three hundred thousand"
    assert numbers.words(0) == "zero"


def test_numbers_held_out_are_five_percent_of_the_lengths_trained_on_and_in_no_batch() -> None:
    lengths, held = numbers.lengths(), numbers.held_out()
    assert lengths.tolist() == [len(str(n)) for n in range(10**6)]
    assert held.sum() == round(0.05 * (lengths != 5).sum())
    assert not held[lengths == 5].any()
    assert sum(map(len, numbers.trained_on())) == (lengths != 5).sum() - held.sum()
    seen = set()
    for step in range(20):
        for question, answer in zip(*numbers.drawn(numbers.Recipe(seed=4), step), strict=True):
            asked, number = question.split(": ")
            seen.add(value(number) if asked == "digits" else int(number))
            assert answer == (str(value(number)) if asked == "digits" else numbers.words(int(number)))
    drawn = np.array(sorted(seen))
    assert len(drawn) > 2000
    assert not held[drawn].any()
    assert 5 not in lengths[drawn]
    kinds = numbers.sets(500, 1)
    assert held[kinds["held_out"]].all()
    assert set(lengths[kinds["held_out_length"]]) == {5}
    assert not held[kinds["trained_on"]].any()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("digits: forty-two thousand and seven", [" digits:", " forty", " two", " thousand", " seven"]),
        ("words: 42,007", [" words:", *"42007"]),
        ("Digits:  SEVEN hundred\n", [" digits:", " seven", " hundred"]),
        ("42", ["4", "2"]),
        ("digits: umpteen", [" digits:", "<unk>"]),
    ],
)
def test_number_words_are_tokens_however_they_are_typed(text: str, tokens: list[str]) -> None:
    ids = numbers.tokenizer()(text)["input_ids"]
    assert numbers.tokenizer().convert_ids_to_tokens(ids) == [*tokens, "</s>"]


def test_tokenizer_of_numbers_gives_back_words_and_digits() -> None:
    tokenizer = numbers.tokenizer()
    for n in (0, 7, 42, 300_000, 864_868):
        for text in (numbers.words(n), str(n)):
            assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_the_decoder_reads_the_same_questions_and_tells_only_the_answers() -> None:
    recipe = numbers_decoder.Recipe(batch=32, seed=6)
    made = numbers_decoder.batch(recipe, 9)
    questions, answers = numbers.drawn(recipe, 9)
    for ids, mask, labels, question, answer in zip(*made.values(), questions, answers, strict=True):
        asked, told = numbers.tokenizer()(question)["input_ids"], numbers.tokenizer()(answer)["input_ids"]
        assert ids[mask.bool()].tolist() == asked + told
        assert labels[labels >= 0].tolist() == told
        assert labels[len(asked) : len(asked) + len(told)].tolist() == told


def test_the_twins_have_as_many_parameters() -> None:
    sizes = [sum(p.numel() for p in m.build_model(m.Recipe()).parameters()) for m in (numbers, numbers_decoder)]
    assert abs(sizes[0] / sizes[1] - 1) < 0.001


def by_stack(text: str) -> bool:
    """Balanced, by taking "()" out until nothing changes."""
    while "()" in text:
        text = text.replace("()", "")
    return not text


def test_balanced_agrees_with_taking_pairs_out_on_every_short_string() -> None:
    for length in range(11):
        for text in map("".join, product("()", repeat=length)):
            assert brackets.balanced(text) == by_stack(text)


def test_balanced_strings_are_balanced_and_each_as_likely() -> None:
    rng = np.random.default_rng(7)
    counts = Counter(brackets.balanced_string(8, rng) for _ in range(7000))
    assert len(counts) == 14  # Catalan's number
    assert all(map(by_stack, counts))
    assert max(abs(count - 500) for count in counts.values()) < 5 * 500**0.5


def test_one_swap_away_is_one_swap_away_and_not_balanced() -> None:
    rng = np.random.default_rng(8)
    for length in (2, 10, 32):
        text = brackets.balanced_string(length, rng)
        swapped = brackets.one_swap_away(text, rng)
        assert not by_stack(swapped)
        assert Counter(swapped) == Counter(text)
        assert sum(a != b for a, b in zip(text, swapped, strict=True)) == 2


def test_one_turned_has_one_bracket_the_other_way() -> None:
    rng = np.random.default_rng(9)
    for length in (2, 10, 20):
        text = brackets.balanced_string(length, rng)
        turned = [brackets.one_turned(text, rng) for _ in range(50 * length)]
        assert not any(map(by_stack, turned))
        assert {sum(a != b for a, b in zip(text, t, strict=True)) for t in turned} == {1}
        assert len(set(turned)) == length  # each place has its turn


def test_no_batch_of_brackets_holds_what_is_held_out() -> None:
    recipe, tokenizer = brackets.Recipe(batch=256, seed=2), brackets.tokenizer()
    for step in range(5):
        made = brackets.batch(recipe, step)
        texts = tokenizer.batch_decode(made["input_ids"], skip_special_tokens=True)
        assert not any(map(brackets.held_out, texts))
        assert {len(text) for text in texts}.isdisjoint(brackets.HELD_LENGTHS)
        assert made["labels"].tolist() == [int(by_stack(text)) for text in texts]
        assert 90 < made["labels"].sum() < 166  # half, within 5 standard errors
    lengths = {
        len(text) for text in brackets.examples(200, np.random.default_rng(1), ["balanced"], brackets.HELD_LENGTHS)
    }
    assert lengths == set(brackets.HELD_LENGTHS)


def test_a_dialled_digit_is_the_two_frequencies_of_its_row_and_column() -> None:
    line = tones.Line(noise=(300, 300), twist=(0, 0), detuned=(0, 0))
    rng = np.random.default_rng(11)
    for digit, pair in {"1": (697, 1209), "5": (770, 1336), "9": (852, 1477), "0": (941, 1336)}.items():
        sound = tones.dial(digit, rng, line)
        assert len(sound) == tones.RATE
        spectrum = np.abs(np.fft.rfft(sound))  # a bin a hertz
        low, high = spectrum[:1075].argmax(), 1075 + spectrum[1075:].argmax()
        assert abs(low - pair[0]) <= 3 and abs(high - pair[1]) <= 3  # of a tone of a twentieth of a second
        assert (
            spectrum[[low, high]].min()
            > 5 * np.delete(spectrum, np.r_[low - 60 : low + 60, high - 60 : high + 60]).max()
        )


def test_noise_is_as_loud_as_said() -> None:
    line = tones.Line(noise=(6, 6), level=(0.2, 0.2), gap=(0.06, 0.06), tone=(0.08, 0.08), twist=(0, 0))
    sound = tones.dial("4", np.random.default_rng(2), line)
    at = round(0.06 * tones.RATE)
    quiet, loud = np.mean(sound[4 * at :] ** 2), np.mean(sound[at : at + round(0.08 * tones.RATE)] ** 2)
    assert 10 * np.log10((loud - quiet) / quiet) == pytest.approx(6, abs=0.5)
    assert loud - quiet == pytest.approx(2 * (0.2 / 2) ** 2 / 2, rel=0.1)  # two waves of half the level


def test_strings_held_out_are_a_tenth_and_in_no_batch() -> None:
    share = np.mean([tones.held_out(f"{n:04d}") for n in range(10_000)])
    assert share == pytest.approx(0.1, abs=0.015)
    made = tones.batch(tones.Recipe(batch=64, seed=3), 5)
    labels = made["labels"].masked_fill(made["labels"] < 0, tones.PAD)
    texts = tones.tokenizer().batch_decode(labels, skip_special_tokens=True)
    assert not any(map(tones.held_out, texts))
    assert {len(text) for text in texts} == set(range(1, 7))
    assert tuple(made["input_features"].shape) == (64, 80, 50)
    assert all(map(tones.held_out, tones.strings(50, np.random.default_rng(0), held=True)))


def test_what_is_held_out_of_the_digits_is_a_fifth_of_each_and_not_trained_on() -> None:
    pytest.importorskip("sklearn")
    trained, held = digits.split(3)
    answers = digits.pictures()[1]
    assert sorted([*trained, *held]) == list(range(1797))
    assert len(held) == 360
    counts = np.bincount(answers[held]) / np.bincount(answers)
    assert 0.19 < counts.min() <= counts.max() < 0.21
    assert set(held) != set(digits.split(4)[1])


@pytest.mark.slow("imports scikit-learn and the image processors of transformers")
def test_pictures_are_what_the_processor_makes_of_them() -> None:
    pytest.importorskip("sklearn")
    image = pytest.importorskip("PIL.Image")
    images = digits.pictures()[0][[0, 5, 1700]]
    made = digits.processor()([image.fromarray(i).convert("RGB") for i in images], return_tensors="pt")
    assert (made["pixel_values"] - digits.seen(images)).abs().max() < 1e-6


def test_varied_pictures_stay_near_and_change() -> None:
    pytest.importorskip("sklearn")
    recipe = digits.Recipe(turned=0.0, scaled=0.0, sheared=0.0, moved=0.0, noise=0.0)
    x = digits.seen(digits.pictures()[0][:8])
    rng = np.random.default_rng(0)
    assert (digits.varied(x, recipe, rng) - x).abs().max() < 1e-5
    changed = digits.varied(x, digits.Recipe(), rng)
    assert changed.shape == x.shape
    assert 0.01 < (changed - x).abs().mean() < 0.5
    assert (changed[:, 0] == changed[:, 2]).all()


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        (numbers, "1000000", "from 0 to 999999"),
        (numbers, "-3", "from 0 to 999999"),
        (numbers, "²", "from 0 to 999999"),
        (brackets, "(a)", "no string of 1 to 20 brackets"),
        (brackets, "", "no string of 1 to 20 brackets"),
        (brackets, "()" * 17, "no string of 1 to 20 brackets"),
        (tones, "40a1", "one to 6 digits"),
        (tones, "1234567", "one to 6 digits"),
        (tones, "", "one to 6 digits"),
        (digits, "10", "no digit"),
    ],
)
def test_samples_of_what_is_none_say_what_to_give(task, text: str, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(WrongUse, match=message):
        task.sample(text, 0, tmp_path / "f.png")


@pytest.mark.parametrize("task", [tones, digits])
def test_a_sound_and_a_picture_need_a_file(task) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(WrongUse, match="--out"):
        task.sample(None, 0, None)
