-- revision 2
-- What the rows say about a push and one device that reports a receipt for it; no row if there is no such push. It
-- locks nothing, because the caller is not yet known to be allowed: nobody can block another user's push.
create or replace function push_listener.receipt_facts(p_push_id uuid, p_device_token text, p_status text)
  returns table (
    user_id uuid,          -- of the push
    device_token text,     -- of the push, if it names a device: its token or its fid
    to_user boolean,       -- it goes to every device of its user
    tried boolean,         -- it may have been sent to some device
    accepted boolean,      -- the log says that FCM has accepted it for this device
    unrecorded boolean,    -- the log does not say for which devices FCM has accepted it
    noted boolean,         -- this device has reported this status before
    sent_at timestamptz    -- when it was sent, as far as that is known
  )
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select p.user_id, coalesce(p.device_token, p.fid)::text,
         pg_catalog.num_nonnulls(p.device_token, p.fid, p.topic, p.condition) = 0,
         coalesce(p.delivery_attempts > 0 or p.sent_at is not null or p.status in ('sent', 'delivered', 'processing')
                  or l.accepted_by_any, false),
         l.accepted,
         -- FCM's answers are still to come or were lost, or the application sent the push without a log row for each
         -- device.
         coalesce(p.status = 'processing' or p.lost_claims > 0 or p.error_code = 'NOT_WRITTEN'
                  or p.status in ('sent', 'delivered') and not l.accepted_by_any, false),
         l.noted,
         coalesce(case when p.status in ('sent', 'delivered') then p.sent_at end, p.updated_at, 'infinity')
    from public.push_notifications p
    cross join lateral (
      select coalesce(bool_or(a.accepted and o.device_token = p_device_token), false) as accepted,
             coalesce(bool_or(a.accepted and o.device_token is not null), false) as accepted_by_any,
             -- An attempt to send is logged as failed or unknown too.
             coalesce(bool_or(o.device_token = p_device_token and o.status = p_status
                              and (p_status in ('delivered', 'opened', 'clicked') or a.receipt)), false) as noted
        from public.push_delivery_logs o
        cross join lateral (
          select coalesce(o.details ? 'receipt', false) as receipt,
                 -- An application that kept its own log may have used other words than sent.
                 o.status in ('sent', 'unknown', 'delivered', 'opened', 'clicked')
                   and not coalesce(o.details ? 'receipt', false) as accepted
        ) a
        where o.push_id = p.id
    ) l
    where p.id = p_push_id;
end
$$;
revoke all on function push_listener.receipt_facts from public;
