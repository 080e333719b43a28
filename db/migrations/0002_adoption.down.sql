drop function push_listener.restore_table(text);
drop function push_listener.restore_checks(text, boolean);
drop function push_listener.restore_not_null(text, boolean);
drop function push_listener.losses(text);
drop function push_listener.set_storage_defaults(text, jsonb);
drop function push_listener.adopt(text, text[], text[], jsonb, jsonb, jsonb);
drop function push_listener.adopted(text);
drop table push_listener.adoption_record;
