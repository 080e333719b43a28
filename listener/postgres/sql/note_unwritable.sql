-- Notes rows that cannot be written. No worker claims them for "pause" seconds (NULL: until requeue_pushes names them).
-- Each time that a row is noted again, it waits twice as long, up to "longest" seconds.
--
-- Of many rows with the same code one, the probe, does not wait longer each time (with_probe). When the cause is gone,
-- it is claimed soon, and then all the others may be claimed; see retry_unwritable.sql. A row that is slow, 57014, is
-- no probe.
with noted as (
  select r.id, r.code,
         %(with_probe)s::boolean and r.code <> '57014'
           and pg_catalog.row_number() over (partition by r.code order by r.id) = 1
           and (pg_catalog.count(*) over (partition by r.code) > 1
                or exists (select from push_listener.unwritable_rows o
                             where o.code = r.code and o.push_id <> r.id and o.until > pg_catalog.now())) as is_probe
    from unnest(%(ids)s::uuid[], %(codes)s::text[]) as r(id, code)
)
insert into push_listener.unwritable_rows as u (push_id, statement, code, until)
  select n.id, %(statement)s, n.code,
         coalesce(
           pg_catalog.now() + pg_catalog.make_interval(secs => case
             when n.is_probe or %(pause)s::float8 is null then %(pause)s::float8
             else least(
               %(longest)s::float8,
               %(pause)s::float8 * pg_catalog.power(2.0::float8, least(coalesce(o.times, 0), 20)::float8)) end),
           'infinity'::timestamptz)
    from noted n
    left join push_listener.unwritable_rows o on o.push_id = n.id
on conflict (push_id) do update
  set statement = excluded.statement, code = excluded.code, times = u.times + 1, noted_at = pg_catalog.now(),
      until = excluded.until
  -- A push that may have been sent stays noted.
  where u.until < 'infinity'::timestamptz
