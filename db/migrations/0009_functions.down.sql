drop function push_listener.allow(regprocedure, text[]);
