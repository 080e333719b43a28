-- Claims due rows under a lease and returns all that is needed to send them: high priority first, then by due time.
--
-- The first column tells whether the row holds what the claim has written. If not, a trigger of the application has
-- ignored or changed the claim, and the row must not be sent. Then come the time of the claim, the size of the table
-- (see connect.note_size), the transactions that the claim does not see because they run (in one row only, because they
-- may be many), and the row's lane and due time. The other columns are the fields of Push, in the same order. If
-- nothing was due, one row without an id tells the time and the size. A row that is too large to send is returned
-- without its texts, and oversized names the columns that are too large.
--
-- With is_strict, a row that does not hold what the claim has written undoes the whole statement: the cast of a text
-- that is no boolean fails. Then the rows are claimed in parts.
--
-- The devices of all users are read in one set, also where an application has replaced the view. Only the devices of a
-- push that was tried before are read for that push alone, because some of them may have it already.
--
-- due.sql, these.sql or forgotten.sql selects the rows that are claimed; see claiming.py.
with {due}, claimed as (
  update public.push_notifications p
    set status = 'processing',
        next_attempt_at = pg_catalog.now() + pg_catalog.make_interval(secs => %(lease)s),
        claimed_by = %(worker)s,
        -- In an adopted table the counters may be NULL.
        delivery_attempts = due.attempt,
        -- A row that is due and still processing has lost its worker, or its lease has ended.
        lost_claims = coalesce(p.lost_claims, 0) + (p.status::text = 'processing')::integer,
        -- When the push was first due, before any try; it stays until the push ends. In a row that was never tried the
        -- value comes from the insert, and does not count.
        push_first_due_at = coalesce(case when p.delivery_attempts > 0 then p.push_first_due_at end,
                                     greatest(due.due_at, p.created_at)),
        last_retry_at = case when p.retry_count > 0 then pg_catalog.now() else p.last_retry_at end,
        updated_at = pg_catalog.now()
    from due
    where p.id = due.id
    returning p.status::text = 'processing' and p.claimed_by = %(worker)s and p.delivery_attempts = due.attempt
        and p.next_attempt_at > pg_catalog.now() as is_written,
      p.id, p.delivery_attempts, coalesce(p.retry_count, 0) as retry_count, p.lost_claims,
      p.device_token, p.fid, p.topic, p.condition, p.user_id,
      p.title, p.body, p.data, p.channel, p.priority, p.image, p.options, p.collapse_key, p.expires_at,
      p.push_first_due_at,
      case when p.device_token is null and p.fid is null and p.topic is null and p.condition is null
           then p.user_id end as to_user,
      -- octet_length() of a text does not fetch the text. A jsonb must be fetched and converted, so this is done only
      -- where its stored size allows that the text is too long. For nearly every row, the first comparison is the last.
      case when greatest(
             pg_catalog.octet_length(p.device_token::text), pg_catalog.octet_length(p.fid::text),
             pg_catalog.octet_length(p.topic::text), pg_catalog.octet_length(p.condition::text),
             pg_catalog.octet_length(p.title::text), pg_catalog.octet_length(p.body::text),
             pg_catalog.octet_length(p.channel::text), pg_catalog.octet_length(p.priority::text),
             pg_catalog.octet_length(p.image::text), pg_catalog.octet_length(p.collapse_key::text)) > 32768
          or greatest(pg_catalog.pg_column_size(p.data), pg_catalog.pg_column_size(p.options)) > 1000
        then nullif(pg_catalog.concat_ws(', ',
          case when pg_catalog.octet_length(p.device_token::text) > 32768 then 'device_token' end,
          case when pg_catalog.octet_length(p.fid::text) > 32768 then 'fid' end,
          case when pg_catalog.octet_length(p.topic::text) > 32768 then 'topic' end,
          case when pg_catalog.octet_length(p.condition::text) > 32768 then 'condition' end,
          case when pg_catalog.octet_length(p.title::text) > 32768 then 'title' end,
          case when pg_catalog.octet_length(p.body::text) > 32768 then 'body' end,
          case when pg_catalog.octet_length(p.channel::text) > 32768 then 'channel' end,
          case when pg_catalog.octet_length(p.priority::text) > 32768 then 'priority' end,
          case when pg_catalog.octet_length(p.image::text) > 32768 then 'image' end,
          case when pg_catalog.octet_length(p.collapse_key::text) > 32768 then 'collapse_key' end,
          case when pg_catalog.octet_length(p.data::text) > 32768 then 'data' end,
          case when pg_catalog.octet_length(p.options::text) > 32768 then 'options' end), '')
        end as oversized
)
select case when c.is_written then true
            when due.id is null then false
            when %(is_strict)s then
              pg_catalog.concat('a trigger has ignored or changed the claim of the push ', due.id)::boolean
            else false end as is_written,
    extract(epoch from clock.now)::float8 as now,
    clock.size,
    case when due.id is not distinct from (select d.id from due d limit 1) then clock.snapshot end as snapshot,
    due.lane,
    extract(epoch from due.due_at)::float8 as due_at,
    due.id, c.delivery_attempts as attempt, c.retry_count, c.lost_claims,
    case when c.oversized is null then c.device_token end as device_token,
    case when c.oversized is null then c.fid end as fid,
    case when c.oversized is null then c.topic end as topic,
    case when c.oversized is null then c.condition end as condition,
    c.user_id,
    case when c.to_user is null then null
         when c.delivery_attempts = 1 then r.recipients
         -- A device that accepted this push in an earlier attempt, or that FCM reported dead, does not get it again.
         else (
           select pg_catalog.json_agg(pg_catalog.json_build_array(r.token, r.platform))::text
             from public.push_recipients r
             where r.user_id = c.user_id and r.token is not null and not exists (
               select from public.push_delivery_logs l
                 where l.push_id = c.id and l.device_token::text = r.token::text
                   and (l.status::text = 'sent' or l.details ->> 'outcome'::text = 'drop_target')))
         end as recipients,
    case when c.to_user is not null and c.delivery_attempts > 1 then (
      select pg_catalog.count(*)::integer
        from public.push_delivery_logs l
        where l.push_id = c.id and l.status::text = 'sent') else 0 end as accepted_before,
    case when c.oversized is null then c.title end as title,
    case when c.oversized is null then c.body end as body,
    case when c.oversized is null then c.data::text end as data,
    case when c.oversized is null then c.channel end as channel,
    case when c.oversized is null then c.priority end as priority,
    case when c.oversized is null then c.image end as image,
    case when c.oversized is null then c.options::text end as options,
    case when c.oversized is null then c.collapse_key end as collapse_key,
    nullif(extract(epoch from c.expires_at)::float8, 'infinity') as expires_at,
    nullif(extract(epoch from c.expires_at)::float8, 'infinity')
      - extract(epoch from pg_catalog.now())::float8 as expires_in,
    -- A time that is no date ('infinity') would make the metric infinite for ever.
    case when pg_catalog.isfinite(c.push_first_due_at)
         then extract(epoch from pg_catalog.now())::float8 - extract(epoch from c.push_first_due_at)::float8
         else 0 end as waited,
    c.oversized
  from (select pg_catalog.now() as now, pg_catalog.pg_current_snapshot()::text as snapshot,
               pg_catalog.pg_relation_size('public.push_notifications'::pg_catalog.regclass) as size) clock
  left join (
    -- Every row of "claimed" is in "due", and every user of "r" is in "claimed", so "full" adds no row. For any other
    -- join Postgres, which expects few rows, would compare every row with every other.
    due
    full join (
      claimed c
      full join (
        select r.user_id, pg_catalog.json_agg(pg_catalog.json_build_array(r.token, r.platform))::text as recipients
          from public.push_recipients r
          where r.token is not null and r.user_id = any(array(
            select n.to_user from claimed n where n.to_user is not null and n.delivery_attempts = 1))
          group by r.user_id
      ) r on r.user_id = c.to_user
    ) on c.id = due.id
  ) on true
  order by due.lane, due.due_at
