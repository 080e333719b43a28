-- revision 1
-- Raises the error for a receipt that is not accepted. Users get the same error for a push that does not exist, for a
-- push of another user and for a push that was not sent to this device, so that they learn nothing about other users'
-- pushes.
create or replace function push_listener.refuse_receipt(p_push_id uuid, p_service boolean, p_tried boolean) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if not p_service then
    raise exception using errcode = 'insufficient_privilege', message = 'this is no push of yours to this device';
  elsif p_tried is false then
    raise exception using
      errcode = 'object_not_in_prerequisite_state',
      message = pg_catalog.format('push %s has not been sent to any device, so no device can have received it', p_push_id),
      hint = 'Report it when it has been sent.';
  end if;
  raise exception using errcode = 'PT404', message = pg_catalog.format('there is no push %s', p_push_id);
end
$$;
revoke all on function push_listener.refuse_receipt from public;
