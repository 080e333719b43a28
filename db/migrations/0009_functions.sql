-- What an application, a phone and a worker of somebody else's may call, through PostgREST or in SQL.
--
-- Every function in public says who may call it in one line, push_listener.allow(...), and finds out by itself who calls,
-- whatever has been granted since. It looks names up in pg_catalog alone: an empty search_path would look for types in
-- pg_temp first, which is the caller's. Refusals carry the SQLSTATE from which PostgREST makes the HTTP status:
-- 22023 -> 400, 42501 -> 403, PTxyz -> xyz. No text of a refusal repeats a token or a payload.

-- Who may call what -----------------------------------------------------------------------------------------------

create function push_listener.allow(function regprocedure, variadic roles text[]) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  role text;
begin
  -- PUBLIC has execute on every new function; older Supabase projects grant it to the three roles as well.
  execute pg_catalog.format('revoke all on function %s from public', function);
  for role in
    select r.rolname from pg_catalog.pg_roles r where r.rolname in ('anon', 'authenticated', 'service_role')
  loop
    execute pg_catalog.format('revoke all on function %s from %I', function, role);
  end loop;
  for role in
    select r.rolname from pg_catalog.pg_roles r where r.rolname = any (roles)
  loop
    execute pg_catalog.format('grant execute on function %s to %I', function, role);
  end loop;
end
$$;
revoke all on function push_listener.allow(regprocedure, text[]) from public;
comment on function push_listener.allow(regprocedure, text[]) is
  'Makes a function executable by its owner and these roles, as far as they exist, and by nobody else.';

-- A service is a role with the rights of the owner or of service_role. Any other role that has the rights of anon or
-- authenticated is a user, whatever else has been granted to it. What is left are logins of other services: such a role
-- is a service if execute on fetch_pending_pushes was granted to it, and not only to everybody.
--
-- It stands in public because enqueue_push and cancel_push call it with the rights of their caller.
create function public.push_is_service(p_role name) returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select case
    when pg_catalog.pg_has_role(p_role, p.proowner, 'usage') then true
    when exists (select from pg_catalog.pg_roles r
                   where r.rolname = 'service_role' and pg_catalog.pg_has_role(p_role, r.oid, 'usage')) then true
    when exists (select from pg_catalog.pg_roles r
                   where r.rolname in ('anon', 'authenticated') and pg_catalog.pg_has_role(p_role, r.oid, 'usage')) then false
    else exists (select from pg_catalog.aclexplode(p.proacl) a
                   where a.privilege_type = 'EXECUTE' and a.grantee <> 0
                     and pg_catalog.pg_has_role(p_role, a.grantee, 'usage')) end
    from pg_catalog.pg_proc p
    where p.oid = pg_catalog.to_regprocedure('public.fetch_pending_pushes(integer)')
$$;
comment on function public.push_is_service(name) is
  'Whether push-listener takes a role for a service (the server of an application) and not for a user.';
select push_listener.allow('public.push_is_service(name)', 'service_role');

-- In a function that runs with its owner's rights current_user is the owner. The caller is the role that was set
-- (PostgREST sets one for each request), or else the role that logged in.
create function push_listener.caller() returns name
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select case when pg_catalog.current_setting('role', true) in ('none', '') then session_user
              else coalesce(pg_catalog.current_setting('role', true)::name, session_user) end
$$;
revoke all on function push_listener.caller() from public;

create function push_listener.caller_is_service() returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select public.push_is_service(push_listener.caller())
$$;
revoke all on function push_listener.caller_is_service() from public;

create function push_listener.refuse_users() returns void
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  if push_listener.caller_is_service() is not true then
    raise exception using errcode = 'insufficient_privilege',
      message = pg_catalog.format('%s may not call this function: it is for the application''s server',
                                  push_listener.caller());
  end if;
end
$$;
revoke all on function push_listener.refuse_users() from public;

-- A function runs with our owner's rights when ours calls it. On a plain Postgres any role that may create schemas could
-- make auth.uid(). It is believed if its owner could do the same without it: a superuser, the owner of the database, a role
-- that has our owner's rights; or Supabase's own role for it.
create function push_listener.trusts(p_function regprocedure) returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select r.rolsuper or r.rolname = 'supabase_auth_admin' or d.datdba = r.oid
         or pg_catalog.pg_has_role(r.oid, c.relowner, 'usage')
    from pg_catalog.pg_proc p
    join pg_catalog.pg_roles r on r.oid = p.proowner
    join pg_catalog.pg_database d on d.datname = pg_catalog.current_database()
    join pg_catalog.pg_class c on c.oid = 'public.push_notifications'::regclass
    where p.oid = p_function
$$;
revoke all on function push_listener.trusts(regprocedure) from public;

-- The user that a request is made for. Looked up at each call: a plain Postgres has no schema auth, or has it later.
create function push_listener.caller_id() returns uuid
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  if push_listener.trusts(pg_catalog.to_regprocedure('auth.uid()')) is not true then
    return null;
  end if;
  return auth.uid();
end
$$;
revoke all on function push_listener.caller_id() from public;

-- Workers of somebody else's --------------------------------------------------------------------------------------
--
-- They share the queue with listeners: the same order, the same leases. Their rows are in status 'processing' with
-- claimed_by null, and only those can be settled through the functions here.

create function public.fetch_pending_pushes(p_limit integer default 100)
  returns table (id uuid, user_id uuid, device_token text, title text, body text, data jsonb, status text,
                 retry_count integer, delivery_attempts integer, created_at timestamptz)
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  perform push_listener.refuse_users();
  if p_limit is null or p_limit not between 1 and 1000 then
    raise exception using errcode = 'invalid_parameter_value', message = 'p_limit must be from 1 to 1000';
  end if;

  -- Rows that have outlived their meaning: those that stand first in the queue are put aside on the way.
  with head as materialized (
    (select id, expires_at
       from public.push_notifications
       where (case priority::text when 'high' then 0 else 1 end) = 0 and next_attempt_at <= now()
         and next_attempt_at is not null and status in ('pending', 'processing', 'failed')
       order by next_attempt_at
       limit 1000)
    union all
    (select id, expires_at
       from public.push_notifications
       where (case priority::text when 'high' then 0 else 1 end) = 1 and next_attempt_at <= now()
         and next_attempt_at is not null and status in ('pending', 'processing', 'failed')
       order by next_attempt_at
       limit 1000)
  ), over as materialized (
    select p.id
      from head h
      join public.push_notifications p on p.id = h.id
      where h.expires_at <= now()
        and p.expires_at <= now() and p.next_attempt_at <= now() and p.status in ('pending', 'processing', 'failed')
      for update of p skip locked
  )
  update public.push_notifications p
    set status = 'expired',
        next_attempt_at = null,
        error_code = 'EXPIRED',
        last_error = 'expires_at had passed before it could be sent',
        updated_at = now()
    from over o
    where p.id = o.id;

  return query
  with high as materialized (
    select id, next_attempt_at as due_at, 0 as lane
      from public.push_notifications
      where (case priority::text when 'high' then 0 else 1 end) = 0 and next_attempt_at <= now()
        and next_attempt_at is not null and status in ('pending', 'processing', 'failed')
        and topic is null and condition is null and (expires_at is null or expires_at > now())
      order by next_attempt_at
      limit p_limit
      for update skip locked
  ), normal as materialized (
    select id, next_attempt_at as due_at, 1 as lane
      from public.push_notifications
      where (case priority::text when 'high' then 0 else 1 end) = 1 and next_attempt_at <= now()
        and next_attempt_at is not null and status in ('pending', 'processing', 'failed')
        and topic is null and condition is null and (expires_at is null or expires_at > now())
      order by next_attempt_at
      limit greatest(p_limit - (select count(*) from high), 0)
      for update skip locked
  ), due as (
    select * from high union all select * from normal
  ), claimed as (
    update public.push_notifications p
      set status = 'processing',
          next_attempt_at = now() + interval '60 seconds',
          claimed_by = null,
          -- In an adopted table the two counters may be NULL.
          delivery_attempts = coalesce(p.delivery_attempts, 0) + 1,
          last_retry_at = case when p.retry_count > 0 then now() else p.last_retry_at end,
          updated_at = now()
      from due d
      where p.id = d.id
      returning p.id, p.user_id, p.device_token, p.title, p.body, p.data, p.status, p.retry_count, p.delivery_attempts,
        p.created_at, d.lane, d.due_at
  )
  select c.id, c.user_id, c.device_token::text, c.title::text, c.body::text, c.data::jsonb, c.status::text,
         coalesce(c.retry_count, 0)::integer, c.delivery_attempts::integer, c.created_at
    from claimed c
    order by c.lane, c.due_at;
end
$$;
comment on function public.fetch_pending_pushes(integer) is
  'Takes due pushes under a lease of 60 s, for a worker that then calls mark_push_sent or mark_push_failed. device_token is null where a push goes to every device of user_id, as push_recipients lists them. Pushes to topics are left to push-listener.';
select push_listener.allow('public.fetch_pending_pushes(integer)', 'service_role');

-- Why a push could not be settled; or, where that has been done before, with what result.
create function push_listener.settled_before(p_push_id uuid, variadic p_statuses text[]) returns text
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
        'push %s is in the hands of push-listener worker %s, and only that worker may settle it',
        p_push_id, v_push.claimed_by)
      else pg_catalog.format('push %s is %s, not being sent', p_push_id, v_push.status) end,
    hint = 'Settle only what fetch_pending_pushes has returned, and before its lease of 60 s ends.';
end
$$;
revoke all on function push_listener.settled_before(uuid, text[]) from public;

create function public.mark_push_sent(p_push_id uuid) returns text
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_push record;
begin
  perform push_listener.refuse_users();
  update public.push_notifications p
    -- A receipt may have come before.
    set status = case when p.delivered_at is null then 'sent' else 'delivered' end,
        next_attempt_at = null,
        error_code = null,
        last_error = null,
        sent_at = now(),
        updated_at = now()
    where p.id = p_push_id and p.status = 'processing' and p.claimed_by is null
    returning p.status, p.device_token, p.delivery_attempts into v_push;
  if not found then
    return push_listener.settled_before(p_push_id, 'sent', 'delivered');
  end if;

  insert into public.push_delivery_logs (push_id, device_token, status, details)
    values (p_push_id, v_push.device_token, 'sent', pg_catalog.jsonb_build_object('attempt', v_push.delivery_attempts));
  return v_push.status;
end
$$;
comment on function public.mark_push_sent(uuid) is
  'A push taken with fetch_pending_pushes was accepted by FCM. Returns its status. To repeat it changes nothing.';
select push_listener.allow('public.mark_push_sent(uuid)', 'service_role');

create function public.mark_push_failed(p_push_id uuid, p_error text) returns text
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
  select p.retry_count, p.expires_at, p.device_token, p.delivery_attempts into v_push
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

  -- As the listener does it: exponential with full jitter, from the 10 s that FCM asks for at least. In five tries the
  -- wait never comes near the hour at which the listener caps it.
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
comment on function public.mark_push_failed(uuid, text) is
  'A push taken with fetch_pending_pushes was not accepted. Returns what becomes of it: failed (tried again later), dead or expired. To repeat it changes nothing.';
select push_listener.allow('public.mark_push_failed(uuid, text)', 'service_role');

-- What devices report ---------------------------------------------------------------------------------------------

-- Why a JSON value from a phone is refused, or null.
--
-- To write JSON out takes time and memory that its input does not show: 1e131071 is 8 bytes, and 131 KB as text. So it is
-- written out only when neither its stored size, at most some 4 times the text, nor any number in it is too large. These
-- are statements and not one expression, of which Postgres might evaluate the last part first, when it plans.
create function push_listener.json_problem(p_value jsonb, p_bytes integer) returns text
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_catalog.pg_column_size(p_value) > 4 * p_bytes + 64 then
    return pg_catalog.format('larger than %s bytes', p_bytes);
  end if;
  if exists (
    select from pg_catalog.jsonb_path_query(p_value, 'strict $.** ? (@.type() == "number")') n
      where pg_catalog.abs(n::numeric) >= 1e400 or pg_catalog.scale(n::numeric) > 400
  ) then
    return 'has a number of more than 400 digits';
  end if;
  if pg_catalog.octet_length(p_value::text) > p_bytes then
    return pg_catalog.format('larger than %s bytes', p_bytes);
  end if;
  return null;
end
$$;
revoke all on function push_listener.json_problem(jsonb, integer) from public;

create function public.record_delivery_receipt(
  p_push_id uuid, p_device_token text, p_status text, p_details jsonb default null
) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_service boolean := push_listener.caller_is_service();
  v_user uuid := push_listener.caller_id();
  v_push record;
  v_allowed boolean;
  v_problem text := case
    when p_push_id is null then 'p_push_id must not be null'
    when p_device_token is null or pg_catalog.length(p_device_token) not between 1 and 4096
      then 'p_device_token must be the registration token of the device'
    when p_status is null or p_status not in ('delivered', 'opened', 'clicked', 'failed', 'unknown')
      then 'p_status must be delivered, opened, clicked, failed or unknown'
    when p_details is null then null
    when pg_catalog.jsonb_typeof(p_details) <> 'object' then 'p_details must be a JSON object'
    else 'p_details: ' || push_listener.json_problem(p_details, 2048) end;
begin
  if v_problem is not null then
    raise exception using errcode = 'invalid_parameter_value', message = v_problem;
  end if;

  -- Nothing is locked before the caller is known to be allowed: nobody can hold up another user's push.
  select p.user_id, p.device_token, l.accepted, l.noted,
         pg_catalog.num_nonnulls(p.device_token, p.topic, p.condition) = 0 as to_user,
         coalesce(p.delivery_attempts > 0 or p.sent_at is not null or p.status in ('sent', 'delivered', 'processing')
                  or l.accepted_by_any, false) as tried,
         -- Which devices FCM has accepted it for is not on record: the answers are still to come, or were lost, or the
         -- application sent it without a log row for each device.
         coalesce(p.status = 'processing' or p.lost_claims > 0 or p.error_code = 'NOT_WRITTEN'
                  or p.status in ('sent', 'delivered') and not l.accepted_by_any, false) as unrecorded,
         coalesce(case when p.status in ('sent', 'delivered') then p.sent_at end, p.updated_at, 'infinity') as sent_at
    into v_push
    from public.push_notifications p
    cross join lateral (
      select coalesce(bool_or(a.accepted and o.device_token = p_device_token), false) as accepted,
             coalesce(bool_or(a.accepted and o.device_token is not null), false) as accepted_by_any,
             -- An attempt at sending is logged as failed or unknown too.
             coalesce(bool_or(o.device_token = p_device_token and o.status = p_status
                              and (p_status in ('delivered', 'opened', 'clicked') or a.receipt)), false) as noted
        from public.push_delivery_logs o
        cross join lateral (
          select coalesce(o.details ? 'receipt', false) as receipt,
                 -- An application that logged by itself may have had other words than sent.
                 o.status in ('sent', 'unknown', 'delivered', 'opened', 'clicked')
                   and not coalesce(o.details ? 'receipt', false) as accepted
        ) a
        where o.push_id = p.id
    ) l
    where p.id = p_push_id;

  if not found then
    v_allowed := false;
  elsif v_service then
    v_allowed := v_push.tried;
  elsif v_push.user_id = v_user then
    -- One's own push, also from a device that is another user's by now. Where FCM's answers are not on record, a device
    -- counts that was the user's when it was sent. Of devices in a table of the application that time is not known.
    v_allowed := v_push.accepted
      or v_push.unrecorded and (coalesce(v_push.device_token = p_device_token, false) or v_push.to_user and exists (
        select from public.push_recipients r
          left join public.push_devices d on d.token = r.token and d.user_id = r.user_id
          where r.token = p_device_token and r.user_id = v_user
            and coalesce(d.created_at <= v_push.sent_at, true)));
  else
    -- Nobody's push, to a device that is the user's now.
    v_allowed := v_push.user_id is null and v_push.device_token = p_device_token
      and (v_push.accepted or v_push.unrecorded)
      and (exists (select from public.push_devices d where d.token = p_device_token and d.user_id = v_user)
           or exists (select from public.push_recipients r where r.token = p_device_token and r.user_id = v_user));
  end if;

  if v_allowed and v_push.noted then
    return false;
  end if;
  if v_allowed then
    -- Receipts of one push wait for each other, so that no two of them find that the same one is missing.
    perform from public.push_notifications p where p.id = p_push_id for no key update;
    v_allowed := found;
  end if;
  if v_allowed is not true then
    if not v_service then
      -- The same for a push that is not there, for somebody else's, and for one that was not sent to this device.
      raise exception using errcode = 'insufficient_privilege', message = 'this is no push of yours to this device';
    elsif v_allowed is false and v_push.tried is false then
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
  -- The log bounds the devices that can report a push. Where it does not, the number that register_device allows does.
  if not v_service and not v_push.accepted and v_push.to_user and 100 <= (
    select count(distinct l.device_token)
      from public.push_delivery_logs l
      where l.push_id = p_push_id and l.details ? 'receipt' and l.device_token <> p_device_token
  ) then
    raise exception using errcode = 'insufficient_privilege', message = 'this push has receipts from 100 devices already';
  end if;

  -- Under a key of its own, so that nothing a device writes can be taken for what the listener writes.
  insert into public.push_delivery_logs (push_id, device_token, status, details)
    values (p_push_id, p_device_token, p_status,
            pg_catalog.jsonb_build_object('receipt', coalesce(p_details, '{}'::jsonb)));

  -- A device that opened it has received it. Before 'sent' the time alone is noted, and settling makes it 'delivered'.
  -- While the push is being sent, updated_at says since when, and stays.
  if p_status in ('delivered', 'opened', 'clicked') then
    update public.push_notifications p
      set delivered_at = coalesce(p.delivered_at, now()),
          status = case p.status when 'sent' then 'delivered' else p.status end,
          updated_at = case p.status when 'processing' then p.updated_at else now() end
      where p.id = p_push_id and (p.delivered_at is null or p.status = 'sent');
  end if;
  return true;
end
$$;
comment on function public.record_delivery_receipt(uuid, text, text, jsonb) is
  'A device reports what became of a push to it: delivered, opened, clicked, failed or unknown. True: noted; false: it had been before.';
select push_listener.allow('public.record_delivery_receipt(uuid, text, text, jsonb)', 'authenticated', 'service_role');

-- A time in ISO 8601, in UTC where it names no zone; null where it is none. (Postgres has pg_input_is_valid from 16.)
create function push_listener.to_time(p_text text) returns timestamptz
  language plpgsql immutable set search_path = pg_catalog, pg_temp set timezone = 'UTC'
as $$
begin
  if p_text ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,9})?)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?$' then
    return p_text::timestamptz;
  end if;
  return null;
exception when data_exception then
  return null;
end
$$;
revoke all on function push_listener.to_time(text) from public;

-- What is wrong with an element of telemetry, or null. p_user: whose it has to be; null: anybody's.
create function push_listener.telemetry_problem(p_payload jsonb, p_user uuid) returns text
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select coalesce(case when p_payload is null or pg_catalog.jsonb_typeof(p_payload) <> 'object' then 'not a JSON object' end,
                  push_listener.json_problem(p_payload, 16384), case
    when pg_catalog.jsonb_typeof(p_payload -> 'type') is distinct from 'string'
      or pg_catalog.length(p_payload ->> 'type') not between 1 and 100 then 'type must be a string of 1 to 100 characters'
    when pg_catalog.jsonb_typeof(p_payload -> 'message') is distinct from 'string' then 'message must be a string'
    when pg_catalog.jsonb_typeof(p_payload -> 'meta') not in ('object', 'null') then 'meta must be a JSON object'
    when pg_catalog.jsonb_typeof(p_payload -> 'timestamp') not in ('string', 'null')
      or (p_payload ->> 'timestamp' is not null and push_listener.to_time(p_payload ->> 'timestamp') is null)
      then 'timestamp must be a time in ISO 8601'
    when pg_catalog.jsonb_typeof(p_payload -> 'user_id') not in ('string', 'null')
      or p_payload ->> 'user_id' !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then 'user_id must be a UUID'
    when pg_catalog.lower(p_payload ->> 'user_id') <> p_user::text then 'user_id is not yours: leave it out' end)
$$;
revoke all on function push_listener.telemetry_problem(jsonb, uuid) from public;

create function push_listener.store_telemetry(p_payloads jsonb[], p_batch uuid, p_user uuid) returns void
  language sql set search_path = pg_catalog, pg_temp
as $$
  insert into public.telemetry_logs (type, message, meta, "timestamp", user_id, batch_id, processed_at, created_at)
    select e ->> 'type', e ->> 'message', nullif(e -> 'meta', 'null'),
           coalesce(push_listener.to_time(e ->> 'timestamp'), now()), coalesce(p_user, (e ->> 'user_id')::uuid),
           p_batch, now(), now()
      from pg_catalog.unnest(p_payloads) as e
$$;
revoke all on function push_listener.store_telemetry(jsonb[], uuid, uuid) from public;

-- Old rows of push_listener.telemetry_use go now and then. Rows that another transaction has locked are passed over, so
-- that nobody waits for it.
create function push_listener.forget_telemetry_use() returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_catalog.random() < 0.01 then
    delete from push_listener.telemetry_use u
      where u.user_id in (
        select o.user_id from push_listener.telemetry_use o
          where o.records_until < now() and o.bytes_until < now()
          limit 1000
          for update skip locked);
  end if;
end
$$;
revoke all on function push_listener.forget_telemetry_use() from public;

-- Takes a batch from what a user may send: 50,000 records and 32 MiB within an hour, both coming back evenly. Returns the
-- seconds after which the batch will be taken, null when it is taken now.
create function push_listener.telemetry_wait(p_user uuid, p_records integer, p_bytes bigint) returns integer
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  c_records constant interval := pg_catalog.make_interval(secs => 3600.0 * p_records / 50000);
  c_bytes constant interval := pg_catalog.make_interval(secs => 3600.0 * p_bytes / (32 * 1024 * 1024));
  c_limit constant timestamptz := now() + interval '1 hour';
  v_wait interval;
begin
  perform push_listener.forget_telemetry_use();

  -- The row stays locked until the batch is stored: batches of one user at the same time count one after another. A
  -- time beyond the limit is from before the clock was put back, and counts as the limit.
  insert into push_listener.telemetry_use as u (user_id, records_until, bytes_until)
    values (p_user, now() + c_records, now() + c_bytes)
    on conflict (user_id) do update
      set records_until = greatest(least(u.records_until, c_limit) + c_records, excluded.records_until),
          bytes_until = greatest(least(u.bytes_until, c_limit) + c_bytes, excluded.bytes_until)
      where greatest(least(u.records_until, c_limit) + c_records, excluded.records_until) <= c_limit
        and greatest(least(u.bytes_until, c_limit) + c_bytes, excluded.bytes_until) <= c_limit;
  if found then
    return null;
  end if;
  select greatest(least(u.records_until, c_limit) + c_records, least(u.bytes_until, c_limit) + c_bytes) - c_limit
    into v_wait
    from push_listener.telemetry_use u
    where u.user_id = p_user;
  return pg_catalog.ceil(extract(epoch from v_wait))::integer;
end
$$;
revoke all on function push_listener.telemetry_wait(uuid, integer, bigint) from public;

create function public.flush_telemetry(p_payloads jsonb[]) returns jsonb
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_user uuid := case when not push_listener.caller_is_service() then push_listener.caller_id() end;
  v_batch uuid := pg_catalog.gen_random_uuid();
  v_good jsonb[];
  v_places integer[];
  v_rejected jsonb;
  v_accepted integer := 0;
  v_wait integer;
begin
  if v_user is null and not push_listener.caller_is_service() then
    raise exception using errcode = 'insufficient_privilege', message = 'telemetry is taken from signed-in users only';
  end if;
  if p_payloads is null then
    raise exception using errcode = 'invalid_parameter_value', message = 'p_payloads must be an array of JSON objects';
  end if;
  if pg_catalog.cardinality(p_payloads) > 1000 then
    raise exception using errcode = 'invalid_parameter_value',
      message = pg_catalog.format('p_payloads has %s elements, and at most 1000 are taken at once',
                                  pg_catalog.cardinality(p_payloads));
  end if;
  if pg_catalog.pg_column_size(p_payloads) > 2 * 1024 * 1024 then
    raise exception using errcode = 'PT413', message = 'p_payloads is larger than 2 MiB as jsonb',
      hint = 'Send fewer elements at once.';
  end if;
  if v_user is not null then
    v_wait := push_listener.telemetry_wait(v_user, pg_catalog.cardinality(p_payloads),
                                           pg_catalog.pg_column_size(p_payloads));
    if v_wait is not null then
      raise exception using errcode = 'PT429',
        message = 'this user has sent too much telemetry: 50000 elements and 32 MiB are taken within an hour',
        hint = pg_catalog.format('Send this batch again in %s seconds.', v_wait);
    end if;
  end if;

  select pg_catalog.array_agg(c.payload order by c.place) filter (where c.problem is null),
         pg_catalog.array_agg(c.place order by c.place) filter (where c.problem is null),
         coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('index', c.place, 'reason', c.problem)
                                       order by c.place) filter (where c.problem is not null), '[]')
    into v_good, v_places, v_rejected
    from (
      select e.payload, (e.ordinality - 1)::integer as place, push_listener.telemetry_problem(e.payload, v_user) as problem
        -- An array of arrays has more than one dimension, and unnest would take them all apart.
        from pg_catalog.unnest(case when pg_catalog.array_ndims(p_payloads) > 1
                                    then pg_catalog.array_fill(null::jsonb, array[pg_catalog.array_length(p_payloads, 1)])
                                    else p_payloads end) with ordinality as e(payload, ordinality)
    ) c;

  begin
    perform push_listener.store_telemetry(v_good, v_batch, v_user);
    v_accepted := coalesce(pg_catalog.cardinality(v_good), 0);
  exception when data_exception or integrity_constraint_violation or raise_exception or program_limit_exceeded then
    -- An adopted table has rules of its own, which the elements above do not all meet: one by one, then.
    for i in 1 .. pg_catalog.cardinality(v_good) loop
      begin
        perform push_listener.store_telemetry(v_good[i:i], v_batch, v_user);
        v_accepted := v_accepted + 1;
      exception when data_exception or integrity_constraint_violation or raise_exception or program_limit_exceeded then
        v_rejected := v_rejected || pg_catalog.jsonb_build_object('index', v_places[i], 'reason', sqlerrm);
      end;
    end loop;
  end;
  return pg_catalog.jsonb_build_object('batch_id', v_batch, 'accepted', v_accepted, 'rejected', v_rejected);
end
$$;
comment on function public.flush_telemetry(jsonb[]) is
  'Stores up to 1000 objects {type, message, meta?, timestamp?} in telemetry_logs as one batch. Returns {batch_id, accepted, rejected: [{index, reason}]}: what is wrong is left out, by its index from 0, and the rest is stored.';
select push_listener.allow('public.flush_telemetry(jsonb[])', 'authenticated', 'service_role');

create function public.register_device(p_token text, p_platform text, p_user_id uuid default null) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_service boolean := push_listener.caller_is_service();
  v_user uuid := case when v_service then p_user_id else push_listener.caller_id() end;
  v_rule text;
  v_column text;
  v_problem text := case
    -- The key of an index has room for 2704 bytes.
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
    -- Apps call this at every start: what is known already is written once a day, as a sign of life.
    insert into public.push_devices as d (token, user_id, platform)
      values (p_token, v_user, p_platform)
      on conflict (token) do update
        set user_id = excluded.user_id,
            platform = excluded.platform,
            -- Since when it is this user's: pushes that were sent to the user before did not go to it.
            created_at = case when d.user_id = excluded.user_id then d.created_at else now() end,
            disabled_at = null,
            disabled_reason = null,
            updated_at = now()
        where d.user_id is distinct from excluded.user_id or d.platform is distinct from excluded.platform
          or d.disabled_at is not null or d.updated_at < now() - interval '1 day';
    if not found then
      return;
    end if;

    -- A signed-in user may make tokens up, and each push to a user goes to all of that user's devices: their number is
    -- bounded. Registrations of one user at the same time wait here for each other, and each then sees the ones before.
    -- They wait for a row that no login can lock but through these functions; an advisory lock, any login could hold.
    -- Rows that another transaction has locked are passed over: it is about to count them itself.
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
    -- A rule of the application's. Postgres' own detail would show the whole row, and with it what the application
    -- keeps there of the user whose device it was.
    get stacked diagnostics v_rule = constraint_name, v_column = column_name;
    raise exception using errcode = sqlstate, message = pg_catalog.format(
      'a rule of the application''s for push_devices does not allow this device: %s', coalesce(nullif(v_rule, ''), v_column));
  end;
end
$$;
comment on function public.register_device(text, text, uuid) is
  'The registration token of a device of the signed-in user. A token that was another user''s moves; one that was disabled lives again. A user has 100 devices at most: those seen last.';
select push_listener.allow('public.register_device(text, text, uuid)', 'authenticated', 'service_role');

create function public.unregister_device(p_token text) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_service boolean := push_listener.caller_is_service();
  v_user uuid := push_listener.caller_id();
begin
  if not v_service and v_user is null then
    raise exception using errcode = 'insufficient_privilege',
      message = 'a device can be unregistered by its signed-in user only';
  end if;
  if p_token is null or pg_catalog.length(p_token) not between 1 and 4096 then
    raise exception using errcode = 'invalid_parameter_value', message = 'p_token must be a registration token';
  end if;
  delete from public.push_devices d
    where d.token = p_token and (v_service or d.user_id = v_user);
  return found;
end
$$;
comment on function public.unregister_device(text) is
  'Forgets a device of the signed-in user, at logout. False: that user has no such device.';
select push_listener.allow('public.unregister_device(text)', 'authenticated', 'service_role');

-- What the application's server does ------------------------------------------------------------------------------
--
-- These two run with the rights of the role that calls them, so that they can tell it: a function of the application that
-- runs with its owner's rights calls as that owner, and so may enqueue or cancel for a user.

create function public.enqueue_push(
  p_user_id uuid default null,
  p_device_token text default null,
  p_topic text default null,
  p_condition text default null,
  p_title text default null,
  p_body text default null,
  p_data jsonb default null,
  p_channel text default null,
  p_priority text default null,
  p_image text default null,
  p_options jsonb default null,
  p_collapse_key text default null,
  p_idempotency_key text default null,
  p_expires_at timestamptz default null,
  p_send_at timestamptz default null
) returns uuid
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_problem text;
  v_limit integer := case when p_topic is null and p_condition is null then 4096 else 2048 end;
  v_size bigint;
  v_required text[];
  v_columns text;
  v_values text;
  v_id uuid;
  v_status text;
begin
  if public.push_is_service(current_user) is not true then
    raise exception using errcode = 'insufficient_privilege',
      message = pg_catalog.format('%s may not call this function: it is for the application''s server', current_user),
      hint = 'For a signed-in user, call it in a function of your own that checks the user and runs with its owner''s rights.';
  end if;
  -- What FCM would refuse, or the listener, is refused here, where the one who can mend it hears of it.
  v_problem := case
    when pg_catalog.num_nonnulls(p_device_token, p_topic, p_condition) > 1
      or (p_user_id is not null and pg_catalog.num_nonnulls(p_topic, p_condition) > 0)
      then 'set exactly one of p_device_token, p_topic, p_condition and p_user_id (beside p_device_token, p_user_id says whose device it is)'
    when pg_catalog.num_nonnulls(p_user_id, p_device_token, p_topic, p_condition) = 0
      then 'the push has no target: set p_user_id, p_device_token, p_topic or p_condition'
    when pg_catalog.length(p_device_token) not between 1 and 4096 or p_device_token collate "C" !~ '^[!-~]+$'
      then 'p_device_token must be a registration token, as the app got it'
    when pg_catalog.length(p_topic) > 1000 or p_topic !~ '^(/topics/)?[a-zA-Z0-9_.~%-]+$'
      then 'p_topic must be one or more of the characters a-z A-Z 0-9 - _ . ~ %'
    when pg_catalog.length(p_condition) > 4096 or p_condition collate "C" !~ '^[ -~]*[!-~][ -~]*$'
      then 'p_condition must be an expression such as ''news'' in topics && ''sport'' in topics'
    when (select count(*) from pg_catalog.regexp_matches(p_condition, '\yin\s+topics\y', 'gi')) > 5
      then 'p_condition names more than the 5 topics that FCM allows: send several pushes'
    when p_priority not in ('normal', 'high') then 'p_priority must be normal or high'
    when pg_catalog.jsonb_typeof(p_data) <> 'object' then 'p_data must be a JSON object'
    when pg_catalog.jsonb_typeof(p_options) <> 'object'
      or exists (select from pg_catalog.jsonb_each(p_options) o
                   where o.key not in ('android', 'apns', 'webpush', 'fcm_options')
                     or pg_catalog.jsonb_typeof(o.value) <> 'object')
      then 'p_options may have only android, apns, webpush and fcm_options, each an object'
    when pg_catalog.octet_length(p_options::text) > 32768 then 'p_options must be no larger than 32768 bytes'
    when coalesce(p_title, '') = '' and coalesce(p_body, '') = '' and coalesce(p_data, '{}') = '{}'
      then 'p_title, p_body and p_data are all empty: nothing to send'
    when p_title is null and p_body <> ''
      then 'p_title is missing: set it, or for a data message leave p_body out too'
    when pg_catalog.length(p_channel) > 1000 then 'p_channel must be no longer than 1000 characters'
    when pg_catalog.length(p_image) > 2048 then 'p_image must be no longer than 2048 characters'
    when pg_catalog.length(p_collapse_key) > 1000 then 'p_collapse_key must be no longer than 1000 characters'
    when pg_catalog.length(p_idempotency_key) not between 1 and 255
      then 'p_idempotency_key must be from 1 to 255 characters'
    when not pg_catalog.isfinite(p_send_at) then 'p_send_at must be a time that will come'
    when p_expires_at <= greatest(now(), p_send_at)
      then 'p_expires_at must be later than now and than p_send_at' end;
  if v_problem is null then
    -- No more than there will be: what a value that is no string takes up depends on how its JSON is written.
    v_size := coalesce(pg_catalog.octet_length(p_title), 0) + coalesce(pg_catalog.octet_length(p_body), 0)
      + coalesce((select sum(pg_catalog.octet_length(d.key) + case pg_catalog.jsonb_typeof(d.value)
                               when 'string' then pg_catalog.octet_length(d.value #>> '{}') else 1 end)
                    from pg_catalog.jsonb_each(p_data) d), 0);
    if v_size > v_limit then
      v_problem := pg_catalog.format('the payload is at least %s bytes, and FCM takes %s to %s: shorten p_title, p_body or p_data',
        v_size, v_limit, case v_limit when 4096 then 'a device' else 'a topic or condition' end);
    elsif pg_catalog.octet_length(p_data::text) > 32768 then
      v_problem := 'p_data must be no larger than 32768 bytes';
    elsif exists (select from pg_catalog.jsonb_object_keys(p_data) k
                    where k in ('from', 'message_type', 'google', 'gcm')
                      or pg_catalog.starts_with(k, 'google.') or pg_catalog.starts_with(k, 'gcm.notification.')) then
      v_problem := 'FCM reserves the p_data keys from, message_type, google, gcm, google.* and gcm.notification.*: rename them';
    end if;
  end if;
  if v_problem is not null then
    raise exception using errcode = 'invalid_parameter_value', message = v_problem;
  end if;

  -- A column that is not given has its default, and an adopted table may insist on a title: an empty one shows nothing.
  select pg_catalog.array_agg(a.attname) into v_required
    from pg_catalog.pg_attribute a
    where a.attrelid = 'public.push_notifications'::regclass and a.attname in ('title', 'body') and a.attnotnull;
  select pg_catalog.string_agg(pg_catalog.quote_ident(c.name), ', ' order by c.place),
         pg_catalog.string_agg('$' || c.place, ', ' order by c.place)
    into v_columns, v_values
    from (values
      (1, 'user_id', p_user_id is not null),
      (2, 'device_token', p_device_token is not null),
      (3, 'topic', p_topic is not null),
      (4, 'condition', p_condition is not null),
      (5, 'title', p_title is not null or 'title' = any (v_required)),
      (6, 'body', p_body is not null or 'body' = any (v_required)),
      (7, 'data', p_data is not null),
      (8, 'channel', p_channel is not null),
      (9, 'priority', p_priority is not null),
      (10, 'image', p_image is not null),
      (11, 'options', p_options is not null),
      (12, 'collapse_key', p_collapse_key is not null),
      (13, 'idempotency_key', p_idempotency_key is not null),
      (14, 'expires_at', p_expires_at is not null),
      (15, 'next_attempt_at', true),
      (16, 'status', true)
    ) as c(place, name, given)
    where c.given;

  loop
    execute pg_catalog.format(
      'insert into public.push_notifications (%s) values (%s) '
      'on conflict (idempotency_key) where idempotency_key is not null do nothing returning id, status', v_columns, v_values)
      into v_id, v_status
      using p_user_id, p_device_token, p_topic, p_condition, coalesce(p_title, ''), coalesce(p_body, ''), p_data,
            p_channel, p_priority, p_image, p_options, p_collapse_key, p_idempotency_key, p_expires_at,
            greatest(p_send_at, now()), 'pending';
    exit when v_id is not null;
    select p.id into v_id from public.push_notifications p where p.idempotency_key = p_idempotency_key;
    exit when v_id is not null; -- else it was deleted just now
  end loop;
  if v_status <> 'pending' then
    raise exception using errcode = 'object_not_in_prerequisite_state',
      message = pg_catalog.format('a trigger on push_notifications has given the new row the status %L: it would never be sent', v_status),
      hint = 'Let the trigger leave the status of new rows alone.';
  end if;
  return v_id;
end
$$;
comment on function public.enqueue_push(uuid, text, text, text, text, text, jsonb, text, text, text, jsonb, text, text,
                                        timestamptz, timestamptz) is
  'Puts a push in the queue and returns its id; with a p_idempotency_key that is there already, the id of that one.';
select push_listener.allow('public.enqueue_push(uuid, text, text, text, text, text, jsonb, text, text, text, jsonb, text,
                                                text, timestamptz, timestamptz)', 'service_role');

create function public.cancel_push(p_push_id uuid) returns boolean
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if public.push_is_service(current_user) is not true then
    raise exception using errcode = 'insufficient_privilege',
      message = pg_catalog.format('%s may not call this function: it is for the application''s server', current_user),
      hint = 'For a signed-in user, call it in a function of your own that checks the user and runs with its owner''s rights.';
  end if;
  if p_push_id is null then
    raise exception using errcode = 'invalid_parameter_value', message = 'p_push_id must not be null';
  end if;
  update public.push_notifications p
    set status = 'cancelled', next_attempt_at = null, updated_at = now()
    where p.id = p_push_id and p.status in ('pending', 'failed');
  return found;
end
$$;
comment on function public.cancel_push(uuid) is
  'Takes a push that waits out of the queue. False: it does not wait; what is being sent is not cancelled.';
select push_listener.allow('public.cancel_push(uuid)', 'service_role');

create function public.requeue_pushes(
  p_ids uuid[] default null,
  p_error_code text default null,
  p_since timestamptz default null,
  p_limit integer default 1000
) returns integer
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
  v_problem text := case
    when pg_catalog.num_nonnulls(p_ids, p_error_code, p_since) = 0
      then 'say which pushes: set p_ids, p_error_code or p_since'
    when pg_catalog.cardinality(p_ids) > 10000 then 'p_ids must have no more than 10000 elements'
    when p_limit is null or p_limit not between 1 and 10000 then 'p_limit must be from 1 to 10000' end;
begin
  perform push_listener.refuse_users();
  if v_problem is not null then
    raise exception using errcode = 'invalid_parameter_value', message = v_problem;
  end if;

  with chosen as materialized (
    select p.id
      from public.push_notifications p
      where p.status in ('dead', 'expired', 'failed', 'cancelled')
        and (p_ids is null or p.id = any (p_ids))
        and (p_error_code is null or p.error_code = p_error_code)
        and (p_since is null or p.updated_at >= p_since)
        and (p.expires_at is null or p.expires_at > now())
      order by p.updated_at
      limit p_limit
      for update skip locked
  )
  update public.push_notifications p
    set status = 'pending', next_attempt_at = now(), retry_count = 0, lost_claims = 0, updated_at = now()
    from chosen c
    where p.id = c.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function public.requeue_pushes(uuid[], text, timestamptz, integer) is
  'Puts pushes that are dead, expired, failed or cancelled back in the queue with all their tries, those longest in that state first. Returns how many. What is past its expires_at stays.';
select push_listener.allow('public.requeue_pushes(uuid[], text, timestamptz, integer)', 'service_role');
