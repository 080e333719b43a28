-- revision 1
create or replace function public.get_push(p_push_id uuid) returns jsonb
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_service constant boolean := push_listener.caller_is_service();
  v_user constant uuid := case when not v_service then push_listener.caller_id() end;
  v_push jsonb;
begin
  if p_push_id is null then
    raise exception using errcode = 'invalid_parameter_value', message = 'p_push_id must not be null';
  end if;
  select pg_catalog.jsonb_build_object(
           'id', p.id, 'status', p.status, 'error_code', p.error_code, 'last_error', p.last_error,
           'created_at', p.created_at, 'sent_at', p.sent_at, 'delivered_at', p.delivered_at,
           'retry_count', coalesce(p.retry_count, 0), 'next_attempt_at', p.next_attempt_at, 'devices', d.devices)
    into v_push
    from public.push_notifications p
    cross join lateral (
      select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
                        'status', o.status, 'platform', o.platform, 'at', o.at, 'code', o.code) order by o.at, o.status), '[]')
               as devices
        from (
          -- Of each device the furthest that it has got: a receipt of the device before an answer of FCM.
          select distinct on (l.device_token) l.status, l.details ->> 'code' as code, v.platform,
                 coalesce(push_listener.to_time(l.details ->> 'at'), l.created_at) as at
            from public.push_delivery_logs l
            left join public.push_devices v on v.token = l.device_token
            where l.push_id = p.id and l.device_token is not null
            order by l.device_token,
                     case l.status when 'clicked' then 6 when 'opened' then 5 when 'delivered' then 4
                       when 'failed' then case when l.details ? 'receipt' then 3 else 0 end
                       when 'sent' then 2 else 1 end desc,
                     l.created_at desc
            limit 1000
        ) o
    ) d
    where p.id = p_push_id and (v_service or p.user_id = v_user);
  if v_push is not null then
    return v_push;
  end if;
  if not v_service then
    -- The same error for a push that does not exist and for a push of another user.
    raise exception using errcode = 'insufficient_privilege', message = 'this is no push of yours';
  end if;
  raise exception using errcode = 'PT404', message = pg_catalog.format('there is no push %s', p_push_id);
end
$$;
revoke all on function public.get_push(uuid) from public;
comment on function public.get_push(uuid) is
  'What has become of a push: {id, status, error_code, last_error, created_at, sent_at, delivered_at, retry_count, next_attempt_at, devices: [{status, platform, at, code}]}, without text and tokens. For its user and for services.';
