-- The newest rows of the log of one push. A registration token leaves the database only as a short hash. What a device
-- reports is in details under "receipt". An application may have written anything else there, of any length. Each ->
-- reads the details as a whole, so only the details of the rows that are shown are read, and none larger than 16 kB.
-- Texts are cut as in line.sql.
--
-- OFFSET 0 keeps Postgres from reading the log in the order of another index.
select extract(epoch from l.created_at)::float8 as at,
    coalesce(pg_catalog.left(pg_catalog.encode(
      pg_catalog.sha256(pg_catalog.convert_to(l.device_token, 'UTF8')), 'hex'), 8), '') as device,
    pg_catalog.left(l.status, 65) as status,
    l.details -> 'receipt'::text is not null or l.status in ('delivered', 'opened', 'clicked') as is_receipt,
    case when pg_catalog.jsonb_typeof(l.details -> 'attempt'::text) = 'number'
         then case when (l.details ->> 'attempt'::text)::numeric between 0::numeric and 1000000::numeric
                   then (l.details ->> 'attempt'::text)::float8 end end as attempt,
    pg_catalog.left(l.details ->> 'code'::text, 65) as code,
    pg_catalog.left(l.details ->> 'reason'::text, 2001) as answer,
    pg_catalog.left(l.details ->> 'message_id'::text, 513) as message_id,
    (select pg_catalog.left(d.platform::text, 65) from public.push_recipients d
       where d.user_id = %(user)s::uuid and d.token::text = l.device_token limit 1) as platform
  from (
    select n.created_at, n.device_token, n.status,
        case when pg_catalog.pg_column_size(n.details) > 16384
             then pg_catalog.jsonb_build_object('reason', 'the details are larger than 16 kB and are not shown')
             else n.details end as details
      from (
        select p.created_at, p.device_token::text as device_token, p.status::text as status, p.details
          from public.push_delivery_logs p
          where p.push_id = %(id)s::uuid
          offset 0
      ) n
      order by n.created_at desc
      limit %(rows)s::bigint
  ) l
  order by l.created_at desc
