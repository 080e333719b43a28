id, status, priority, device_token, topic, condition, user_id, title, error_code, retry_count, created_at, updated_at,
    next_attempt_at, expires_at
