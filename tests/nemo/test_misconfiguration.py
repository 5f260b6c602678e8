"""Configurations that NeMo accepts silently, or refuses with an unhelpful message."""

# ruff: noqa: E501  # a mistake a line

from pathlib import Path
from typing import Any, NamedTuple

import nemoguardrails
import pytest
import yaml
from nemoguardrails import RailsConfig

from ctd_guardrail.assembly.folder import read_folder
from ctd_guardrail.cli.wiring import Engine, check_wiring
from ctd_guardrail.errors import ConfigError

ROOT = Path(__file__).parents[2]
SECTION = "policy: ./policy, expert: {type: openai, base_url: 'http://127.0.0.1:8000/v1', model: judge}"
IMPORT = "import_paths: [ctd_guardrail/nemo]\n"
FLOWS = "rails: {input: {flows: [ctd check input]}}\n"
SOUND = f"{IMPORT}custom_data: {{ctd: {{{SECTION}}}}}\n{FLOWS}"
MAIN = (
    "import core\nimport guardrails\nimport ctd_guardrail.nemo\n\n"
    "flow main\n  activate answering\n\nflow input rails $input_text\n  ctd check input\n"
)
COLANG_2 = f'colang_version: "2.x"\ncustom_data: {{ctd: {{{SECTION}}}}}\n'


# Where NeMo looks for imports, beside the current folder.
COLANG_PATH = "nemoguardrails.rails.llm.config.colang_path_dirs"


class Mistake(NamedTuple):
    key: str
    hint: str
    files: dict[str, str]
    engine: Engine = Engine.LLMRAILS


def one(key: str, hint: str, text: str, **more: Any) -> Mistake:
    return Mistake(key, hint, {"config.yml": text}, **more)


def changed(key: str, hint: str, section: str) -> Mistake:
    prefix = "custom_data.ctd." if key else "custom_data.ctd"
    return one(f"{prefix}{key}", hint, f"{IMPORT}custom_data: {{ctd: {{{SECTION}, {section}}}}}\n{FLOWS}")


MISTAKES = [
    # In the wrong place.
    one("ctd", "Move it to custom_data.ctd", f"ctd: {{{SECTION}}}\n{IMPORT}{FLOWS}"),
    one("rails.config.ctd", "Move it to", f"rails: {{config: {{ctd: {{{SECTION}}}}}, input: {{flows: [ctd check input]}}}}\n"),
    one("rails.ctd", "Move it to", f"{SOUND.replace('rails: {', f'rails: {{ctd: {{{SECTION}}}, ')}"),
    one("rails.input.ctd", "Move it to", SOUND.replace("input: {", "input: {ctd: {alpha: 0.1}, ")),
    one("models.0.ctd", "Move it to", SOUND + "models: [{type: main, engine: openai, model: m, ctd: {alpha: 0.1}}]\n"),
    one("instructions.ctd", "Move it to", f"{IMPORT}{FLOWS}instructions: {{ctd: {{{SECTION}}}}}\n"),
    one("custom_data.guards.ctd", "Move it to", f"{IMPORT}{FLOWS}custom_data: {{guards: {{ctd: {{{SECTION}}}}}}}\n"),
    Mistake("prompts.0.ctd", "Move it to", {"config.yml": SOUND, "prompts.yml": "prompts: [{task: t, content: c, ctd: {a: 1}}]\n"}),
    Mistake("ctd", "Move it to", {"config.yml": SOUND, "prompts.yml": f"prompts: []\nctd: {{{SECTION}}}\n"}),
    Mistake("custom_data.ctd", "Give it another name", {"config.yml": IMPORT + FLOWS, "kb/config.yml": SOUND}),
    Mistake("custom_data.ctd", "Give it another name", {"config.yml": IMPORT + FLOWS, "kb_and_more.yml": SOUND}),
    Mistake("custom_data.ctd", "Give it another name", {"config.yml": IMPORT + FLOWS, "config.yml.bak": SOUND}),
    Mistake(
        "custom_data.ctd",
        "Give it another name",
        {"config.yml": IMPORT + FLOWS, "guard.yml": SOUND, ".railsignore": "# not now\nguard.*\n"},
    ),
    # Twice.
    Mistake("custom_data", "into one file", {"a.yml": SOUND, "b.yml": "custom_data: {something: else}\n"}),
    Mistake("custom_data", "into one file", {"a.yml": "custom_data:\n", "b.yml": SOUND}),
    Mistake("custom_data", "into one file", {"config.yml": SOUND, "deeper/config.yaml": SOUND}),
    Mistake("rails", "into one file", {"config.yml": SOUND, "more.yml": "rails: {output: {flows: [check output]}}\n"}),
    one("custom_data", "Keep one of them", SOUND + f"custom_data: {{ctd: {{{SECTION}}}}}\n"),
    one("custom_data.ctd", "Keep one of them", f"{IMPORT}{FLOWS}custom_data:\n  ctd: {{{SECTION}}}\n  ctd: {{{SECTION}}}\n"),
    changed("alpha", "Keep one of them", "alpha: 0.1, alpha: 0.2"),
    # Missing, or not a mapping.
    one("custom_data.ctd", "Add custom_data", IMPORT + FLOWS),
    one("custom_data.ctd", "Add custom_data", f"{IMPORT}{FLOWS}custom_data: {{}}\n"),
    one("custom_data.ctd", "Write custom_data", f"{IMPORT}{FLOWS}custom_data: {{ctd: }}\n"),
    one("custom_data.ctd", "Write custom_data", f"{IMPORT}{FLOWS}custom_data: {{ctd: ./policy}}\n"),
    one("custom_data", "keys below it", f"{IMPORT}{FLOWS}custom_data: [{{ctd: 1}}]\n".replace("ctd: 1", "a: 1")),
    one("rails.input", "keys below it", SOUND.replace("{flows: [ctd check input]}", "[ctd check input]")),
    # Mistyped on the way to the section.
    one("custom_dat", "Did you mean `custom_data`?", SOUND.replace("custom_data", "custom_dat").replace("ctd:", "guard:")),
    one("custom-data", "Did you mean `custom_data`?", SOUND.replace("custom_data", "custom-data").replace("ctd:", "guard:")),
    one("custom_data.cdt", "Did you mean `ctd`?", SOUND.replace("ctd:", "cdt:")),
    one("custom_data.CTD", "Did you mean `ctd`?", SOUND.replace("ctd:", "CTD:")),
    one("custom_data.ctd-guardrail", "Did you mean `ctd`?", SOUND.replace("ctd:", "ctd-guardrail:")),
    # Mistyped in the section.
    changed("alfa", "Did you mean `alpha`?", "alfa: 0.1"),
    changed("on_fail", "Did you mean `on_failure`?", "on_fail: block"),
    changed("onFailure", "Did you mean `on_failure`?", "onFailure: block"),
    changed("allow_override", "Did you mean `allow_overrides`?", "allow_override: [alpha]"),
    changed("cap.pers", "Did you mean `per_s`?", "cap: {calls: 1, pers: 60}"),
    changed("self_test.unsave", "Did you mean `unsafe`?", "self_test: {unsave: [x]}"),
    changed("costs.mised", "Did you mean `missed`?", "costs: {mised: 1}"),
    changed("surprise", "Known keys here", "surprise: 1"),
    one("custom_data.ctd.polcy", "Did you mean `policy`?", SOUND.replace("policy:", "polcy:")),
    one("custom_data.ctd.expert.base_ulr", "Did you mean `base_url`?", SOUND.replace("base_url", "base_ulr")),
    one("custom_data.ctd.expert.type", "Use one of openai", SOUND.replace("type: openai", "type: opnai")),
    # Values out of range.
    changed("alpha", "unit: conversation", "alpha: 10"),
    changed("alpha", "unit: conversation", "alpha: 10, unit: turn"),
    changed("delta", "", "delta: five percent"),
    changed("mode", "", "mode: observe"),
    changed("on_overlong", "", "on_overlong: allow"),
    changed("allow_overrides.0", "", "allow_overrides: [policy]"),
    changed("", "`experts`", "allow_overrides: [expert]"),
    one("custom_data.ctd.expert.base_url", "Write http://", SOUND.replace("http://127.0.0.1:8000/v1", "127.0.0.1:8000")),
    # Not found, or not called.
    one("import_paths", "Add `import_paths", SOUND.replace(IMPORT, "")),
    one("import_paths", "Did you mean `ctd_guardrail/nemo`?", SOUND.replace("ctd_guardrail/nemo", "ctd_guardrail.nemo")),
    one("import_paths", "Did you mean `ctd_guardrail/nemo`?", SOUND.replace("ctd_guardrail/nemo", "ctd-guardrail/nemo")),
    one("import_paths", "Write `import_paths: [...]`", SOUND.replace("[ctd_guardrail/nemo]", "ctd_guardrail/nemo")),
    one("import_path", "Did you mean `import_paths`?", SOUND.replace("import_paths", "import_path")),
    one("rail", "Did you mean `rails`?", SOUND.replace("rails:", "rail:")),
    one("rails.inputs", "Did you mean `input`?", SOUND.replace("{input:", "{inputs:")),
    one("rails.input.flow", "Did you mean `flows`?", SOUND.replace("{flows:", "{flow:")),
    one("rails.input.flows", "Write `flows: [...]`", SOUND.replace("[ctd check input]", "ctd check input")),
    one("rails.input.flows", "Add `rails:", SOUND.replace("ctd check input", "check jailbreak")),
    one("rails.input.flows", "Did you mean `ctd check input`?", SOUND.replace("ctd check input", "ctd_check_input")),
    one("rails.input.flows", "Add `rails:", SOUND.replace("{input:", "{output:")),
    one("colang_version", 'Write "1.0" or "2.x"', SOUND + "colang_version: 2.0\n"),
    Mistake("import", "Add `import ctd_guardrail.nemo`", {"config.yml": COLANG_2, "main.co": MAIN.replace("import ctd_guardrail.nemo", "")}),
    Mistake("import", "Add `import ctd_guardrail.nemo`", {"config.yml": COLANG_2}),
    Mistake("flow input rails", "Add `flow input rails", {"config.yml": COLANG_2, "main.co": MAIN.replace("  ctd check", "  pass # ctd check")}),
    # What IORails cannot do.
    one("custom_data.ctd.allow_overrides", "sidecar", SOUND.replace("{policy", "{allow_overrides: [alpha], policy"), engine=Engine.IORAILS),
    Mistake("flow main", "Remove the file", {"config.yml": SOUND, "rails.co": "flow main\n  pass\n"}, Engine.IORAILS),
    Mistake("colang_version", "LLMRails", {"config.yml": COLANG_2, "main.co": MAIN}, Engine.IORAILS),
]  # fmt: skip


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return folder


def check(folder: Path, engine: Engine) -> None:
    check_wiring(read_folder(folder), engine=engine)


def test_there_are_many() -> None:
    assert len(MISTAKES) >= 60


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake.key}: {mistake.hint}")
def test_a_mistake_is_named_with_file_key_and_hint(mistake: Mistake, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check(write(tmp_path, mistake.files), mistake.engine)
    error = caught.value
    assert error.file is not None
    assert error.file.is_relative_to(tmp_path)
    assert error.key == mistake.key
    assert mistake.hint in error.hint
    assert str(error).startswith(f"{error.file}: {error.key}: ")


@pytest.mark.parametrize(
    ("files", "engine"),
    [
        ({"config.yml": SOUND}, Engine.LLMRAILS),
        ({"config.yml": SOUND}, Engine.IORAILS),
        ({"config.yml": SOUND.replace(IMPORT, ""), "config.py": ""}, Engine.LLMRAILS),
        ({"config.yml": COLANG_2, "main.co": MAIN}, Engine.LLMRAILS),
        ({"config.yml": COLANG_2 + IMPORT, "main.co": MAIN.replace("import ctd_guardrail.nemo\n", "")}, Engine.LLMRAILS),
        ({"config.yml": SOUND, "prompts.yml": "prompts: []\n", "kb/notes.md": "ctd: x"}, Engine.LLMRAILS),
        ({"config.yml": SOUND.replace("rails: {", "rails: {config: {hf_classifier: {ctd: {engine: fms, model: ctd, base_url: 'http://127.0.0.1:8080'}}}, ")}, Engine.LLMRAILS),
    ],
)  # fmt: skip
def test_what_is_sound_passes(files: dict[str, str], engine: Engine, tmp_path: Path) -> None:
    check(write(tmp_path, files), engine)


@pytest.mark.parametrize("example", sorted((ROOT / "config_examples").rglob("config.yml")), ids=lambda p: p.parent.name)
def test_the_examples_are_wired(example: Path) -> None:
    if "custom_data" in yaml.safe_load(example.read_text()):
        check(example.parent, Engine.LLMRAILS)


def test_auto_goes_by_the_variable_that_nemo_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, {"config.yml": SOUND, "rails.co": "flow main\n  pass\n"})
    check(folder, Engine.AUTO)
    monkeypatch.setenv("NEMO_GUARDRAILS_IORAILS_ENGINE", "1")
    with pytest.raises(ConfigError, match="runs no Colang"):
        check(folder, Engine.AUTO)


def test_nemo_must_find_this_package_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, {"config.yml": SOUND})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(COLANG_PATH, [str(ROOT)])
    check(folder, Engine.LLMRAILS)
    (tmp_path / "ctd_guardrail" / "nemo").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is not this package") as caught:
        check(folder, Engine.LLMRAILS)
    assert caught.value.key == "import_paths"


def test_where_nemo_does_not_look_is_said_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As from an editable installation: this package's folder is not the one that NeMo is installed in.
    monkeypatch.chdir(tmp_path)
    library = Path(nemoguardrails.__file__).parent / "colang" / "v2_x" / "library"
    monkeypatch.setattr(COLANG_PATH, [str(library)])
    for files, key in (({"config.yml": SOUND}, "import_paths"), ({"config.yml": COLANG_2, "main.co": MAIN}, "import")):
        with pytest.raises(ConfigError, match="does not find") as caught:
            check(write(tmp_path / key, files) if (tmp_path / key).mkdir() is None else tmp_path, Engine.LLMRAILS)
        assert caught.value.key == key
        assert f"COLANGPATH={ROOT}" in caught.value.hint


def test_nemo_ignores_files_by_the_nearest_railsignore_above_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "configs" / "chat"
    folder.mkdir(parents=True)
    write(folder, {"config.yml": IMPORT + FLOWS, "guard.yml": f"custom_data: {{ctd: {{{SECTION}}}}}\n"})
    check(folder, Engine.LLMRAILS)
    (tmp_path / ".railsignore").write_text("guard.yml\n")
    assert "ctd" not in RailsConfig.from_path(str(folder)).custom_data
    with pytest.raises(ConfigError, match="NeMo does not read this file"):
        check(folder, Engine.LLMRAILS)
    (tmp_path / "configs" / ".railsignore").write_text("\n")
    check(folder, Engine.LLMRAILS)


@pytest.mark.parametrize(
    ("imported", "key"),
    [
        ("custom_data: {ctd: {policy: ./theirs}}\n", "custom_data"),
        ("rails: {input: {flows: []}}\n", "rails.input.flows"),
    ],
)
def test_what_an_imported_folder_overwrites_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imported: str, key: str
) -> None:
    (tmp_path / "shared").mkdir()
    write(tmp_path / "shared", {"config.yml": imported})
    (tmp_path / "mine").mkdir()
    folder = write(tmp_path / "mine", {"config.yml": SOUND.replace("[ctd_", f"[{tmp_path}/shared, ctd_")})
    with pytest.raises(ConfigError, match="imported folder") as caught:
        check(folder, Engine.LLMRAILS)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("models: [{type: main, engine: openai, model: m, parameters: sk-secret}]\n", "NeMo refuses"),
        ("prompts: [{task: self_check_output}]\n", "NeMo refuses"),
    ],
)
def test_what_nemo_refuses_is_said_without_values(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check(write(tmp_path, {"config.yml": SOUND + more}), Engine.LLMRAILS)
    assert "sk-secret" not in str(caught.value)


def test_a_flow_that_does_not_parse_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"NeMo refuses.*main\.co"):
        check(write(tmp_path, {"config.yml": COLANG_2, "main.co": MAIN + "flow (\n"}), Engine.LLMRAILS)
