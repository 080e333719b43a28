-- revision 2
create or replace function public.flush_telemetry(p_payloads jsonb[], p_batch_id uuid default null) returns jsonb
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_user uuid := case when not push_listener.caller_is_service() then push_listener.caller_id() end;
  -- Services share the ids under which batches are remembered; no user has this one.
  v_owner uuid := coalesce(v_user, '00000000-0000-0000-0000-000000000000');
  v_batch uuid := coalesce(p_batch_id, pg_catalog.gen_random_uuid());
  v_good jsonb[];
  v_places integer[];
  v_rejected jsonb;
  v_refused integer[];
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

  -- A batch that is stored already: its answer was lost. The reasons are not remembered, and found again.
  if p_batch_id is not null then
    select b.accepted, b.rejected into v_accepted, v_refused
      from push_listener.telemetry_batches b
      where b.user_id = v_owner and b.batch_id = p_batch_id;
    if found then
      return push_listener.telemetry_answer(p_batch_id, v_accepted, v_refused, p_payloads, v_user);
    end if;
    v_accepted := 0;
  end if;
  if v_user is not null then
    -- Each batch with an id is remembered, so it counts as ten elements at least.
    v_wait := push_listener.telemetry_wait(
      v_user, greatest(pg_catalog.cardinality(p_payloads), case when p_batch_id is not null then 10 end),
      pg_catalog.pg_column_size(p_payloads));
    if v_wait is not null then
      raise exception using errcode = 'PT429',
        message = 'this user has sent too much telemetry: 50000 elements and 32 MiB are taken within an hour',
        hint = pg_catalog.format('Send this batch again in %s seconds.', v_wait);
    end if;
  elsif p_batch_id is not null then
    -- telemetry_wait does it for users. Where only services send telemetry, nobody else would.
    perform push_listener.forget_telemetry_use();
  end if;

  select pg_catalog.array_agg(c.payload order by c.place) filter (where c.problem is null),
         pg_catalog.array_agg(c.place order by c.place) filter (where c.problem is null),
         coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('index', c.place, 'reason', c.problem)
                                       order by c.place) filter (where c.problem is not null), '[]')
    into v_good, v_places, v_rejected
    from (
      select e.payload, (e.ordinality - 1)::integer as place, push_listener.telemetry_problem(e.payload, v_user) as problem
        -- unnest would flatten an array of arrays, so each of its elements is reported as null instead.
        from pg_catalog.unnest(case when pg_catalog.array_ndims(p_payloads) > 1
                                    then pg_catalog.array_fill(null::jsonb, array[pg_catalog.array_length(p_payloads, 1)])
                                    else p_payloads end) with ordinality as e(payload, ordinality)
    ) c;

  -- The same batch in another session waits here until this one is committed, and is then answered as this one.
  if p_batch_id is not null then
    insert into push_listener.telemetry_batches (user_id, batch_id, accepted, rejected)
      values (v_owner, p_batch_id, coalesce(pg_catalog.cardinality(v_good), 0),
              array(select (r.value -> 'index')::integer from pg_catalog.jsonb_array_elements(v_rejected) with ordinality r(value, nth)
                      order by r.nth))
      on conflict (user_id, batch_id) do nothing;
    if not found then
      select b.accepted, b.rejected into v_accepted, v_refused
        from push_listener.telemetry_batches b
        where b.user_id = v_owner and b.batch_id = p_batch_id;
      return push_listener.telemetry_answer(p_batch_id, v_accepted, v_refused, p_payloads, v_user);
    end if;
  end if;

  begin
    perform push_listener.store_telemetry(v_good, v_batch, v_user);
    v_accepted := coalesce(pg_catalog.cardinality(v_good), 0);
  exception when data_exception or integrity_constraint_violation or raise_exception or program_limit_exceeded then
    -- An adopted table may have constraints of its own that some elements break. So each is stored by itself.
    for i in 1 .. pg_catalog.cardinality(v_good) loop
      begin
        perform push_listener.store_telemetry(v_good[i:i], v_batch, v_user);
        v_accepted := v_accepted + 1;
      exception when data_exception or integrity_constraint_violation or raise_exception or program_limit_exceeded then
        v_rejected := v_rejected || pg_catalog.jsonb_build_object('index', v_places[i], 'reason', sqlerrm);
      end;
    end loop;
    if p_batch_id is not null then
      update push_listener.telemetry_batches b
        set accepted = v_accepted,
            rejected = array(select (r.value -> 'index')::integer
                               from pg_catalog.jsonb_array_elements(v_rejected) with ordinality r(value, nth) order by r.nth)
        where b.user_id = v_owner and b.batch_id = p_batch_id;
    end if;
  end;
  return pg_catalog.jsonb_build_object('batch_id', v_batch, 'accepted', v_accepted, 'rejected', v_rejected);
end
$$;
revoke all on function public.flush_telemetry(jsonb[], uuid) from public;
comment on function public.flush_telemetry(jsonb[], uuid) is
  'Stores up to 1000 objects {type, message, meta?, timestamp?} in telemetry_logs as one batch. Returns {batch_id, accepted, rejected: [{index, reason}]}: elements with a fault are rejected (index counts from 0), the others are stored. A batch whose p_batch_id the caller has used in the last 7 days is not stored again, and gets the same answer.';
