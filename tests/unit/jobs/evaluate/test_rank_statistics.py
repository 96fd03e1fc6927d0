"""Ranks and what rests on them, against scipy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from medgr2_jobs.evaluate.rank_statistics import auroc, ranks, spearman


@pytest.mark.parametrize("distinct", [2, 7, 10**6])
def test_ties_share_their_mean_rank_as_in_scipy(distinct: int) -> None:
    rng = np.random.default_rng(distinct)
    a, b = rng.integers(0, distinct, 200) / 7, rng.integers(0, distinct, 200) / 3
    assert ranks(a).tolist() == stats.rankdata(a).tolist()
    assert spearman(a, b) == stats.spearmanr(a, b).statistic
    positive = b > b.min()
    expected = stats.mannwhitneyu(a[positive], a[~positive]).statistic / (positive.sum() * (~positive).sum())
    assert auroc(a, positive) == pytest.approx(expected, abs=1e-12)


def test_report_and_compare_do_without_scipy() -> None:
    code = "import medgr2_jobs.stages.report, sys; assert 'scipy.stats' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
