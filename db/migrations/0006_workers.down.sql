drop table push_listener.workers;
