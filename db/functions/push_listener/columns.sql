-- revision 2
create or replace function push_listener.columns(relation text) returns text[]
  language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select case relation
    when 'push_notifications' then array[
      'id', 'user_id', 'device_token', 'fid', 'topic', 'condition', 'title', 'body', 'data', 'channel', 'priority',
      'image', 'options', 'expires_at', 'collapse_key', 'idempotency_key', 'next_attempt_at', 'status', 'retry_count',
      'last_retry_at', 'delivery_attempts', 'last_error', 'error_code', 'fcm_message_id', 'claimed_by', 'lost_claims',
      'push_first_due_at', 'sent_at', 'delivered_at', 'created_at', 'updated_at']
    when 'push_delivery_logs' then array['id', 'push_id', 'device_token', 'status', 'details', 'created_at']
    when 'push_devices' then array[
      'token', 'user_id', 'platform', 'created_at', 'updated_at', 'disabled_at', 'disabled_reason']
    when 'telemetry_logs' then array[
      'id', 'type', 'message', 'meta', 'timestamp', 'user_id', 'batch_id', 'processed_at', 'created_at']
  end
$$;
revoke all on function push_listener.columns from public;
comment on function push_listener.columns is
  'The columns of a table that push-listener uses; every other column belongs to the application.';
