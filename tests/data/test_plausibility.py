"""Ordinary columns of tables cause no warning; what does is in tests/hostile/test_misread.py."""

import numpy as np
import pytest

from trainer.data.table import Table
from trainer.task.class_names import warn_of_equal_names, warn_of_splits

RANDOM = np.random.default_rng(0)
NUM_ROWS = 300


def choose(*values: str) -> list[str]:
    return RANDOM.choice(values, NUM_ROWS).tolist()


def write(numbers: np.ndarray, form: str = "d") -> list[str]:
    return [format(number, form) for number in numbers.tolist()]


def normal(mean: float, deviation: float, form: str) -> list[str]:
    return write(RANDOM.normal(mean, deviation, NUM_ROWS), form)


def between(low: float, high: float, form: str) -> list[str]:
    return write(RANDOM.uniform(low, high, NUM_ROWS), form)


def skewed(form: str, mean: float = 3) -> list[str]:
    return write(RANDOM.lognormal(mean, 1, NUM_ROWS), form)


def whole(low: int, high: int, factor: int = 1) -> list[str]:
    return write(RANDOM.integers(low, high, NUM_ROWS) * factor)


LABELS = {
    "numbers": choose("0", "1"),
    "ratings": choose(*"12345"),
    "ratings out of five": choose("1/5", "2/5", "3/5", "5/5"),
    "booleans": choose("True", "False"),
    "years": choose("2019", "2020", "2021"),
    "ages": choose("18-24", "25-34", "35-44"),
    "ids of classes": choose(*(f"n{number:08d}" for number in range(40))),
    "codes of countries": choose("DE", "NA", "FR", "US"),
    "paths": choose("news/sport", "news/art", "shop/art", "shop/sport", "news", "shop"),
    "paths with bars": choose("toys|cars|red", "toys|cars|blue", "toys|dolls|red", "home|beds|red"),
    "commas in names": choose(
        "Home & Kitchen", "Arts, Crafts & Sewing", "Health, Household & Baby Care", "Toys & Games"
    ),
    "newsgroups": choose("comp.graphics", "comp.os.ms-windows.misc", "sci.med", "talk.politics.guns", "alt.atheism"),
    "cities": choose("New York, NY", "Albany, NY", "Austin, TX", "Dallas, TX", "Washington, DC"),
    "persons": choose("Smith, John", "Doe, Jane", "Smith, Jane", "Doe, John"),
    "languages": choose("C", "C++", "C#", "Java", "JavaScript"),
    "two lists without a common label": choose("a|b", "c|d"),
    "one list": choose("a|b", "a", "b"),
    "two commands": choose("stop, go", "rock, paper", "go"),
    "conjunctions": choose("and/or", "either/or", "or"),
    "sizes": choose("S", "M", "L", "XL"),
    "sentiment": choose("pos", "neg", "neutral", "pos/neg"),
    "Russian": choose("спорт", "политика", "культура", "IT-отдел", "SMSка"),  # noqa: RUF001  letters of two alphabets
    "Greek": choose("αθλητικά", "πολιτική", "TNFα", "IFNγ", "β-carotene"),  # noqa: RUF001
    "Japanese": choose("Tシャツ", "スポーツ", "政治", "Lサイズ"),
    "Chinese": choose("体育", "财经", "NBA新闻"),
    "Korean": choose("스포츠", "정치", "IT뉴스"),
    "Arabic": choose("رياضة", "سياسة", "ثقافة"),
    "units": choose("µm", "mm", "kΩ", "µA", "Hα"),  # noqa: RUF001
    "accents": choose("café", "thé", "lait", "œuf"),
    "emoji": choose("\U0001f600", "\U0001f621", "\u2764\ufe0f"),
}
FEATURES = {
    "one decimal": between(4, 8, ".1f"),
    "three decimals from 0": between(0, 1, ".3f"),
    "three decimals with signs": normal(0, 1, ".3f"),
    "temperatures": normal(37, 0.5, ".3f"),
    "densities": between(0.98, 1.02, ".4f"),
    "voltages": between(3.1, 3.5, ".3f"),
    "ages": whole(17, 90),
    "gains": [str(gain) for gain in RANDOM.choice([0, 0, 0, 2174, 14084], NUM_ROWS)],
    "fares": skewed(".4f"),
    "prices": skewed(".2f"),
    "counts": whole(0, 10**6),
    "small counts": whole(0, 1000),
    "populations": whole(10**5, 2 * 10**9),
    "bytes": skewed(".0f", 20),
    "numbers of phones": whole(2_000_000_000, 9_999_999_999),
    "years": whole(1950, 2025),
    "months": whole(1, 13),
    "salaries": whole(30, 200, 1000),
    "latitudes": between(-90, 90, ".6f"),
    "scientific notation": normal(0, 1e-5, ".3e"),
    "percent": between(0, 100, ".2f"),
    "booleans": choose("True", "False"),
    "flags": choose("0", "1"),
    "ordinals": choose("1st", "2nd", "3rd"),
    "grades": choose("A", "B", "C", "A+"),
    "with gaps": [value if number % 7 else "" for number, value in enumerate(normal(0, 1, ".2f"))],
    "colors": choose("red", "blue", "dark red", "dark blue"),
    "versions": choose("1.0.0", "1.2.0", "2.0.1"),
    "negative temperatures": normal(-20, 15, ".1f"),
    "logits": normal(0, 3, "g"),
}
VALUES = {
    "prices": skewed(".2f"),
    "temperatures": normal(20, 2, ".3f"),
    "whole": whole(50, 900),
    "signs": normal(0, 9, ".3f"),
}


def read(roles: dict[str, list[str]]) -> Table:
    """Return the table of columns that have the names of their roles, after it was read once."""
    names = list(roles)
    table = Table.for_roles({name: name for name in names}, names, lambda role: f"data.{role}", "|", names)
    cells = list(zip(*roles.values(), strict=True))

    def records() -> list[tuple[int, str, tuple[str, ...]]]:
        return [(row, f"row {row}", values) for row, values in enumerate(cells, 1)]

    table.scan(lambda: iter(records()))
    assert len(list(table.training_samples(iter(records())))) == NUM_ROWS
    return table


@pytest.mark.parametrize(
    ("role", "columns"),
    [("label", LABELS), ("features", FEATURES), ("value", VALUES)],
    ids=["label", "features", "value"],
)
def test_ordinary_columns_cause_no_warning(role: str, columns: dict[str, list[str]]) -> None:
    texts = [f"text {number}" for number in range(NUM_ROWS)]
    rest = {"label": choose("yes", "no")} if role == "features" else {"text": texts}
    warnings = {name: read({role: values, **rest}).warnings for name, values in columns.items()}
    if role == "label":
        for name, values in columns.items():
            names = sorted(set(values))
            warnings[name] += [*warn_of_equal_names(names, role), *warn_of_splits(names, role)]
    assert {name: each for name, each in warnings.items() if each} == {}


def test_numbers_are_equal_only_if_they_are_to_the_last_digit() -> None:
    different = ["9007199254740992", "9007199254740993", "0.1", "0.10000000000000001", "1e400", "1e401", "nan", "sNaN"]
    assert warn_of_equal_names(different, "label") == []
    for equal in (["9007199254740993", "9007199254740993.0"], ["1", "1e0"], ["true", "1"], ["1e400", "10e399"]):
        assert len(warn_of_equal_names(equal, "label")) == 1
