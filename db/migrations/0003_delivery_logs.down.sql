-- migrate: loses select * from push_listener.losses('push_delivery_logs')
do $$
begin
  perform push_listener.give_back('push_delivery_logs', '{push_id,device_token,status,details,created_at}');
end
$$;
