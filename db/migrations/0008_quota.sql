-- How much of FCM's quota all workers together may use: "fraction" of it at "reduced_at", growing evenly from there
-- to the whole quota a minute later. A worker that gets a 429 from FCM reduces it, and the others read it while they
-- send. See docs/quota.md.

create table push_listener.shared_quota (
  only_one boolean primary key default true check (only_one),
  fraction double precision not null default 1 check (fraction > 0 and fraction <= 1),
  reduced_at timestamptz not null default now() check (isfinite(reduced_at))
);
comment on column push_listener.shared_quota.reduced_at is
  'By the clock of the database. Nothing is written when the quota has recovered.';

insert into push_listener.shared_quota default values;
