"""A local FCM HTTP v1 and OAuth token server, with faults on demand."""
