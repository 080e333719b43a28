-- revision 1
-- Runs with the rights of the role that calls it: see enqueue_push.
create or replace function public.cancel_push(p_push_id uuid) returns boolean
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if public.push_is_service(current_user) is not true then
    raise exception using errcode = 'insufficient_privilege',
      message = pg_catalog.format('%s may not call this function: it is for the application''s server', current_user),
      hint = 'For a signed-in user, call it in a function of your own that checks the user and runs with its owner''s rights.';
  end if;
  if p_push_id is null then
    raise exception using errcode = 'invalid_parameter_value', message = 'p_push_id must not be null';
  end if;
  update public.push_notifications p
    set status = 'cancelled', next_attempt_at = null, updated_at = now()
    where p.id = p_push_id and p.status in ('pending', 'failed');
  return found;
end
$$;
revoke all on function public.cancel_push(uuid) from public;
comment on function public.cancel_push(uuid) is
  'Cancels a push that waits in the queue. Returns false if it does not wait; a push that is being sent is not cancelled.';
