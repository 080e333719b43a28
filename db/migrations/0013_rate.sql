-- How much of FCM's quota the workers may use, all together: "part" of it at "lowered_at", and from there evenly more, until
-- a minute later it is the whole of it again. A worker that FCM has answered with 429 lowers it, the others read it
-- while they send. See docs/quota.md.

create table push_listener.rate (
  only_one boolean primary key default true check (only_one),
  part double precision not null default 1 check (part > 0 and part <= 1),
  lowered_at timestamptz not null default now() check (isfinite(lowered_at))
);
comment on column push_listener.rate.lowered_at is
  'By the clock of the database. Nothing is written when the rate has come back.';

insert into push_listener.rate default values;

select push_listener.secure();
