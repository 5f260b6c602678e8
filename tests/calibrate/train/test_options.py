import pytest
from pydantic import ValidationError

from calibrate.config.training import TrainOptions


def test_the_defaults_leave_nothing_to_choose_for_one_layer() -> None:
    options = TrainOptions()
    assert options.layer_sets((4,)) == ((4,),)
    assert options.kind_sets() == (("mean",),)
    assert not options.reads_tokens


def test_every_layer_alone_and_all_together_are_candidates_and_so_are_kinds() -> None:
    options = TrainOptions(kinds=("mean", "attention"))
    assert options.layer_sets((2, 4, 6)) == ((2,), (4,), (6,), (2, 4, 6))
    assert options.kind_sets() == (("mean",), ("attention",), ("mean", "attention"))
    assert options.reads_tokens
    assert TrainOptions.model_validate({"layers": [4, [2, 4]]}).layer_sets((2, 4, 6)) == ((4,), (2, 4))


@pytest.mark.parametrize(
    "change",
    [
        {"layers": []},
        {"layers": [[4, 2]]},
        {"layers": [[2], [2]]},
        {"kinds": []},
        {"kinds": ["mean", "mean"]},
        {"kinds": ["median"]},
        {"features": ["length", "length"]},
        {"costs": {"missed": 0}},
        {"calibrate": "isotonic"},
        {"merge": "maximum"},
        {"seeds": 0},
        {"token_rows": 10},
        {"epochs": 3},
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainOptions.model_validate(change)
