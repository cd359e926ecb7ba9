"""What torch's CPU allocator handed out at one time, by its profiler: exact, and blind to everything else in the process."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

__all__ = ["allocated_peak"]


def allocated_peak(run: Callable[[], object]) -> int:
    """The largest sum of live bytes during a call, beyond what lived before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    assert record.profiler is not None
    results = record.profiler.kineto_results
    assert results is not None
    live = peak = 0
    for event in sorted(
        (each for each in results.events() if each.name() == "[memory]"), key=lambda each: each.start_ns()
    ):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
