-- Who has held rows: each start of a listener is one worker, and its id is what claimed_by means.

create table push_listener.workers (
  id integer generated always as identity primary key,
  name text not null,
  started_at timestamptz not null default now(),
  stopped_at timestamptz
);
