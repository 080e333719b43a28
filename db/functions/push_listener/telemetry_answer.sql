-- revision 1
-- The answer to a batch that was stored before.
create or replace function push_listener.telemetry_answer(
  p_batch uuid, p_accepted integer, p_rejected integer[], p_payloads jsonb[], p_user uuid
) returns jsonb
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select pg_catalog.jsonb_build_object('batch_id', p_batch, 'accepted', p_accepted, 'rejected',
    coalesce((
      select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
               'index', r.place,
               'reason', coalesce(push_listener.telemetry_problem(e.payload, p_user), 'telemetry_logs does not take it'))
               order by r.nth)
        from pg_catalog.unnest(p_rejected) with ordinality as r(place, nth)
        left join pg_catalog.unnest(case when pg_catalog.array_ndims(p_payloads) = 1 then p_payloads end)
          with ordinality as e(payload, place) on e.place = r.place + 1), '[]'))
$$;
revoke all on function push_listener.telemetry_answer from public;
