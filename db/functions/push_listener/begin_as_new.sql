-- revision 1
create or replace function push_listener.begin_as_new() returns trigger
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  new.status := 'pending';
  new.next_attempt_at := pg_catalog.now();
  new.retry_count := 0;
  new.last_retry_at := null;
  new.delivery_attempts := 0;
  new.last_error := null;
  new.error_code := null;
  new.fcm_message_id := null;
  new.claimed_by := null;
  new.lost_claims := 0;
  new.push_first_due_at := null;
  new.sent_at := null;
  new.delivered_at := null;
  return new;
end
$$;
revoke all on function push_listener.begin_as_new from public;
comment on function push_listener.begin_as_new is
  'Gives each row that a user inserts the state of a new push, whatever state the insert names.';
