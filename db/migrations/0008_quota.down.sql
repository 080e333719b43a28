drop table push_listener.shared_quota;
