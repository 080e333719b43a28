-- No row is due long before it is written: claims begin where everything is claimed, and need not step over the entries
-- that a transaction with an old snapshot keeps in the index of due rows; see listener/postgres/frontier.py.

\ir ../functions/push_listener/never_early.sql

-- Its name puts it behind the other triggers that run before an insert. Half a second is what most transactions take to
-- get from their beginning to an insert: the function is not called for these. A row that does not wait keeps its time.
create trigger push_listener_never_early
  before insert on public.push_notifications
  for each row
  when (new.next_attempt_at < pg_catalog.clock_timestamp() - '0.5 s'::interval
        and new.status in ('pending', 'processing', 'failed'))
  execute function push_listener.never_early();

-- For a claim and a settle the condition is false at once. A rescue puts the rows of a dead worker at the front of the
-- queue, and counts a lost claim.
create trigger push_listener_never_early_again
  after update of status, next_attempt_at, priority on public.push_notifications
  for each row
  when (new.next_attempt_at < pg_catalog.clock_timestamp() - '0.5 s'::interval
        and new.status in ('pending', 'failed')
        and (new.next_attempt_at is distinct from old.next_attempt_at or new.status is distinct from old.status
             or new.priority is distinct from old.priority)
        and new.lost_claims is not distinct from old.lost_claims)
  execute function push_listener.never_early();

-- What a long statement inserts is due row by row, so it does not come to the trigger either.
do $$
begin
  -- A default that the application has given is left alone, and so is a table that it has made anew.
  if not push_listener.adopted('push_notifications') and exists (
    select from pg_attrdef d
      join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
      where d.adrelid = to_regclass('public.push_notifications') and a.attname = 'next_attempt_at'
        and pg_get_expr(d.adbin, d.adrelid) = 'now()'
  ) then
    alter table public.push_notifications alter column next_attempt_at set default clock_timestamp();
  end if;
end
$$;
