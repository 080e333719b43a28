-- revision 1
create or replace function public.unregister_device(p_token text) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_service boolean := push_listener.caller_is_service();
  v_user uuid := push_listener.caller_id();
begin
  if not v_service and v_user is null then
    raise exception using errcode = 'insufficient_privilege',
      message = 'a device can be unregistered by its signed-in user only';
  end if;
  if p_token is null or pg_catalog.length(p_token) not between 1 and 4096 then
    raise exception using errcode = 'invalid_parameter_value', message = 'p_token must be a registration token';
  end if;
  delete from public.push_devices d
    where d.token = p_token and (v_service or d.user_id = v_user);
  return found;
end
$$;
revoke all on function public.unregister_device(text) from public;
comment on function public.unregister_device(text) is
  'Deletes a device of the signed-in user, at logout. Returns false if that user has no such device.';
