drop function push_listener.is_alive(integer);
drop view push_listener.lock_holders;
drop table push_listener.workers;
