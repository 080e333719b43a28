drop function push_listener.columns(text);
