drop table push_listener.rate;
