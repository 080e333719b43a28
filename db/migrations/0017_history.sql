-- migrate: concurrently
-- Counts what had ended before the triggers of the step "statistics" existed.

-- One statement sees the rows and the counts of the same moment, whatever changes meanwhile, and adds what is
-- missing. It does so once ('counted'): later, a count without a row means that the row has been purged.
with first as (
  insert into push_listener.adoption_record (kind, relation) values ('counted', 'push_notifications')
    on conflict do nothing
    returning kind
)
insert into push_listener.daily_counts (day, error_code, sent, delivered, dead, expired, cancelled, opened, clicked,
                                        retries, accepted_timed, accepted_seconds, delivered_timed, delivered_seconds)
select day, error_code, sum(sent), sum(delivered), sum(dead), sum(expired), sum(cancelled), sum(opened), sum(clicked),
       sum(retries), sum(accepted_timed), sum(accepted_seconds), sum(delivered_timed), sum(delivered_seconds)
  from (
    select day, error_code, sent, delivered, dead, expired, cancelled, 0 as opened, 0 as clicked, retries,
           accepted_timed, accepted_seconds, delivered_timed, delivered_seconds
      from push_listener.ended
    union all
    select coalesce((created_at at time zone 'UTC')::date, '-infinity'), '', 0, 0, 0, 0, 0,
           (status = 'opened')::integer, (status = 'clicked')::integer, 0, 0, 0, 0, 0
      from public.push_delivery_logs
      where status in ('opened', 'clicked')
    union all
    select day, error_code, -sent, -delivered, -dead, -expired, -cancelled, -opened, -clicked, -retries,
           -accepted_timed, -accepted_seconds, -delivered_timed, -delivered_seconds
      from push_listener.daily_counts
  ) one
  where exists (select from first)
  group by day, error_code
  having (sum(sent), sum(delivered), sum(dead), sum(expired), sum(cancelled), sum(opened), sum(clicked), sum(retries),
          sum(accepted_timed), sum(accepted_seconds), sum(delivered_timed), sum(delivered_seconds))
         <> (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
