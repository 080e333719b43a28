-- Notes rows that cannot be written. No worker claims them for "pause" seconds (NULL: until requeue_pushes names them);
-- each time that a row is noted again it waits twice as long, up to "longest" seconds.
insert into push_listener.unwritable_rows as u (push_id, statement, code, until)
  select id, %(statement)s, code,
         coalesce(pg_catalog.now() + pg_catalog.make_interval(secs => %(pause)s::float8), 'infinity'::timestamptz)
    from unnest(%(ids)s::uuid[], %(codes)s::text[]) as r(id, code)
on conflict (push_id) do update
  set statement = excluded.statement, code = excluded.code, times = u.times + 1, noted_at = pg_catalog.now(),
      until = coalesce(
        pg_catalog.now() + pg_catalog.make_interval(secs => least(
          %(longest)s::float8, %(pause)s::float8 * pg_catalog.power(2.0::float8, least(u.times, 20)::float8))),
        'infinity'::timestamptz)
  -- What may have been sent stays noted.
  where u.until < 'infinity'::timestamptz
