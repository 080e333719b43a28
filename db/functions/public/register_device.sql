-- revision 1
create or replace function public.register_device(p_token text, p_platform text, p_user_id uuid default null) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_service boolean := push_listener.caller_is_service();
  v_user uuid := case when v_service then p_user_id else push_listener.caller_id() end;
  v_rule text;
  v_column text;
  v_problem text := case
    -- An index key holds at most 2704 bytes.
    when p_token is null or pg_catalog.length(p_token) not between 1 and 2048 or p_token collate "C" !~ '^[!-~]+$'
      then 'p_token must be a registration token, as the app got it'
    when p_platform is null or p_platform not in ('android', 'ios', 'web')
      then 'p_platform must be android, ios or web'
    when v_service and p_user_id is null then 'p_user_id must name the user of the device' end;
begin
  if not v_service and (v_user is null or p_user_id <> v_user) then
    raise exception using errcode = 'insufficient_privilege',
      message = 'a device can be registered for the signed-in user only';
  end if;
  if v_problem is not null then
    raise exception using errcode = 'invalid_parameter_value', message = v_problem;
  end if;

  begin
    -- Apps call this at every start. A device that is known is written at most once a day, to show that it is in use.
    insert into public.push_devices as d (token, user_id, platform)
      values (p_token, v_user, p_platform)
      on conflict (token) do update
        set user_id = excluded.user_id,
            platform = excluded.platform,
            -- Since when the device belongs to this user. Earlier pushes to the user did not go to it.
            created_at = case when d.user_id = excluded.user_id then d.created_at else now() end,
            disabled_at = null,
            disabled_reason = null,
            updated_at = now()
        where d.user_id is distinct from excluded.user_id or d.platform is distinct from excluded.platform
          or d.disabled_at is not null or d.updated_at < now() - interval '1 day';
    if not found then
      return;
    end if;

    -- A signed-in user may invent tokens, and each push to a user goes to all devices of that user, so their number
    -- is bounded. Concurrent registrations of one user wait for each other here, and each then sees the earlier ones.
    -- They wait for a row that logins can lock only through these functions; any login could hold an advisory lock.
    -- SKIP LOCKED below: a transaction that has locked a device is about to count the devices itself.
    perform push_listener.forget_telemetry_use();
    insert into push_listener.telemetry_use as u (user_id, records_until, bytes_until)
      values (v_user, now(), now())
      on conflict (user_id) do update set user_id = excluded.user_id;
    delete from public.push_devices d
      where d.token in (
        select l.token
          from public.push_devices l
          where l.token in (
            select o.token
              from public.push_devices o
              where o.user_id = v_user and o.disabled_at is null and o.token <> p_token
              order by o.updated_at desc nulls last
              offset 99)
          for update skip locked);
    delete from public.push_devices d
      where d.token in (
        select l.token
          from public.push_devices l
          where l.token in (
            select o.token
              from public.push_devices o
              where o.user_id = v_user and o.disabled_at is not null
              order by o.disabled_at desc
              offset 100)
          for update skip locked);
  exception when integrity_constraint_violation then
    -- A constraint of the application refuses the row. Postgres' own error detail would show the whole row, including
    -- what the application stores there about the former user of the device.
    get stacked diagnostics v_rule = constraint_name, v_column = column_name;
    raise exception using errcode = sqlstate, message = pg_catalog.format(
      'a rule of the application''s for push_devices does not allow this device: %s', coalesce(nullif(v_rule, ''), v_column));
  end;
end
$$;
revoke all on function public.register_device(text, text, uuid) from public;
comment on function public.register_device(text, text, uuid) is
  'Registers a device of the signed-in user by its registration token. A token of another user moves to this one; a disabled token is enabled again. A user keeps at most 100 devices: those seen last.';
