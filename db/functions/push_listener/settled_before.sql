-- revision 1
-- Called when a push could not be settled. Returns its status if an earlier call has settled it with that result, and
-- raises an error that says why otherwise.
create or replace function push_listener.settled_before(p_push_id uuid, variadic p_statuses text[]) returns text
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_push record;
begin
  if p_push_id is null then
    raise exception using errcode = 'invalid_parameter_value', message = 'p_push_id must not be null';
  end if;
  select p.status, p.claimed_by into v_push from public.push_notifications p where p.id = p_push_id;
  if not found then
    raise exception using errcode = 'PT404', message = pg_catalog.format('there is no push %s', p_push_id);
  end if;
  if v_push.status = any (p_statuses) then
    return v_push.status;
  end if;
  raise exception using
    errcode = 'object_not_in_prerequisite_state',
    message = case
      when v_push.status = 'processing' then pg_catalog.format(
        'push %s is claimed by push-listener worker %s, and only that worker may settle it',
        p_push_id, v_push.claimed_by)
      else pg_catalog.format('push %s is %s, not being sent', p_push_id, v_push.status) end,
    hint = 'Settle only what fetch_pending_pushes has returned, and before its lease of 60 s ends.';
end
$$;
revoke all on function push_listener.settled_before from public;
