-- migrate: loses select * from push_listener.losses('telemetry_logs')
drop table push_listener.telemetry_use;
do $$
begin
  perform push_listener.give_back('telemetry_logs', '{type,message,meta,timestamp,user_id,batch_id,processed_at,created_at}');
end
$$;
