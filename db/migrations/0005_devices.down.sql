-- migrate: loses select * from push_listener.losses('push_devices')
do $$
begin
  if not exists (select from push_listener.adoption_record where kind = 'function' and relation = 'push_disable_token') then
    drop function if exists public.push_disable_token(text, text);
  end if;
  if not exists (select from push_listener.adoption_record where kind = 'view' and relation = 'push_recipients') then
    drop view if exists public.push_recipients;
  end if;
  perform push_listener.restore_table('push_devices');
end
$$;
