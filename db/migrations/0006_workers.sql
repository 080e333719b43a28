-- Who has held rows: each start of a listener is one worker, and its id is what claimed_by means. A worker holds a
-- session advisory lock, (1886745448, its id), for as long as its doorbell connection stands: when that goes, the lock
-- goes, and its peers take its rows back at once.

create table push_listener.workers (
  id integer generated always as identity primary key,
  name text not null,
  started_at timestamptz not null default now(),
  stopped_at timestamptz,
  guarded boolean not null default false,
  lost boolean not null default false
);
comment on column push_listener.workers.guarded is
  'It holds (or held) its liveness lock, so that the lock''s absence means something.';
comment on column push_listener.workers.lost is
  'It ended without a word, and its peers took its rows.';

-- Few workers live; many have lived.
create index workers_standing on push_listener.workers (id) where stopped_at is null;
