import pytest
from pydantic import ValidationError

from calibrate.config.recipe import Recipe


def test_the_defaults_leave_nothing_to_choose_for_one_layer() -> None:
    recipe = Recipe()
    assert recipe.layer_sets((4,)) == ((4,),)
    assert recipe.kind_sets() == (("mean",),)
    assert not recipe.reads_tokens


def test_every_layer_alone_and_all_together_are_candidates_and_so_are_kinds() -> None:
    recipe = Recipe(kinds=("mean", "attention"))
    assert recipe.layer_sets((2, 4, 6)) == ((2,), (4,), (6,), (2, 4, 6))
    assert recipe.kind_sets() == (("mean",), ("attention",), ("mean", "attention"))
    assert recipe.reads_tokens
    assert Recipe.model_validate({"layers": [4, [2, 4]]}).layer_sets((2, 4, 6)) == ((4,), (2, 4))


@pytest.mark.parametrize(
    "change",
    [
        {"layers": []},
        {"layers": [[4, 2]]},
        {"layers": [[2], [2]]},
        {"kinds": []},
        {"kinds": ["mean", "mean"]},
        {"kinds": ["median"]},
        {"calibrate": "isotonic"},
        {"merge": "maximum"},
        {"delegation": "direct"},
        {"epochs": 3},
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate(change)
