drop function if exists push_listener.columns(text);
