-- If a row that was refused has been claimed after all, the cause may be gone. Then this lets all rows be claimed again
-- whose claims were refused with the same code. Returns whether any refused row is left.
with claimed as (
  delete from push_listener.unwritable_rows v
    using public.push_notifications p
    where p.id = v.push_id and v.statement = 'claim' and v.until <= pg_catalog.now()
      and (p.status::text in ('sent', 'delivered')
           or p.status::text = 'processing' and p.next_attempt_at > pg_catalog.now())
    returning v.code
), retried as (
  update push_listener.unwritable_rows u
    set until = pg_catalog.now()
    where u.statement = 'claim' and u.until > pg_catalog.now() and u.code in (select c.code from claimed c)
)
select exists (select from push_listener.unwritable_rows where statement = 'claim')
