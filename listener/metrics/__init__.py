"""What Prometheus sees of one process."""
