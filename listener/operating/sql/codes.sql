-- The dead and expired pushes by error code. Each code costs one search of the index, and only its newest entries are
-- counted. A code is compared as a range, for the reason in by_code.sql. Codes with the same first 65 characters count
-- as one.
with recursive codes(code) as (
  (select pg_catalog.left(error_code::text, 65) from public.push_notifications
     where status::text in ('dead', 'expired') and pg_catalog.left(error_code::text, 65) is not null
     order by pg_catalog.left(error_code::text, 65) limit 1)
  union all
  select (select pg_catalog.left(p.error_code::text, 65) from public.push_notifications p
            where p.status::text in ('dead', 'expired') and pg_catalog.left(p.error_code::text, 65) > c.code
            order by pg_catalog.left(p.error_code::text, 65) limit 1)
    from codes c
    where c.code is not null
), few as materialized (
  select code from codes where code is not null limit %(codes)s::bigint
)
select f.code, g.status, g.pushes, g.latest, g.looked
  from few f
  cross join lateral (
    select e.status, pg_catalog.count(*) as pushes, extract(epoch from pg_catalog.max(e.updated_at))::float8 as latest,
        pg_catalog.sum(pg_catalog.count(*)) over ()::bigint as looked
      from (
        select p.status::text as status, p.updated_at
          from public.push_notifications p
          where pg_catalog.left(p.error_code::text, 65) >= f.code and pg_catalog.left(p.error_code::text, 65) <= f.code
            and p.status::text in ('dead', 'expired')
          order by pg_catalog.left(p.error_code::text, 65), p.updated_at desc
          limit %(window)s::bigint
      ) e
      group by e.status
  ) g
union all
select '', g.status, g.pushes, g.latest, g.looked
  from (
    select e.status, pg_catalog.count(*) as pushes, extract(epoch from pg_catalog.max(e.updated_at))::float8 as latest,
        pg_catalog.sum(pg_catalog.count(*)) over ()::bigint as looked
      from (
        select p.status::text as status, p.updated_at
          from public.push_notifications p
          where pg_catalog.left(p.error_code::text, 65) is null and p.status::text in ('dead', 'expired')
          order by pg_catalog.left(p.error_code::text, 65), p.updated_at desc
          limit %(window)s::bigint
      ) e
      group by e.status
  ) g
