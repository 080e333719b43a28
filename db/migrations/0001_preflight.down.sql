drop table push_listener.before;
