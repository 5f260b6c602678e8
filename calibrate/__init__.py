"""Offline calibration: from labelled conversations to the policy that the rail reads.

:func:`calibrate` makes a policy from the settings in CALIBRATE.yml. :func:`study` measures a policy on labelled rows.
:func:`train_probes` trains the two probes on activations. The commands ``ctd-calibrate run`` and ``ctd-calibrate
evaluate`` call the first two.

Everything else in this package is internal and may change. Importing this package loads no torch and no scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from calibrate.pipeline.run import PipelineResult
    from calibrate.pipeline.study import PolicyStudy
    from calibrate.train import train_probes

__all__ = ["calibrate", "study", "train_probes"]


def calibrate(config: Path | str, *, ask_refused_again: bool = False, console: Console | None = None) -> PipelineResult:
    """Calibrate a policy and write it with its report, model card and record of reproducibility.

    A run that was interrupted continues from the saved activations and expert scores when it is called again.

    Args:
        config: The file CALIBRATE.yml. Relative paths in it start from its folder.
        ask_refused_again: Whether to ask again about rows that the expert refused in an earlier run.
        console: Where progress is drawn; None draws nothing.

    Returns:
        The policy, its certificate, and its figures on the test rows.

    Raises:
        ConfigError: The file is not valid, a setting does not fit the base model, or a folder cannot be written to.
        DataError: A row is malformed or too long, there are too few rows, or the expert refused too many.
        InfeasibleBudgetError: There are too few calibration rows for this alpha and delta.
        PolicyLockedError: Another process writes the output folder.
        ActivationError: The base model cannot be loaded.
        ExpertError: The expert failed. The scores so far are saved.
        DependencyError: An optional package is not installed.

    Example:
        >>> from calibrate import calibrate
        >>> result = calibrate("CALIBRATE.yml")
        >>> result.certificate.alpha
        0.2
        >>> result.certificate.mean_rate < 0.2
        True
        >>> accuracy = result.grid.cell("ctd", 0.2).figures["accuracy"]
        >>> 0 <= accuracy.value <= 1 and accuracy.error > 0
        True
    """
    from calibrate._extra import needs_extra  # noqa: PLC0415  # importing this package is cheap
    from calibrate.config.file import load_config  # noqa: PLC0415
    from ctd_guardrail.config.validation import naming  # noqa: PLC0415

    settings = load_config(Path(config))
    with needs_extra("calibration"):
        from calibrate.pipeline.run import run  # noqa: PLC0415  # torch and scikit-learn, for valid settings only
        from calibrate.report.documents import write_documents  # noqa: PLC0415
    with naming(Path(config)):
        result = run(settings, console=console or _quiet(), ask_refused_again=ask_refused_again)
    write_documents(result, settings, command=["ctd-calibrate", "run", str(config)])
    return result


def study(
    policy: Path | str,
    data: Sequence[Path | str],
    *,
    to: Path | str | None = None,
    expert_column: str | None = None,
    expert_config: Path | str | None = None,
    source_config: Path | str | None = None,
    cache: Path | str = ".ctd-cache",
    device: str = "auto",
    ask_refused_again: bool = False,
    show_text: bool = False,
    console: Console | None = None,
) -> PolicyStudy:
    """Measure a policy on labelled rows that it was not made from.

    Args:
        policy: Folder of the policy.
        data: JSON lines, as for a calibration. Rows that the policy was made from are left out.
        to: Folder for the tables, plots and report; None writes no files.
        expert_column: Field with recorded expert scores. Without it and ``expert_config``, the field of the
            calibration is read.
        expert_config: YAML file with an ``expert`` section: the expert to ask.
        source_config: YAML file with a ``source`` section, for a policy whose activations come from your own code.
        cache: Folder of saved expert scores.
        device: ``auto``, ``cpu``, or a torch device.
        ask_refused_again: Whether to ask again about rows that the expert refused in an earlier run.
        show_text: Whether to write the texts of failure cases as well.
        console: Where progress is drawn; None draws nothing.

    Returns:
        The figures, and the rows behind them.

    Raises:
        ConfigError: There is no source of expert scores or more than one, or a folder cannot be written to.
        DataError: A row is malformed, no rows of both labels are left, or the expert refused too many.
        PolicyError: The policy cannot be used.
        ActivationError: The base model cannot be loaded.
        ExpertError: The expert failed. The scores so far are saved.
        DependencyError: An optional package is not installed.

    Example:
        >>> from calibrate import study
        >>> result = study("policy", ["prompts.jsonl"])
        >>> (row,) = result.study.tables["cascade"].where(method="ctd", alpha=0.2)
        >>> sorted(row)[:3]
        ['accuracy', 'accuracy_se', 'alpha']
        >>> 0 <= row["accuracy"] <= 1
        True
    """
    from calibrate._extra import needs_extra  # noqa: PLC0415  # importing this package is cheap
    from calibrate.config.file import load_expert, load_source  # noqa: PLC0415
    from ctd_guardrail.errors import ConfigError  # noqa: PLC0415

    if expert_column is not None and expert_config is not None:
        raise ConfigError(
            "there is more than one source of expert scores", hint="Give one of expert_column and expert_config"
        )
    expert = None if expert_config is None else load_expert(Path(expert_config))
    with needs_extra("an evaluation"):
        from calibrate.pipeline.study import study_policy  # noqa: PLC0415  # torch and scikit-learn
        from calibrate.report.study_files import write_study  # noqa: PLC0415
    result = study_policy(
        Path(policy),
        [Path(file) for file in data],
        cache=Path(cache),
        console=console or _quiet(),
        expert_column=expert_column,
        expert=expert,
        device=device,
        activations=None if source_config is None else load_source(Path(source_config)),
        ask_refused_again=ask_refused_again,
    )
    if to is not None:
        write_study(result, Path(to), policy_folder=Path(policy), expert=expert, show_text=show_text)
    return result


def _quiet() -> Console:
    from rich.console import Console  # noqa: PLC0415  # importing this package is cheap

    return Console(quiet=True)


def __getattr__(name: str) -> Any:
    """Import ``train_probes`` when it is first used, because it loads torch."""
    if name != "train_probes":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from calibrate._extra import needs_extra  # noqa: PLC0415  # importing this package is cheap

    with needs_extra("training"):
        from calibrate.train import train_probes  # noqa: PLC0415

    return train_probes


def __dir__() -> list[str]:
    return sorted(__all__)
