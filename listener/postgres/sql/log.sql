-- Writes log rows; in a repetition (is_retry) only those that are not there already.
insert into public.push_delivery_logs (push_id, device_token, status, details)
select l.push_id, l.token, l.status, l.details::jsonb
  from unnest(%(log_ids)b::uuid[], %(log_tokens)b::text[], %(log_statuses)b::text[], %(log_details)b::text[])
    as l(push_id, token, status, details)
  -- A log row of a push that has been deleted since would break the foreign key, and with it the whole batch. With the
  -- subselect Postgres looks up each push; with a join it might read all of them. "known" is a condition that makes the
  -- search needless: a settle has locked the rows that it has written.
  where ({known}(select p.id from public.push_notifications p where p.id = l.push_id) is not null)
    -- FCM's names for the messages distinguish two requests with the same attempt number: if Postgres has forgotten the
    -- first claim in a crash, another worker may have claimed the row for an attempt with the same number.
    --
    -- A hashed subplan reads the log rows of a push once, however many devices the push has. With "offset 0" it looks
    -- them up push by push; with "any", or a join, it might read the whole log.
    and (not %(is_retry)s
      or (l.push_id, coalesce(l.token, ''), coalesce(l.details::jsonb ->> 'attempt'::text, ''),
          coalesce(l.details::jsonb ->> 'message_id'::text, '')) not in (
        select w.push_id, o.token, o.attempt, o.message_id
          from (select distinct push_id from pg_catalog.unnest(%(log_ids)b::uuid[]) as i(push_id)) as w
          cross join lateral (
            select coalesce(o.device_token::text, '') as token,
                coalesce(o.details ->> 'attempt'::text, '') as attempt,
                coalesce(o.details ->> 'message_id'::text, '') as message_id
              from public.push_delivery_logs o
              where o.push_id = w.push_id
              offset 0) as o))
