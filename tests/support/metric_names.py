"""The names of all metrics that a process exports."""

from __future__ import annotations

COUNTERS = [
    "push_sends_total",
    "push_settled_total",
    "push_dead_total",
    "push_retries_total",
    "push_tokens_disabled_total",
    "push_fenced_total",
    "push_rescued_total",
    "push_claimed_total",
    "push_invalid_total",
    "push_purged_total",
    "push_log_rows_lost_total",
    "push_log_lines_dropped_total",
    "push_database_errors_total",
    "push_quota_reduced_total",
    "push_quota_waited_seconds_total",
    "push_token_refreshes_total",
    "push_probes_total",
    "push_listen_connections_total",
    "push_doorbell_notifications_total",
    "push_busy_polling_started_total",
    "push_receipts_total",
    "process_cpu_seconds_total",
]
HISTOGRAMS = [
    "push_due_to_accepted_seconds",
    "push_insert_to_send_seconds",
    "push_fcm_request_seconds",
    "push_database_statement_seconds",
]
GAUGES = [
    "push_build_info",
    "push_settle_backlog",
    "push_in_flight",
    "push_in_flight_limit",
    "push_event_loop_lag_seconds",
    "push_paused",
    "push_platform_paused",
    "push_quota_requests_per_second",
    "push_quota_share_requests_per_second",
    "push_token_expiry_timestamp_seconds",
    "push_listening",
    "push_last_notification_timestamp_seconds",
    "push_last_look_timestamp_seconds",
    "push_busy_polling",
    "push_unnotified_transactions",
    "push_lock_strangers",
    "push_queue_depth",
    "push_queue_due",
    "push_queue_scheduled",
    "push_queue_oldest_due_seconds",
    "push_queue_read_timestamp_seconds",
    "push_unwritable_rows",
    "push_workers_alive",
    "push_notify_queue_usage",
    "push_clock_offset_seconds",
    "push_oldest_snapshot_age_transactions",
    "push_stats_pushes",
    "push_stats_delivered_pushes",
    "push_stats_delivery_seconds",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_start_time_seconds",
    "process_open_fds",
    "process_max_fds",
]


def families() -> set[str]:
    """Every metric; a histogram once, without the endings of its series."""
    return {*COUNTERS, *HISTOGRAMS, *GAUGES}


def series() -> set[str]:
    """Every name that a query may use."""
    return {*COUNTERS, *GAUGES} | {
        name + ending for name in HISTOGRAMS for ending in ("_bucket", "_count", "_sum")
    }
