-- migrate: loses select * from push_listener.losses('push_devices')
do $$
begin
  if not exists (select from push_listener.before where kind = 'function' and relation = 'push_disable_token') then
    drop function public.push_disable_token(text, text);
  end if;
  if not exists (select from push_listener.before where kind = 'view' and relation = 'push_recipients') then
    drop view public.push_recipients;
  end if;
  perform push_listener.give_back('push_devices', '{user_id,platform,created_at,updated_at,disabled_at,disabled_reason}');
end
$$;
