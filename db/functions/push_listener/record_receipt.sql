-- revision 1
-- What record_delivery_receipt and record_delivery_receipts do with one receipt.
create or replace function push_listener.record_receipt(
  p_push_id uuid, p_device_token text, p_status text, p_details jsonb, p_at timestamptz
) returns boolean
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_service boolean := push_listener.caller_is_service();
  v_user uuid := push_listener.caller_id();
  v_problem text := push_listener.receipt_problem(p_push_id, p_device_token, p_status, p_details);
  v_push record;
  v_at timestamptz;
  v_allowed boolean;
begin
  if v_problem is not null then
    raise exception using errcode = 'invalid_parameter_value', message = v_problem;
  end if;

  select f.* into v_push from push_listener.receipt_facts(p_push_id, p_device_token, p_status) f;
  if not found then
    v_allowed := false;
  elsif v_service then
    v_allowed := v_push.tried;
  elsif v_push.user_id = v_user then
    -- The user's own push, even to a device that now belongs to another user. If FCM's answers are not recorded, a
    -- device counts that was the user's when the push was sent. For devices in a table of the application that time
    -- is unknown.
    v_allowed := v_push.accepted
      or v_push.unrecorded and (coalesce(v_push.device_token = p_device_token, false) or v_push.to_user and exists (
        select from public.push_recipients r
          left join public.push_devices d on d.token = r.token and d.user_id = r.user_id
          where r.token = p_device_token and r.user_id = v_user
            and coalesce(d.created_at <= v_push.sent_at, true)));
  else
    -- A push without a user, to a device that is the user's now.
    v_allowed := v_push.user_id is null and v_push.device_token = p_device_token
      and (v_push.accepted or v_push.unrecorded)
      and (exists (select from public.push_devices d where d.token = p_device_token and d.user_id = v_user)
           or exists (select from public.push_recipients r where r.token = p_device_token and r.user_id = v_user));
  end if;
  if v_allowed and v_push.noted then
    return false;
  end if;
  -- Receipts of one push wait for each other, so that no two of them insert the same row.
  if v_allowed then
    -- When it happened on the phone, whose clock may be wrong: not before the push was sent, and not later than now.
    select greatest(p_at, coalesce(p.sent_at, p.created_at, now())) into v_at
      from public.push_notifications p
      where p.id = p_push_id
      for no key update;
    v_allowed := found;
    v_at := case when p_at is null or not pg_catalog.isfinite(v_at) then now() else least(v_at, now()) end;
  end if;
  if v_allowed is not true then
    if not v_service then
      -- The same error for a push that does not exist, for a push of another user and for a push that was not sent to this
      -- device, so that users learn nothing about pushes of others.
      raise exception using errcode = 'insufficient_privilege', message = 'this is no push of yours to this device';
    elsif v_push.tried is false then
      raise exception using
        errcode = 'object_not_in_prerequisite_state',
        message = pg_catalog.format('push %s has not been sent to any device, so no device can have received it', p_push_id),
        hint = 'Report it when it has been sent.';
    end if;
    raise exception using errcode = 'PT404', message = pg_catalog.format('there is no push %s', p_push_id);
  end if;

  if exists (
    select from public.push_delivery_logs l
      where l.push_id = p_push_id and l.device_token = p_device_token and l.status = p_status
        and (p_status in ('delivered', 'opened', 'clicked') or l.details ? 'receipt')
  ) then
    return false;
  end if;
  -- The log bounds the devices that can report a push. If it does not name them, the number of devices that
  -- register_device allows is the bound.
  if not v_service and not v_push.accepted and v_push.to_user and 100 <= (
    select count(distinct l.device_token)
      from public.push_delivery_logs l
      where l.push_id = p_push_id and l.details ? 'receipt' and l.device_token <> p_device_token
  ) then
    raise exception using errcode = 'insufficient_privilege', message = 'this push has receipts from 100 devices already';
  end if;

  -- Under a key of its own, so that nothing a device writes can be mistaken for what the listener writes.
  insert into public.push_delivery_logs (push_id, device_token, status, details)
    values (p_push_id, p_device_token, p_status,
            pg_catalog.jsonb_build_object('receipt', coalesce(p_details, '{}'::jsonb))
            || case when p_at is null then '{}' else pg_catalog.jsonb_build_object('at', v_at) end);

  -- A device that opened a push has received it. The earliest time counts, in whichever order the receipts arrive. Before
  -- 'sent', only the time is recorded, and settling sets 'delivered'. While a push is being sent, updated_at says since when, and stays.
  if p_status in ('delivered', 'opened', 'clicked') then
    update public.push_notifications p
      set delivered_at = least(p.delivered_at, v_at),
          status = case p.status when 'sent' then 'delivered' else p.status end,
          updated_at = case p.status when 'processing' then p.updated_at else now() end
      where p.id = p_push_id and (p.delivered_at is null or p.delivered_at > v_at or p.status = 'sent');
  end if;
  return true;
end
$$;
revoke all on function push_listener.record_receipt from public;
