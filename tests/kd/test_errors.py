import pickle

from kd.errors import InputError


def test_the_message_is_one_line_of_field_value_and_what_is_allowed():
    assert str(InputError("fit.lr", 0.0, "must be\n  above 0")) == "fit.lr: 0.0: must be above 0"
    assert str(InputError("data.source", "no/such", "is no folder")) == "data.source: no/such: is no folder"


def test_it_crosses_the_border_of_a_process():
    error = pickle.loads(pickle.dumps(InputError("fit.lr", 0.0, "must be above 0")))
    assert (error.field, error.value, error.allowed) == ("fit.lr", 0.0, "must be above 0")
