import pytest

from experiments.render import figures


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (figures.percent, 98.055, "98.06"),
        (figures.percent, 100.0, "100.00"),
        (figures.count, 0, "0"),
        (figures.count, 7, "7"),
        (figures.count, 68, "68"),
        (figures.count, 999, "999"),
        (figures.count, 999_499, "999 k"),
        (figures.count, 999_600, "1.00 M"),
        (figures.count, 40_812_544, "40.8 M"),
        (figures.size, 74_310, "74.3 kB"),
        (figures.size, 5e12, "5000 GB"),
        (figures.milliseconds, 0.0123, "0.0123"),
        (figures.milliseconds, 9.996, "10.0"),
        (figures.milliseconds, 1234.4, "1234"),
        (figures.times, 0.871, "0.871×"),
        (figures.times, 33.32, "33.3×"),
        (figures.duration, 8.44, "8.4 s"),
        (figures.duration, 59.97, "1 min 0 s"),
        (figures.duration, 3599.6, "1 h 0 min"),
        (figures.duration, 3_800.0, "1 h 3 min"),
    ],
)
def test_numbers_have_three_digits_and_a_unit(form, value, text):
    assert form(value) == text


@pytest.mark.parametrize(
    "form",
    [figures.percent, figures.count, figures.size, figures.milliseconds, figures.times, figures.duration],
)
def test_what_is_unknown_is_a_dash(form):
    assert form(None) == "–"


@pytest.mark.parametrize(
    ("values", "text"), [([], "–"), ([97.0], "97.00"), ([96.0, 98.0], "97.00 ± 1.41"), ([1, 2, 3], "2.00 ± 1.00")]
)
def test_several_values_are_a_mean_and_a_deviation(values, text):
    assert figures.spread(values) == text
