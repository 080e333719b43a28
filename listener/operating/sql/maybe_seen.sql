-- How many of these pushes a person may have seen already, because FCM has or may have accepted them for some device.
select pg_catalog.count(*)
  from public.push_notifications p
  where p.id = any(%(ids)s::uuid[])
    and (p.sent_at is not null or p.delivered_at is not null or p.fcm_message_id is not null or p.lost_claims > 0
         or (select true from push_listener.unwritable_rows u
               where u.push_id = p.id and u.statement = 'settle' limit 1)
         or (select true from public.push_delivery_logs l
               where l.push_id = p.id
                 and l.status::text in ('sent', 'unknown', 'delivered', 'opened', 'clicked') limit 1))
