-- The log of one push, the newest rows of it. A registration token leaves the database as a short hash only. What a
-- device reports stands in details under "receipt"; an application may have written anything else.
--
-- OFFSET 0 keeps Postgres from reading the log in the order of another index.
select extract(epoch from l.created_at)::float8 as at,
    coalesce(pg_catalog.left(pg_catalog.encode(
      pg_catalog.sha256(pg_catalog.convert_to(l.device_token::text, 'UTF8')), 'hex'), 8), '') as device,
    l.status, l.is_receipt, l.attempt, l.code, l.answer, l.message_id,
    (select d.platform::text from public.push_recipients d
       where d.user_id = %(user)s::uuid and d.token::text = l.device_token::text limit 1) as platform
  from (
    select l.created_at, l.device_token, l.status::text as status,
        l.details -> 'receipt'::text is not null or l.status::text in ('delivered', 'opened', 'clicked') as is_receipt,
        case when pg_catalog.jsonb_typeof(l.details -> 'attempt'::text) = 'number'
             then (l.details ->> 'attempt'::text)::float8 end as attempt,
        pg_catalog.left(l.details ->> 'code'::text, 64) as code,
        pg_catalog.left(l.details ->> 'reason'::text, 2000) as answer,
        pg_catalog.left(l.details ->> 'message_id'::text, 512) as message_id
      from public.push_delivery_logs l
      where l.push_id = %(id)s::uuid
      offset 0
  ) l
  order by l.created_at desc
  limit %(rows)s::bigint
