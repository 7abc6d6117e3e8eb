"""The statistics: medians with intervals, the typical speed, drift correction."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hwnas.profile.block import Block
from hwnas.profile.drift import CALM, SUBJECT_DEVIATION, Drift, Reference, response, typical_speed
from hwnas.profile.history import LONGEST_SESSION, Effort, blocks_due
from hwnas.profile.stats import MIN_BLOCKS, measure, median_interval, median_rank, noise_floor
from hwnas.profile.timer import (
    SENTINEL_RUNS,
    SENTINEL_WARMUP,
    WAKE_S,
    Pace,
    await_speed,
    clocked,
    take_block,
    wake_up,
    warm_up,
)

times = st.floats(0.01, 100, allow_nan=False)
FULL = Reference(1.0, 1.0)


def block(median_ms: float, before: float = 1.0, after: float = 1.0, session: int = 0, spent_s: float = 0.01) -> Block:
    return Block(session, 10, median_ms, median_ms, spent_s, before, after)


@given(st.lists(times, min_size=1, max_size=60))
def test_the_interval_holds_the_median_and_lies_within_the_values(values):
    median, low, high = median_interval(values)
    assert median == pytest.approx(np.median(values))
    assert low <= median <= high
    if len(values) >= MIN_BLOCKS:
        assert min(values) <= low and high <= max(values)
    else:
        assert math.isinf(low) and math.isinf(high)


def test_the_interval_covers_as_often_as_it_claims():
    rng = np.random.default_rng(0)
    for n in (6, 10, 15, 40):
        draws = np.sort(rng.lognormal(sigma=0.7, size=(4000, n)), axis=1)
        k = median_rank(n)
        covered = np.mean((draws[:, k - 1] <= 1) & (draws[:, -k] >= 1))
        assert 0.94 <= covered <= 0.99, n


def test_rank_is_known():
    assert [median_rank(n) for n in (5, 6, 8, 9, 10, 12, 15, 20)] == [0, 1, 1, 2, 2, 3, 4, 6]


@given(st.lists(times, min_size=MIN_BLOCKS, max_size=30), st.floats(0.2, 5))
def test_a_measurement_scales_with_the_clock(values, factor):
    slow = measure([block(v * factor) for v in values], FULL, 0.02)
    fast = measure([block(v) for v in values], FULL, 0.02)
    assert slow.median == pytest.approx(fast.median * factor)
    assert slow.half_width == pytest.approx(fast.half_width)
    assert slow.verdict == fast.verdict


@given(st.lists(st.sampled_from([1.0, 1.11]), min_size=MIN_BLOCKS, max_size=30), times)
def test_drift_is_corrected(speeds, truth):
    blocks = [block(truth * speed, speed, speed) for speed in speeds]
    found = measure(blocks, FULL, 0.02)
    assert found.median == pytest.approx(truth)
    assert found.verdict == "steady"
    assert found.observed == pytest.approx(np.median([b.median_ms for b in blocks]))


@given(st.lists(st.sampled_from([1.0, 1.11]), min_size=MIN_BLOCKS, max_size=30), times, st.floats(0, 1))
def test_what_feels_a_part_of_the_drift_is_corrected_by_that_part(speeds, truth, felt):
    blocks = [block(truth * speed**felt, speed, speed) for speed in speeds]
    assert measure(blocks, Reference(1.0, felt), 0.02).median == pytest.approx(truth)


def drifting(felt: float, subjects: int, rng: np.random.Generator, slowest: float = 1.25) -> list[list[Block]]:
    """Subjects of different latencies, in fifteen blocks each, at speeds that change from block to block."""
    return [
        [
            block(truth * speed**felt * rng.normal(1, 0.01), *(speed * rng.normal(1, 0.005, 2)))
            for speed in rng.uniform(1, slowest, 15)
        ]
        for truth in rng.uniform(0.1, 5, subjects)
    ]


def disturbed(truth: float, rng: np.random.Generator, often: float, session: int = 0) -> Block:
    """A block of forty runs, each 1 % above the truth in the median, some of them slowed down by another process."""
    times = truth * (1 + rng.exponential(0.014, 40)) * np.where(rng.random(40) < often, rng.uniform(1.2, 1.7, 40), 1)
    return Block.of(session, 1e6 * times, rng.uniform(1, 1.005, 14) * 1e6)


@pytest.mark.parametrize("often", [0.0, 0.3, 0.6])
def test_disturbances_shorter_than_a_block_change_nothing(often):
    """What is reported is the median that a machine without them would have."""
    rng = np.random.default_rng(3)
    blocks = [disturbed(2.0, rng, often, session) for session in (0, 1) for _ in range(6)]
    found = measure(blocks, FULL, 0.02)
    assert found.median == pytest.approx(2.02, rel=0.02 if often < 0.5 else 0.03)
    assert found.verdict == "steady"
    assert (found.observed > 2.3) == (often > 0.5)


def test_a_run_that_too_much_was_taken_off_is_not_the_fastest():
    times = np.full(100, 1e6)
    assert Block.of(0, np.r_[times, [2e5] * 3], []).fast_ms == 1.0
    assert Block.of(0, [3e6, 1e6, 2e6], []).fast_ms == 1.0


def test_a_timer_that_counts_to_zero_leaves_the_median():
    found = measure([Block.of(0, [0, 0, 1000, 1000, 1000], []) for _ in range(8)], FULL, 0.02)
    assert found.observed == found.median == 1e-3


def test_the_response_is_learnt_from_much_and_expected_of_little():
    rng = np.random.default_rng(0)
    for felt in (0.3, 1.0):
        assert response(drifting(felt, 200, rng), 0.6) == pytest.approx(felt, abs=0.05)
        assert response(drifting(felt, 1, rng, slowest=1.02), 0.6) == pytest.approx(0.6, abs=0.1)
    assert response(drifting(1.0, 200, rng, slowest=1.0), 0.6) == pytest.approx(0.6, abs=0.05)


def test_the_response_is_expected_where_nothing_tells():
    held = Block(0, 10, 9.0, 9.0, 0.01, 1.2, 1.2, "hot")
    for subjects in (
        [],
        [[]],
        [[block(1.0)]],
        [[block(1.0), block(1.1)]],
        [[block(1.0, math.nan, math.nan)] * 9],
        [[block(1.0)] * 9],
        [[block(0.0, 1.1, 1.1)] * 9],
        [[held] * 9],
    ):
        assert response(subjects, 0.7) == pytest.approx(0.7, abs=1e-6)


def test_neither_outliers_nor_a_throttled_device_change_the_response():
    rng = np.random.default_rng(1)
    subjects = drifting(0.8, 100, rng)
    spoilt = [
        [*blocks, block(900.0, 1.25, 1.25), Block(0, 10, 50.0, 50.0, 0.01, 1.2, 1.2, "hot")] for blocks in subjects
    ]
    assert response(spoilt, 0.5) == pytest.approx(response(subjects, 0.5), abs=0.02)


def test_with_enough_sessions_the_interval_is_between_them():
    rng = np.random.default_rng(2)

    def covered(sessions: int) -> float:
        """How often the interval holds the truth where processes differ by 4 %, and blocks of one by 0.2 %."""
        hits = 0
        for _ in range(300):
            levels = rng.normal(1, 0.04, sessions)
            found = measure(
                [
                    block(level * rng.normal(1, 0.002), session=session)
                    for session, level in enumerate(levels)
                    for _ in range(10)
                ],
                FULL,
                0.02,
            )
            hits += found.low <= 1 <= found.high
        return hits / 300

    assert covered(2) < 0.7
    assert covered(MIN_BLOCKS) > 0.93


def test_sessions_that_disagree_are_not_steady():
    """However alike the blocks of each are, and however many more there are of one."""
    few, many = [block(0.8, session=0) for _ in range(3)], [block(1.0, session=1) for _ in range(20)]
    found = measure(few + many, FULL, 0.02)
    assert (found.low, found.median) == pytest.approx((0.8, 1.0)) and found.verdict == "noisy"
    assert 1.01 < found.high < 1.02, "two sessions that happened to agree may still differ from others"
    assert measure(few[:2] + many, FULL, 0.02).verdict == "steady", "two blocks tell little of their session"
    unsettled = [block(0.8, 1.0, 1.1, session=0) for _ in range(5)]
    assert measure(unsettled + many, FULL, 0.02).verdict == "steady", "nor do those at a changing speed"
    assert measure([block(0.99, session=0) for _ in range(3)] + many, FULL, 0.02).verdict == "steady"


def test_a_session_without_a_settled_block_still_counts():
    sessions = [[block(level, session=s) for _ in range(5)] for s, level in enumerate((1.0, 1.01, 0.99, 1.02, 0.98))]
    unsettled = [block(1.05, 1.0, 1.1, session=5) for _ in range(5)]
    found = measure([b for one in sessions for b in one] + unsettled, FULL, 0.02)
    assert (found.low, found.high) == pytest.approx((0.98, 1.02)) and found.blocks == 30
    held = [Block(5, 10, 9.0, 9.0, 0.01, 1.0, 1.0, "hot") for _ in range(5)]
    found = measure([b for one in sessions for b in one] + held, FULL, 0.02)
    assert found.verdict == "noisy" and "5 sessions are too few" in found.reason


def test_blocks_across_a_change_of_speed_are_left_out():
    settled = [block(1.11, 1.11, 1.11) for _ in range(6)]
    changing = [block(1.0, 1.0, 1.11) for _ in range(6)]
    for reference in (FULL, Reference(math.nan, 1.0)):
        assert Drift.of(settled + changing, reference).doubt.tolist() == [0] * 6 + [2] * 6
    assert measure(settled + changing, FULL, 0.02).median == pytest.approx(1.0)
    assert measure(settled + changing, FULL, 0.02).blocks == 6


def test_too_few_good_blocks_are_joined_by_the_next_best():
    good, far = [block(1.0) for _ in range(4)], [block(1.6, 1.4, 1.4) for _ in range(20)]
    changing = [block(5.0, 1.0, 1.3) for _ in range(20)]
    found = measure([*changing, *far, *good], Reference(1.0, 1.0), 0.02)
    assert found.blocks == MIN_BLOCKS and found.median == pytest.approx(1.0) and found.high < 2


def test_blocks_at_about_the_typical_speed_come_before_those_far_from_it():
    """Whatever the subject feels of a speed that is far from the typical one."""
    usual, slowed = [block(1.0, 1.02, 1.01) for _ in range(MIN_BLOCKS)], [block(1.8, 1.4, 1.41) for _ in range(30)]
    found = measure(usual + slowed, Reference(1.0, 0.6), 0.02)
    assert found.blocks == MIN_BLOCKS and found.median == pytest.approx(1.0, rel=0.02)
    assert found.observed == 1.8
    assert measure(slowed, Reference(1.0, 0.6), 0.02).median == pytest.approx(1.8 / 1.405**0.6)


def test_the_interval_holds_what_is_not_known_of_a_far_speed():
    """Where most blocks are at the typical speed, nothing; where most are far from it, how unlike subjects are."""
    usual, slowed = [block(1.0) for _ in range(9)], [block(1.5, 1.5, 1.5, session=1) for _ in range(9)]
    assert measure([*usual, slowed[0]], FULL, 0.02).verdict == "steady"
    found = measure([*slowed, usual[0]], FULL, 0.02)
    assert found.median == pytest.approx(1.0) and found.verdict == "noisy"
    assert found.half_width == pytest.approx(1.5**SUBJECT_DEVIATION - 1, rel=0.1)


def test_a_session_far_from_the_typical_speed_still_counts():
    usual = [block(1.0, session=session) for session in range(MIN_BLOCKS - 1) for _ in range(2)]
    slowed = [block(1.5, 1.5, 1.5, session=MIN_BLOCKS - 1) for _ in range(2)]
    found = measure(usual + slowed, FULL, 0.02)
    unlike = 1.5**SUBJECT_DEVIATION
    assert (found.low, found.median, found.high) == pytest.approx((1 / unlike, 1.0, unlike))
    assert found.blocks == 2 * MIN_BLOCKS


@pytest.mark.parametrize(("settled", "median"), [(2, 1.2), (3, 1.0)])
def test_sessions_whose_speed_changed_only_widen_the_interval_where_three_are_settled(settled, median):
    """Their sentinels say nothing of what the blocks between them felt: 1.2 times as long here."""
    usual = [block(1.0, session=session) for session in range(settled) for _ in range(2)]
    changed = [block(1.2, 1.0, 1.1, session=settled + n) for n in range(MIN_BLOCKS - settled) for _ in range(2)]
    found = measure(usual + changed, Reference(1.0, 0.0), 0.02)
    assert (found.median, found.low, found.high) == pytest.approx((median, 1.0, 1.2)) and found.verdict == "noisy"


def test_sessions_at_the_typical_speed_are_enough_where_they_are_many():
    usual = [block(1.0, session=session) for session in range(MIN_BLOCKS) for _ in range(3)]
    slowed = [block(1.8, 1.4, 1.4, session=MIN_BLOCKS + n) for n in range(3) for _ in range(5)]
    found = measure(usual + slowed, FULL, 0.02)
    assert (found.median, found.low, found.high, found.blocks) == pytest.approx((1.0, 1.0, 1.0, 3 * MIN_BLOCKS))


def test_without_a_sentinel_nothing_is_corrected():
    assert math.isnan(Block.of(0, [5, 5], [0] * 14).before)
    found = measure([block(v, math.nan, math.nan) for v in (1, 1, 2, 2, 3, 3)], Reference(math.nan, 1.0), 0.02)
    assert (found.median, found.low, found.high, found.verdict) == (2, 1, 3, "noisy")


def test_too_few_blocks_are_noisy_and_none_is_failed():
    few = measure([block(1.0), block(1.2)], FULL, 0.5)
    assert few.verdict == "noisy" and "too few" in few.reason and (few.low, few.high) == (1.0, 1.2)
    none = measure([], FULL, 0.02)
    assert none.verdict == "failed" and math.isnan(none.median) and none.reason


def test_noisy_says_how_noisy():
    found = measure([block(v) for v in np.linspace(1, 2, 12)], FULL, 0.02)
    assert found.verdict == "noisy" and "2 % was asked for" in found.reason


def test_the_typical_speed_is_what_the_machine_runs_at_most_of_the_time():
    rng = np.random.default_rng(1)
    for slow_share, expected in ((0.0, 10.0), (0.3, 10.0), (0.9, 11.0)):
        slowed = rng.random(5000) < slow_share
        sentinel = np.where(slowed, 11.0, 10.0) * (1 + 0.005 * rng.standard_normal(5000))
        assert typical_speed(sentinel) == pytest.approx(expected, rel=0.005), slow_share
    assert math.isnan(typical_speed([]))
    assert typical_speed([math.nan, 5.0]) == 5.0


def test_the_typical_speed_is_a_speed_of_the_machine_where_it_has_several():
    """Slowed down for most of the time, more or less, by the other thread of its core."""
    rng = np.random.default_rng(2)
    for share in (0.3, 0.5, 0.7):
        sentinel = np.where(rng.random(2000) < share, rng.normal(21.6, 0.1, 2000), rng.uniform(25, 35, 2000))
        assert typical_speed(sentinel) == pytest.approx(21.6, rel=0.01), share


def test_where_no_speed_stands_out_the_typical_one_is_the_median():
    sentinel = np.random.default_rng(3).uniform(9, 11, 2000)
    assert typical_speed(sentinel) == np.median(sentinel)


@pytest.mark.parametrize("share", [0.08, 0.12, 0.16])
def test_where_sentinels_lie_far_apart_the_typical_one_is_nearly_the_fastest(share):
    rng = np.random.default_rng(3)
    sentinel = np.where(rng.random(5000) < share, rng.normal(21.5, 0.1, 5000), 21.5 + rng.gamma(4, 2, 5000))
    assert typical_speed(sentinel) == pytest.approx(21.5, rel=0.12)
    assert np.median(sentinel) > 1.25 * 21.5


@given(st.lists(st.tuples(times, times), max_size=20))
def test_noise_floor(pairs):
    noise = noise_floor([*pairs, (math.nan, 1.0)])
    if not pairs:
        assert noise is None
        return
    assert noise.pairs == len(pairs)
    assert 0 <= noise.median <= 2 and noise.rmse_ms >= 0
    assert noise.mean == pytest.approx(np.mean([abs(a - b) / ((a + b) / 2) for a, b in pairs]))


# when a subject is done


def next_session(blocks, effort):
    session, number = blocks_due(blocks, FULL, effort)
    return session if number else None


def test_a_subject_is_measured_in_two_sessions_then_done():
    effort, blocks, sessions = Effort(), [], []
    while (session := next_session(blocks, effort)) is not None:
        sessions.append(session)
        blocks.append(block(1.0, session=session))
    assert sessions == [0] * effort.batch_blocks + [1] * effort.batch_blocks


def test_a_noisy_subject_stops_at_its_time_limit():
    effort, blocks, rng = Effort(time_limit_s=0.5), [], np.random.default_rng(0)
    while (session := next_session(blocks, effort)) is not None:
        blocks.append(block(float(rng.lognormal(sigma=1.0)), session=session))
    assert len(blocks) == 50
    assert measure(blocks, FULL, effort.goal).verdict == "noisy"


def test_the_time_limit_leaves_enough_blocks_for_an_interval():
    effort, blocks = Effort(time_limit_s=0.5), []
    while (session := next_session(blocks, effort)) is not None:
        blocks.append(block(1.0, session=session, spent_s=10.0))
    assert len(blocks) == MIN_BLOCKS
    assert measure(blocks, FULL, effort.goal).verdict == "steady"


@pytest.mark.parametrize("spent_s", [0.01, 0.04, 0.1, 0.4, 3.0])
def test_a_slow_subject_is_measured_in_as_many_sessions(spent_s):
    effort, blocks = Effort(sessions=MIN_BLOCKS), []
    while (session := next_session(blocks, effort)) is not None:
        blocks.append(block(1.0, session=session, spent_s=spent_s))
    assert sorted({b.session for b in blocks}) == list(range(MIN_BLOCKS))
    assert sum(b.spent_s for b in blocks) <= max(effort.time_limit_s, MIN_BLOCKS * spent_s) + 1e-6


def test_more_sessions_follow_where_the_interval_is_between_them():
    effort, blocks, rng = Effort(sessions=MIN_BLOCKS), [], np.random.default_rng(3)
    levels = rng.normal(1, 0.02, 99)
    while (session := next_session(blocks, effort)) is not None:
        blocks.append(block(float(levels[session]), session=session))
    taken = [sum(b.session == session for b in blocks) for session in range(blocks[-1].session + 1)]
    assert len(taken) > MIN_BLOCKS and set(taken) == {effort.batch_blocks}


def test_more_sessions_follow_where_they_disagree():
    effort, blocks = Effort(), []
    while (session := next_session(blocks, effort)) is not None:
        blocks.append(block(1.0 if session % 2 else 0.8, session=session))
    taken = [sum(b.session == session for b in blocks) for session in range(blocks[-1].session + 1)]
    assert len(taken) > MIN_BLOCKS and max(taken) == 2 * effort.batch_blocks
    assert measure(blocks, FULL, effort.goal).verdict == "noisy"


@pytest.mark.parametrize(("goal", "sessions"), [(0.02, 1), (0.012, 3), (0.005, MIN_BLOCKS)])
def test_a_narrow_goal_takes_more_sessions_and_no_more_blocks_of_each(goal, sessions):
    """However alike the blocks of one process are, another could differ by a percent."""
    effort, blocks = Effort(goal=goal, time_limit_s=60, sessions=1), []
    while (session := next_session(blocks, effort)) is not None:
        blocks.append(block(1.0, session=session))
    taken = [sum(b.session == session for b in blocks) for session in range(blocks[-1].session + 1)]
    assert taken == [2 * effort.batch_blocks] * sessions, "as many as an interval within a session needs"
    assert measure(blocks, FULL, goal).verdict == "steady"


def test_blocks_at_a_changing_speed_need_more_of_them():
    effort, blocks = Effort(time_limit_s=60), []
    while next_session(blocks, effort) == 0:
        blocks.append(block(1.0, 1.0, 1.0 + 2 * CALM))
    assert len(blocks) == LONGEST_SESSION * effort.batch_blocks


@pytest.mark.parametrize("sessions, every, batches", [(2, 1, 1), (2, 2, 2), (MIN_BLOCKS, 4, 1), (MIN_BLOCKS, 7, 2)])
def test_a_session_ends_once_it_has_its_share_at_the_typical_speed(sessions, every, batches):
    effort, blocks = Effort(time_limit_s=60, sessions=sessions), []
    while next_session(blocks, effort) == 0:
        speed = 1.4 if (len(blocks) + 1) % every else 1.0
        blocks.append(block(speed, speed, speed))
    assert len(blocks) == batches * effort.batch_blocks


@given(st.lists(st.floats(0.5, 2), min_size=40, max_size=40), st.integers(0, 39))
def test_what_comes_next_depends_on_the_samples_alone(values, cut):
    """A campaign that was interrupted anywhere ends with the samples of one that was not."""
    effort = Effort(time_limit_s=0.4)

    def go_on(blocks, most):
        while len(blocks) < most and (session := next_session(blocks, effort)) is not None:
            blocks.append(block(values[len(blocks)], session=session))
        return blocks

    assert go_on(list(go_on([], cut)), 40) == go_on([], 40)


@given(st.lists(st.floats(0.5, 2), min_size=80, max_size=80), st.floats(0.005, 0.2))
@example([1.0] * 5 + [0.5, 2.0] * 37 + [1.0], 0.05)
def test_blocks_that_are_due_are_all_needed(values, spent_s):
    """Asking after each block or only when the due ones are taken leads to the same samples."""
    effort = Effort(time_limit_s=0.7)

    def run(by_one):
        blocks = []
        while (due := blocks_due(blocks, FULL, effort))[1] and len(blocks) < 70:
            for _ in range(1 if by_one else due[1]):
                blocks.append(block(values[len(blocks)], session=due[0], spent_s=spent_s))
        return blocks

    assert run(True) == run(False)


# the timer


def ticking(*times_ns: int):
    left = iter(times_ns)
    return lambda: next(left)


def test_a_processor_is_woken_up_for_long_enough_to_reach_its_speed():
    begun, runs = time.perf_counter(), []
    wake_up(lambda: runs.append(0) or 0)
    assert time.perf_counter() - begun >= WAKE_S and runs


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc here")
def test_stopwatches_leave_no_files_open():
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    clocked(lambda: None)()
    before, kept = opened(), [clocked(lambda: None) for _ in range(50)]
    assert opened() == before and all(once() >= 0 for once in kept)


def test_a_block_waits_for_the_typical_speed():
    usual = [1_000_000] * (SENTINEL_WARMUP + SENTINEL_RUNS)
    slow = [1_400_000] * len(usual)
    times, waited = await_speed(ticking(*slow, *slow, *usual), 1.0, 60.0)
    assert times == usual[SENTINEL_WARMUP:] and waited < 60
    assert await_speed(ticking(*slow, *usual), math.nan, 60.0)[0] == slow[SENTINEL_WARMUP:], "at an unknown speed"


def test_a_block_does_not_wait_for_ever():
    begun = time.perf_counter()
    times, waited = await_speed(lambda: 1_400_000, 1.0, 0.05)
    assert set(times) == {1_400_000} and 0.05 <= waited <= time.perf_counter() - begun
    assert await_speed(ticking(*[1_400_000] * (SENTINEL_WARMUP + SENTINEL_RUNS)), 1.0, -1.0)[0]


def test_warm_up_ends_when_runs_get_no_faster():
    assert warm_up(ticking(300, 200, 110, 100, 99, 1), 1.0) == 300 + 200 + 110 + 100 + 99
    assert warm_up(ticking(100, 100), 1.0) == 200


def test_warm_up_ends_at_its_limit():
    assert warm_up(ticking(*range(1000, 0, -100)), 1.5e-6) == 1000 + 900


@given(st.integers(1, 10**9))
def test_a_block_is_long_enough_and_not_longer(each_ns):
    pace = Pace()
    taken = take_block(lambda: each_ns, pace)
    total = sum(taken) / 1e9
    assert 1 <= len(taken) <= pace.most
    if len(taken) < pace.most:
        assert total >= pace.block_s
    if len(taken) < pace.least:
        assert total >= pace.longest_s
    assert total - each_ns / 1e9 < pace.longest_s
