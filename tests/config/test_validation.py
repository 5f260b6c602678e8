"""Errors in YAML files name the file, the key and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from ctd_guardrail.config.validation import load_yaml, validate
from ctd_guardrail.errors import ConfigError


class _Near(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["near"]
    model: str
    timeout_s: Annotated[float, Field(gt=0)] = 1.0


class _Far(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["far"]
    address: str


class _Root(BaseModel):
    model_config = ConfigDict(extra="forbid")
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    expert: Annotated[_Near | _Far, Field(discriminator="type")] | None = None
    steps: list[_Near] = []


def _write(folder: Path, text: str) -> Path:
    path = folder / "config.yml"
    path.write_text(text, encoding="utf-8")
    return path


def _refused(content: dict[str, object]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        validate(_Root, content, file=Path("config.yml"), prefix="custom_data.ctd")
    return caught.value


def test_a_correct_mapping_becomes_the_model() -> None:
    root = validate(_Root, {"alpha": 0.2, "expert": {"type": "far", "address": "a"}})
    assert root.alpha == 0.2
    assert isinstance(root.expert, _Far)


def test_an_unknown_key_gets_the_closest_known_one() -> None:
    error = _refused({"alhpa": 0.2})
    assert error.key == "custom_data.ctd.alhpa"
    assert "Did you mean `alpha`?" in str(error)
    assert str(error).startswith("config.yml: custom_data.ctd.alhpa: ")


def test_an_unknown_key_without_a_close_one_gets_the_list() -> None:
    assert "alpha, expert, steps" in _refused({"zzz": 1}).hint


def test_a_key_inside_a_union_is_named_without_the_tag() -> None:
    error = _refused({"expert": {"type": "near", "model": "m", "adress": "x"}})
    assert error.key == "custom_data.ctd.expert.adress"
    assert "address" not in error.hint  # a key of the other kind
    assert "timeout_s" in error.hint


def test_a_missing_key_inside_a_union_is_named() -> None:
    error = _refused({"expert": {"type": "near"}})
    assert error.key == "custom_data.ctd.expert.model"
    assert error.problem.endswith("this key is missing")


def test_an_unknown_and_a_missing_type_name_the_choices() -> None:
    for expert in ({"type": "nearby"}, {}):
        error = _refused({"expert": expert})
        assert error.key == "custom_data.ctd.expert.type"
        assert "near, far" in error.hint


def test_a_value_out_of_range_is_named_but_not_quoted() -> None:
    error = _refused({"expert": {"type": "near", "model": "m", "timeout_s": "canary"}})
    assert error.key == "custom_data.ctd.expert.timeout_s"
    assert "canary" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_an_item_of_a_list_is_named_by_its_position() -> None:
    assert (
        _refused({"steps": [{"type": "near", "model": "m"}, {"type": "near"}]}).key == "custom_data.ctd.steps.1.model"
    )


def test_yaml_is_read_as_plain_types(tmp_path: Path) -> None:
    assert load_yaml(_write(tmp_path, "a: {b: [1, x]}\n")) == {"a": {"b": [1, "x"]}}


def test_a_repeated_key_is_refused_with_its_path_and_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"budget\.alpha: this key is written twice \(line 3\)"):
        load_yaml(_write(tmp_path, "budget:\n  alpha: 0.1\n  alpha: 0.2\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "not valid YAML"),
        ("- a\n", "does not hold a mapping"),
        ("", "does not hold a mapping"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("a: &x [*x]\nb: {c: 1, c: 2}\n", "b.c: this key is written twice"),
        ("a: " + "[" * 2000, "not valid YAML"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_yaml(_write(tmp_path, text))


def test_a_missing_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_yaml(tmp_path / "absent.yml")
    (tmp_path / "binary.yml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_yaml(tmp_path / "binary.yml")
