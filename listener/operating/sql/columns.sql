id, status, priority, device_token, fid, topic, condition, user_id, title, error_code, last_error, retry_count, created_at,
    updated_at, next_attempt_at, expires_at
