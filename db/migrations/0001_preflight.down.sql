drop function push_listener.give_back(text, text[]);
drop function push_listener.losses(text);
drop function push_listener.tune(text, jsonb);
drop function push_listener.adopt(text, text[], text[], jsonb, jsonb, jsonb);
drop function push_listener.adopted(text);
drop table push_listener.before;
