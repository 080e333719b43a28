"""What this process may do on this machine, and who can read its metrics."""

from __future__ import annotations

from collections.abc import Iterator

from listener import process
from listener.config import Settings
from listener.doctor.findings import Finding, Group

_GROUP = Group("process")


def examine(settings: Settings) -> Iterator[Finding]:
    """Raises the limit of open files of this process, as ``run`` does."""
    yield judge_metrics(settings)
    if settings.metrics_port is not None:
        yield _GROUP.ok("/metrics is open on METRICS_PORT: nobody but your private network should reach that")
    allowed = process.make_room_for_requests(settings.max_in_flight)
    yield judge_open_files(settings.max_in_flight, allowed)


def judge_metrics(settings: Settings) -> Finding:
    """Whether /metrics can be read, and by whom."""
    if settings.metrics_token is not None:
        return _GROUP.ok("/metrics asks for METRICS_TOKEN")
    if settings.metrics_closed and settings.metrics_port is not None:
        return _GROUP.ok("/metrics is closed on PORT")
    if settings.metrics_closed:
        return _GROUP.warning(
            "/metrics is closed: other machines can reach HOST, and there is no METRICS_TOKEN",
            "set METRICS_TOKEN, and let Prometheus send it; or METRICS_PORT, in a private network; or HOST=127.0.0.1, "
            "if Prometheus runs on this machine",
        )
    return _GROUP.ok("/metrics is open, on this machine only")


def judge_open_files(wanted: int, allowed: int) -> Finding:
    """``allowed``: the concurrent requests for which this process may open files, ``wanted`` or fewer."""
    if allowed >= wanted:
        return _GROUP.ok(f"the limit of open files is enough for MAX_IN_FLIGHT={wanted:,}")
    text = f"the limit of open files allows {allowed:,} concurrent requests, and MAX_IN_FLIGHT is {wanted:,}"
    remedy = (
        "raise the hard limit where the process is started (ulimit -Hn, LimitNOFILE=), or lower MAX_IN_FLIGHT"
    )
    if allowed == 0:
        return _GROUP.fault(f"{text}: push-listener run does not start", remedy)
    return _GROUP.warning(f"{text}: push-listener run lowers it", remedy)
