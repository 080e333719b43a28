drop function if exists push_listener.is_alive(integer);
drop view if exists push_listener.lock_holders;
drop table if exists push_listener.workers;
