-- revision 1
-- The role of the service may read these sums, and not daily_counts itself.
create or replace function push_listener.ended_by_code(p_days integer)
  returns table (error_code text, sent bigint, dead bigint, expired bigint)
  language sql stable security definer rows 20 set search_path = pg_catalog, pg_temp
as $$
  select c.error_code, sum(c.sent)::bigint, sum(c.dead)::bigint, sum(c.expired)::bigint
    from push_listener.daily_counts c
    where c.day > (now() at time zone 'UTC')::date - p_days and c.day <= (now() at time zone 'UTC')::date
    group by c.error_code
$$;
revoke all on function push_listener.ended_by_code from public;
comment on function push_listener.ended_by_code is
  'How the pushes of the last days in UTC, including today, ended: one row for each error code; the empty code has those that FCM accepted.';
