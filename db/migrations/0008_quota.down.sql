drop table if exists push_listener.shared_quota;
