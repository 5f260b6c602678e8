"""The rows of a calibration, and the turns of the conversations that its budget is certified and counted on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from scipy.special import bdtr, bdtrc

from calibrate.config.file import CalibrateConfig, SplitConfig
from calibrate.rows.data import Dataset, read_dataset
from calibrate.rows.splits import PARTS, Split, find_clusters, split_rows
from calibrate.rows.turns import Turns, collect_turns
from calibrate.train.crossfit import check_classes
from ctd_guardrail._typing import BoolArray, FloatArray, IntArray
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.policy.budget import Status, certify, infeasible
from ctd_guardrail.text.conversation import Conversation

__all__ = ["Material", "SafetyData", "check_labels", "check_rows", "find_overlong", "read_safety_data"]

# A character has at most four bytes, and a token is at least a byte. A chat template adds a few tokens of its own.
_TOKENS_PER_CHARACTER: Final = 4
_TEMPLATE_TOKENS: Final = 256
# A coin shows a count this far out in one calibration in a million.
_UNBELIEVABLE: Final = 5e-7


@dataclass(frozen=True, slots=True)
class SafetyData:
    """Rows of other files that the safety probe is trained on.

    Attributes:
        dataset: Rows of these files.
        rows: Indices of those in use.
        clusters: Cluster of each row in use.
    """

    dataset: Dataset
    rows: IntArray
    clusters: IntArray


@dataclass(frozen=True, slots=True)
class Material:
    """Rows with their use, and turns.

    Attributes:
        dataset: All rows.
        split: Use of each.
        certified: Turns of the conversations that certify the budget.
        counted: Turns of the conversations that show the realised rate.
        label_share: Probability with which a coin gave a calibration row its label; None: there was no coin.
    """

    dataset: Dataset
    split: Split
    certified: Turns
    counted: Turns
    label_share: float | None

    @classmethod
    def of(cls, dataset: Dataset, config: SplitConfig) -> Self:
        """Split a data set and collect the turns.

        Raises:
            DataError: The rows cannot be split; see :func:`calibrate.rows.splits.split_rows`.
        """
        split = split_rows(dataset, config)
        certified, counted = (collect_turns(dataset, rows) for rows in (split.certified, split.counted))
        return cls(dataset, split, certified, counted, config.label_share)

    def read_by(self, base_model: BatchedBaseModel, config: SplitConfig) -> Self:
        """Return the material with the units marked that are too long for a base model.

        Raises:
            DataError: A part has no rows left.
        """
        dataset = self.dataset.without(find_overlong(base_model, self.dataset.conversations))
        found = type(self).of(dataset, config)
        certified, counted = (
            turns.with_overlong(find_overlong(base_model, turns.units)) for turns in (found.certified, found.counted)
        )
        return replace(found, certified=certified, counted=counted)

    @property
    def has_labels(self) -> bool:
        """Whether all calibration rows have labels. The best threshold needs them."""
        return bool(self.dataset.is_labelled[self.split.calibration].all())

    @property
    def can_show_risks(self) -> bool:
        """Whether risks can be measured on the calibration rows: all have labels, or a coin chose those that do."""
        return self.has_labels or self.label_share is not None

    @property
    def asked(self) -> IntArray:
        """Rows that need a score of the expert: of training, calibration and test, in this order."""
        split = self.split
        calibration = split.calibration if self.can_show_risks else split.calibration[:0]
        return np.concatenate([split.train, calibration, split.test])

    @property
    def is_of_single_turns(self) -> bool:
        """Whether the certificate rests on the labelled calibration rows: each is a conversation of one turn."""
        turns = self.certified
        readable = turns.readable
        # Unreadable turns beside a readable one would need its conversation's number.
        has_one_turn = np.bincount(turns.conversation)[turns.conversation[readable]] == 1
        is_same = np.array_equal(turns.rows[readable], self.split.calibration)
        return self.has_labels and is_same and bool(has_one_turn.all())

    def view(self) -> Dataset:
        """Return a data set of all units to score: of the rows of the three parts, then of the readable turns.

        After the training rows, :meth:`cuts` has the bounds.
        """
        split = self.split
        rows = np.concatenate([split.train, split.calibration, split.test])
        units = [self.dataset.conversations[row] for row in rows.tolist()]
        for turns in (self.certified, self.counted):
            units += [turns.units[place] for place in turns.readable.tolist()]
            rows = np.append(rows, turns.rows[turns.readable])
        return self.dataset.view(units, rows)

    def cuts(self) -> IntArray:
        """Return the bounds of calibration rows, test rows, certified and counted turns behind the training rows."""
        sizes = self.split.calibration.size, self.split.test.size, self.certified.readable.size
        return np.cumsum(sizes)

    def by_part(self, asked: FloatArray) -> dict[str, FloatArray]:
        """Return values of the rows of :attr:`asked` by part."""
        calibration = self.split.calibration.size if self.can_show_risks else 0
        bounds = np.cumsum([self.split.train.size, calibration])
        return dict(zip(PARTS, np.split(asked, bounds), strict=True))

    def used(self) -> list[Conversation]:
        """Return the units of the rows that the policy is made from."""
        rows = np.unique(np.concatenate([self.split.train, self.split.calibration, self.certified.rows]))
        return [self.dataset.conversations[row] for row in rows.tolist()]


def read_safety_data(config: CalibrateConfig, dataset: Dataset) -> SafetyData | None:
    """Read the rows for the safety probe, without those that depend on a row of the other files.

    On a calibration or test row that it was trained on, a probe is surer than on the deployment's inputs.
    """
    if config.data.safety_path is None:
        return None
    safety = read_dataset(config.data.safety_path, context=config.data.context)
    clusters = find_clusters(dataset, safety)
    own = clusters[len(dataset) :]
    rows = np.flatnonzero(~np.isin(own, clusters[: len(dataset)]))
    check_classes(safety.labels[rows], purpose="the safety probe")
    return SafetyData(safety, rows, own[rows])


def check_rows(config: CalibrateConfig, material: Material) -> None:
    """Refuse rows and folders that cannot give a policy, before anything is computed, asked or written.

    Raises:
        DataError: Training or test rows lack a label, or risks have no labelled calibration rows.
        InfeasibleBudgetError: There are too few calibration conversations.
        ConfigError: The output is not a folder that can be written to.
    """
    if config.output.exists() and not config.output.is_dir():
        raise ConfigError(f"{config.output} is not a folder", key="output", hint="Name a folder for the policy")
    parent = next(folder for folder in (config.output, *config.output.parents) if folder.exists())
    if not os.access(parent, os.W_OK):
        raise ConfigError(f"{parent} cannot be written to", key="output", hint="Name another folder")
    dataset, split, budget = material.dataset, material.split, config.budget
    check_labels(dataset, split.train, split.test)
    if budget.risk:
        _check_labels_for_risks(dataset.is_labelled[split.calibration], material.label_share)
    # The feasibility depends on the number of conversations and on their lengths, not on the scores.
    turns = material.certified.scored(np.zeros(material.certified.readable.size)).readable
    certificate = certify(turns, budget.alpha, budget.delta, unit=budget.unit, max_turns=budget.max_turns)
    if certificate.status is Status.INFEASIBLE:
        raise infeasible(certificate, key="budget.alpha")


def check_labels(dataset: Dataset, train: IntArray, test: IntArray) -> None:
    """Refuse training or test rows of one label.

    Raises:
        DataError: They are.
    """
    check_classes(dataset.labels[train], purpose="training")
    if np.unique(dataset.labels[test]).size <= 1:
        raise DataError(
            f"all {test.size} test rows have one label", hint="Give more rows, or a larger share to testing"
        )


def _check_labels_for_risks(is_labelled: BoolArray, share: float | None) -> None:
    """Refuse calibration rows without labels, or with labels that the stated coin did not give."""
    labelled, rows = int(is_labelled.sum()), is_labelled.size
    if share is None:
        if labelled < rows:
            raise DataError("no calibration row has a label, but risks need them", hint="Leave `budget.risk` out")
        return
    tail = min(float(bdtr(labelled, rows, share)), float(bdtrc(labelled - 1, rows, share)) if labelled else 1.0)
    if tail < _UNBELIEVABLE:
        raise DataError(
            f"{labelled} of {rows} calibration rows have labels: no draw of a coin with splits.label_share = {share:g}",
            hint="State the probability with which each row got a label, whatever was in it",
        )


def find_overlong(base_model: BatchedBaseModel, conversations: Sequence[Conversation]) -> BoolArray:
    """Return a mask of the conversations that have more tokens than a base model reads, shape [n]."""
    room = base_model.spec.max_tokens - _TEMPLATE_TOKENS
    return np.array(
        [
            _TOKENS_PER_CHARACTER * conversation.length > room and base_model.is_overlong(conversation)
            for conversation in conversations
        ],
        dtype=np.bool_,
    )
