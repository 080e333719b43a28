-- Campaigns that start at a given time, with pg_cron: each user who subscribes by then gets the push.
--
-- A push to people who are known now needs no cron: insert it with next_attempt_at in the future. Cron is for what
-- repeats, and for an audience that is chosen only when the time has come.
-- Run it as the owner of the tables (on Supabase: postgres), where the extension pg_cron is enabled.

create table public.subscribers (
  user_id uuid primary key,
  since timestamptz not null default now()
);

create table public.campaigns (
  id bigint generated always as identity primary key,
  title text not null,
  body text,
  launch_at timestamptz not null,
  launched_at timestamptz
);
create index on public.campaigns (launch_at) where launched_at is null;

-- For the owner alone. Row-level security without a policy shows nothing to users.
alter table public.subscribers enable row level security;
alter table public.campaigns enable row level security;

-- Marks campaigns as launched and enqueues their pushes in one statement: both happen, or neither. Of two runs at once
-- the second waits for the first and then finds nothing to do. Returns how many pushes it has enqueued.
create function public.launch_campaigns() returns bigint
  language sql set search_path = pg_catalog, pg_temp
as $$
  with due as (
    update public.campaigns set launched_at = now()
      where launched_at is null and launch_at <= now()
      returning id, title, body
  ), enqueued as (
    insert into public.push_notifications (user_id, title, body, data, channel, expires_at, idempotency_key)
      select s.user_id, d.title, d.body, jsonb_build_object('campaign', d.id::text), 'campaigns',
             now() + interval '1 day', 'campaign-' || d.id || '-' || s.user_id
        from due d cross join public.subscribers s
      on conflict (idempotency_key) where idempotency_key is not null do nothing
      returning 1
  )
  select count(*) from enqueued
$$;
revoke execute on function public.launch_campaigns() from public, anon, authenticated;

-- Each minute. A run that finds nothing costs a look at the small index above. cron.job_run_details keeps a row for
-- each run: delete old ones now and then.
select cron.schedule('launch-campaigns', '* * * * *', 'select public.launch_campaigns()');
