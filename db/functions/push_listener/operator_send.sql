-- revision 2
-- The record names the push and not its token: a role that reads the record learns no token.
create or replace function push_listener.operator_send(
  p_device_token text,
  p_user_id uuid,
  p_title text,
  p_body text,
  p_who text
) returns uuid
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_id uuid;
  -- The form of a Firebase installation id; a registration token is longer.
  v_is_fid boolean := p_device_token ~ '^[cdef][A-Za-z0-9_-]{21}$';
begin
  perform push_listener.check_action(p_who, null, null, '{}');
  v_id := public.enqueue_push(p_user_id => p_user_id,
                              p_device_token => case when v_is_fid then null else p_device_token end,
                              p_fid => case when v_is_fid then p_device_token end,
                              p_title => p_title, p_body => p_body, p_priority => 'high');
  insert into push_listener.actions (who, what, affected, ids) values (p_who, 'send', 1, array[v_id]);
  return v_id;
end
$$;
revoke all on function push_listener.operator_send from public;
comment on function push_listener.operator_send is
  'Puts a push of priority high in the queue, to one device (its registration token or installation id) or to the devices of a user, as enqueue_push does, and records it. Returns its id.';
