"""Every exception that this package raises on purpose.

::

    CtdError
    ├── ConfigError              a YAML file or a command-line option is wrong
    ├── DataError                a row of a data or score file is wrong
    ├── DependencyError          an optional package is not installed
    ├── HostError                NeMo Guardrails is not as this version knows it
    ├── PolicyError
    │   ├── PolicyFormatError    the policy folder cannot be read as a policy
    │   ├── PolicyIntegrityError its content differs from its manifest
    │   ├── PolicyLockedError    another process writes it
    │   └── PolicyMismatchError  it was made for another base model, tokenizer, layer, dtype or expert
    ├── InfeasibleBudgetError    the calibration scores cannot certify this alpha at this delta
    ├── InputError               a conversation cannot be screened as it stands
    │   ├── NonTextError         it holds content that is not text
    │   └── OverlongError        it has more tokens than the policy allows
    ├── ActivationError          the base model could not be loaded or run
    │   ├── ActivationUnavailableError  the engine that serves it cannot be reached or fails
    │   └── OverloadedError      the queue in front of it is full
    ├── OverrideError            a request asks for a setting that it may not have
    ├── StoreError               the server that processes share cannot be reached
    └── ExpertError
        ├── ExpertNotAskedError     it was not asked
        │   ├── BreakerOpenError       it failed too often a moment ago
        │   ├── CapStoreError          the store of the caps cannot be reached
        │   ├── ExpertCapError         a cap has nothing left
        │   ├── ExpertDisabledError    it is switched off
        │   └── ExpertOverloadedError  too many inputs are waiting for it
        ├── ExpertTimeoutError      no answer before the deadline
        ├── ExpertUnavailableError  refused, unreachable, rate-limited or failing
        └── ExpertVerdictError      an answer that is not a verdict

A message states what is wrong, where (file, key path or row), and what to do. No message holds a secret or the text of
a conversation.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "ActivationError",
    "ActivationUnavailableError",
    "BreakerOpenError",
    "CapStoreError",
    "ConfigError",
    "CtdError",
    "DataError",
    "DependencyError",
    "ExpertCapError",
    "ExpertDisabledError",
    "ExpertError",
    "ExpertNotAskedError",
    "ExpertOverloadedError",
    "ExpertTimeoutError",
    "ExpertUnavailableError",
    "ExpertVerdictError",
    "HostError",
    "InfeasibleBudgetError",
    "InputError",
    "NonTextError",
    "OverloadedError",
    "OverlongError",
    "OverrideError",
    "PolicyError",
    "PolicyFormatError",
    "PolicyIntegrityError",
    "PolicyLockedError",
    "PolicyMismatchError",
    "StoreError",
]


class CtdError(Exception):
    """Base of all errors of this package.

    Args:
        problem: What is wrong.
        hint: What to do about it.
    """

    def __init__(self, problem: str, *, hint: str = "") -> None:
        self.problem = problem
        self.hint = hint
        super().__init__(f"{problem}. {hint}" if hint else problem)


class ConfigError(CtdError):
    """A configuration value is missing, unknown or wrong.

    Args:
        problem: What is wrong.
        file: The file that holds the value, if it came from one.
        key: Dotted path of the key inside the file, for example ``custom_data.ctd.alpha``.
        hint: What to do about it.
    """

    def __init__(self, problem: str, *, file: Path | str | None = None, key: str = "", hint: str = "") -> None:
        self.file = None if file is None else Path(file)
        self.key = key
        where = ": ".join(part for part in (str(file) if file is not None else "", key) if part)
        super().__init__(f"{where}: {problem}" if where else problem, hint=hint)


class DataError(CtdError):
    """A row of an input file is missing a field, malformed, or out of range.

    Args:
        problem: What is wrong.
        file: The file that holds the row.
        row: Its 1-based line number, if the problem is in one row.
        hint: What to do about it.
    """

    def __init__(self, problem: str, *, file: Path | str | None = None, row: int | None = None, hint: str = "") -> None:
        self.file = None if file is None else Path(file)
        self.row = row
        where = "" if file is None else str(file)
        if row is not None:
            where = f"{where}, row {row}" if where else f"row {row}"
        super().__init__(f"{where}: {problem}" if where else problem, hint=hint)


class DependencyError(CtdError):
    """An optional package that this step needs is not installed."""


class HostError(CtdError):
    """The host, NeMo Guardrails, is built in another way than this version of the rail expects."""


class PolicyError(CtdError):
    """Base of everything that can be wrong with a policy folder."""


class PolicyFormatError(PolicyError):
    """The folder is not a policy, or of a format that this version does not read."""


class PolicyIntegrityError(PolicyError):
    """A hash, shape or dtype in the folder differs from what its manifest states."""


class PolicyLockedError(PolicyError):
    """Another process writes the policy folder."""


class PolicyMismatchError(PolicyError):
    """The policy was calibrated on another base model, tokenizer, layer, dtype or expert than the served one."""


class InfeasibleBudgetError(CtdError):
    """The calibration scores cannot certify the requested budget.

    Args:
        problem: What is wrong.
        alpha: The budget that was asked for.
        alpha_min: The smallest budget that these scores can certify at the same delta.
        n_min: The smallest number of calibration rows that would certify ``alpha``.
        hint: What to do about it.
    """

    def __init__(self, problem: str, *, alpha: float, alpha_min: float, n_min: int, hint: str = "") -> None:
        self.alpha = alpha
        self.alpha_min = alpha_min
        self.n_min = n_min
        super().__init__(problem, hint=hint)


class InputError(CtdError):
    """A conversation cannot be screened as it stands."""


class NonTextError(InputError):
    """A message holds content that is not text, so the probes cannot see it."""


class OverlongError(InputError):
    """A conversation has more tokens than the policy's stated limit."""


class ActivationError(CtdError):
    """The base model could not be loaded, or its forward pass failed."""


class ActivationUnavailableError(ActivationError):
    """The engine that serves the base model refused the call, could not be reached, or reported a failure.

    Args:
        problem: What is wrong.
        hint: What to do about it.
        has_lost_connection: Whether there was no answer at all. The next answer may then come from another engine.
    """

    def __init__(self, problem: str, *, hint: str = "", has_lost_connection: bool = False) -> None:
        self.has_lost_connection = has_lost_connection
        super().__init__(problem, hint=hint)


class OverloadedError(ActivationError):
    """The bounded queue in front of the base model is full, or it is shutting down."""


class OverrideError(CtdError):
    """A request asks for a setting that it may not change, or for an invalid value."""


class StoreError(CtdError):
    """The server of ``store`` did not answer in time, or answered with an error."""


class ExpertError(CtdError):
    """The expert gave no usable score.

    Attributes:
        attempts: Calls that were made for it.
    """

    attempts: int = 1


class ExpertNotAskedError(ExpertError):
    """The expert was not asked; nothing was spent."""


class BreakerOpenError(ExpertNotAskedError):
    """The expert failed too often a moment ago, and is not called for a while."""


class CapStoreError(ExpertNotAskedError):
    """The store of a cap that several processes share cannot be reached, so the remaining amount is unknown."""


class ExpertCapError(ExpertNotAskedError):
    """No call or token is left under a cap."""


class ExpertDisabledError(ExpertNotAskedError):
    """The expert is switched off in the configuration."""


class ExpertOverloadedError(ExpertNotAskedError):
    """The largest number of inputs is waiting for the expert already."""


class ExpertTimeoutError(ExpertError):
    """The expert did not answer before its deadline."""


class ExpertUnavailableError(ExpertError):
    """The expert refused the call, could not be reached, or reported a failure.

    Args:
        problem: What is wrong.
        hint: What to do about it.
        is_transient: Whether the same call may succeed a little later.
        retry_after_s: Seconds after which the expert accepts another call; None if it states none.
    """

    def __init__(
        self, problem: str, *, hint: str = "", is_transient: bool = True, retry_after_s: float | None = None
    ) -> None:
        self.is_transient = is_transient
        self.retry_after_s = retry_after_s
        super().__init__(problem, hint=hint)


class ExpertVerdictError(ExpertError):
    """The expert answered, but not with a verdict in the agreed form."""
