drop table push_listener.served;
