-- migrate: loses select * from push_listener.losses('telemetry_logs')
drop table if exists push_listener.telemetry_use;
do $$
begin
  perform push_listener.restore_table('telemetry_logs');
end
$$;
