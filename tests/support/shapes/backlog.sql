-- 2,600 rows that nobody has sent for months, between as many that were, and a few of today.

create table public.push_notifications (
  id uuid primary key default gen_random_uuid(),
  user_id uuid,
  title text not null,
  body text not null,
  status text not null default 'pending' check (status in ('pending', 'sent', 'failed')),
  created_at timestamptz not null default now()
);
alter table public.push_notifications enable row level security;
insert into public.push_notifications (title, body, status, created_at)
  select case when n % 2 = 0 then 'untouched' when n > 5180 then 'sent' else 'expired' end,
         'number ' || n,
         case when n % 2 = 0 then 'sent' else 'pending' end,
         case when n > 5180 then now() - interval '1 hour' else now() - interval '100 days' end
    from generate_series(1, 5200) n;
