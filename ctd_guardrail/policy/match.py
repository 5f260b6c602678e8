"""Checks that a policy belongs to the base model, the expert and the form of the texts.

The certificate holds for the distribution of d(x) that calibration saw. Another base model, tokenizer, template,
layer, dtype, expert or form of the texts gives another distribution, and the certificate is void.
"""

from __future__ import annotations

from typing import Final

from ctd_guardrail.activations.spec import Fingerprint
from ctd_guardrail.errors import PolicyMismatchError
from ctd_guardrail.policy.manifest import Manifest
from ctd_guardrail.text.normalise import NORMALISER

__all__ = ["RECORDED", "check_expert", "check_fingerprint", "check_normaliser"]

RECORDED: Final = "recorded:"
"""Prefix of the identity of expert scores that came with the data."""


def check_fingerprint(manifest: Manifest, loaded: Fingerprint) -> None:
    """Refuse a base model other than the one that the policy was calibrated on.

    Raises:
        PolicyMismatchError: A hash, the architecture, the width or the window differs. The error names it.
    """
    for field in Fingerprint.model_fields:
        expected, found = getattr(manifest.fingerprint, field), getattr(loaded, field)
        if expected != found:
            raise PolicyMismatchError(
                f"the policy was calibrated on base model {manifest.activations.model!r} with {field} "
                f"{expected!r}, and the loaded model has {found!r}",
                hint="Serve the model that the policy was calibrated on, or calibrate again on this one",
            )


def check_normaliser(manifest: Manifest) -> None:
    """Refuse a policy whose texts went through another normaliser than this version's.

    Raises:
        PolicyMismatchError: The versions differ.
    """
    if manifest.normaliser != NORMALISER:
        raise PolicyMismatchError(
            f"the policy was calibrated with text normaliser {manifest.normaliser!r}, and this version has "
            f"{NORMALISER!r}",
            hint="Calibrate again with this version, or use the version that wrote the policy",
        )


def check_expert(manifest: Manifest, identity: str) -> None:
    """Refuse an expert other than the one that the delegation value was trained on.

    Recorded scores in the data have no identity, so every expert is accepted after them.

    Raises:
        PolicyMismatchError: The identities differ.
    """
    if manifest.expert.startswith(RECORDED) or manifest.expert == identity:
        return
    raise PolicyMismatchError(
        f"the policy was calibrated with expert {manifest.expert!r}, but the configured expert is {identity!r}",
        hint="Configure that expert, or calibrate again with this one",
    )
