-- revision 2
create or replace function public.mark_push_sent(p_push_id uuid) returns text
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_push record;
begin
  perform push_listener.refuse_users();
  update public.push_notifications p
    -- A receipt may have arrived before the result.
    set status = case when p.delivered_at is null then 'sent' else 'delivered' end,
        next_attempt_at = null,
        push_first_due_at = null,
        error_code = null,
        last_error = null,
        sent_at = now(),
        updated_at = now()
    where p.id = p_push_id and p.status = 'processing' and p.claimed_by is null
    returning p.status, coalesce(p.device_token, p.fid) as device_token, p.delivery_attempts into v_push;
  if not found then
    return push_listener.settled_before(p_push_id, 'sent', 'delivered');
  end if;

  insert into public.push_delivery_logs (push_id, device_token, status, details)
    values (p_push_id, v_push.device_token, 'sent', pg_catalog.jsonb_build_object('attempt', v_push.delivery_attempts));
  return v_push.status;
end
$$;
revoke all on function public.mark_push_sent(uuid) from public;
comment on function public.mark_push_sent(uuid) is
  'FCM has accepted a push that fetch_pending_pushes returned. Returns its status. Repeating the call changes nothing.';
