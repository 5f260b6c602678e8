"""The page on scaling says what its arithmetic says."""

from pathlib import Path

import pytest

from benchmarks.load.scale import (
    LLAMA_8B,
    TABLES,
    disk_gb,
    expert_flop,
    forward_flop,
    gpu_seconds_per_million,
    replicas,
)

PAGE = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_every_table_of_the_page_is_printed_by_the_script(table: object) -> None:
    assert callable(table)
    assert table() in PAGE


def test_a_forward_pass_costs_two_operations_a_weight_and_token_and_attention() -> None:
    weights = 16 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14_336)
    attention = 16 * 4 * 4096 * 512 / 2
    assert forward_flop(LLAMA_8B, 16, 512) == 512 * (2 * weights + attention)
    assert forward_flop(LLAMA_8B, 16, 512) / expert_flop(70.6e9, 512) == pytest.approx(0.028, abs=5e-4)
    assert gpu_seconds_per_million(forward_flop(LLAMA_8B, 16, 512)) == pytest.approx(9_000, rel=0.01)


def test_devices_follow_traffic_and_there_is_always_one() -> None:
    assert replicas(1.0, 0.009) == 1
    assert replicas(86_400 * 100, 0.009, busy=0.5, peak=1.0) == 2
    assert replicas(1e9, 0.009) == pytest.approx(10 * replicas(1e8, 0.009), abs=9)


def test_sizes_are_rows_times_tokens_times_width() -> None:
    assert disk_gb(100_000, 3584, tokens=512) == pytest.approx(367, abs=0.1)
    assert disk_gb(100_000, 3584, tokens=95) == pytest.approx(68.1, abs=0.1)
    assert disk_gb(100_000, 3584, value_bytes=4) == pytest.approx(1.43, abs=0.01)
