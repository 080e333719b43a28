-- revision 2
create or replace function public.mark_push_failed(p_push_id uuid, p_error text default null) returns text
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_push record;
  v_reason text;
  v_tries integer;
  v_next timestamptz;
  v_status text := 'failed';
begin
  perform push_listener.refuse_users();
  select p.retry_count, p.expires_at, coalesce(p.device_token, p.fid) as device_token, p.delivery_attempts into v_push
    from public.push_notifications p
    where p.id = p_push_id and p.status = 'processing' and p.claimed_by is null
    for update;
  if not found then
    return push_listener.settled_before(p_push_id, 'failed', 'dead', 'expired');
  end if;

  -- Users read why their push failed, and a token in it may be another user's by then.
  v_reason := pg_catalog.regexp_replace("left"(p_error, 2000), '[A-Za-z0-9_-]+:APA91[A-Za-z0-9_-]*', '[hidden]', 'g');
  if pg_catalog.length(v_push.device_token) >= 16 then
    v_reason := pg_catalog.replace(v_reason, v_push.device_token, '[hidden]');
  end if;
  v_reason := coalesce(nullif(v_reason, ''), 'the worker gave no reason');

  -- The same backoff as the listener's: exponential with full jitter, from the 10 s that FCM asks for. Five tries never
  -- reach the hour at which the listener caps the wait.
  v_tries := coalesce(v_push.retry_count, 0) + 1;
  if v_tries >= 5 then
    v_status := 'dead';
    v_reason := pg_catalog.format('given up after %s tries: %s', v_tries, v_reason);
  else
    v_next := now() + pg_catalog.make_interval(secs => 10 + pg_catalog.random() * (10 * 2 ^ v_tries - 10));
    if v_next >= v_push.expires_at then
      v_status := 'expired';
      v_next := null;
      v_reason := pg_catalog.format('expires before the next try: %s', v_reason);
    end if;
  end if;

  update public.push_notifications p
    set status = v_status,
        next_attempt_at = v_next,
        push_first_due_at = case when v_next is not null then p.push_first_due_at end,
        retry_count = v_tries,
        error_code = 'WORKER_FAILED',
        last_error = v_reason,
        updated_at = now()
    where p.id = p_push_id;

  insert into public.push_delivery_logs (push_id, device_token, status, details)
    values (p_push_id, v_push.device_token, 'failed', pg_catalog.jsonb_build_object(
      'attempt', v_push.delivery_attempts, 'code', 'WORKER_FAILED', 'reason', v_reason));
  return v_status;
end
$$;
revoke all on function public.mark_push_failed(uuid, text) from public;
comment on function public.mark_push_failed(uuid, text) is
  'FCM has not accepted a push that fetch_pending_pushes returned. Returns the new status: failed (it is tried again later), dead or expired. Repeating the call changes nothing.';
