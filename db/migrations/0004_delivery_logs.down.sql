-- migrate: loses select * from push_listener.losses('push_delivery_logs')
do $$
begin
  perform push_listener.restore_table('push_delivery_logs');
end
$$;
