drop table if exists push_listener.served;
