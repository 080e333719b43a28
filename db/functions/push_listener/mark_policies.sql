-- revision 1
-- drift() compares each policy and the trigger with the comment on it. This writes the comments of those just
-- created.
create or replace function push_listener.mark_policies() returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  found record;
begin
  for found in
    select p.relation, p.name, push_listener.policy_mark(p.relation, p.name, p.condition) as mark
      from push_listener.policies() p
      join pg_catalog.pg_policy own on own.polrelid = p.relation and own.polname = p.name
      where pg_catalog.obj_description(own.oid, 'pg_policy') is null
  loop
    execute pg_catalog.format('comment on policy %I on %s is %L', found.name, found.relation, found.mark);
  end loop;
  for found in
    select from pg_catalog.pg_trigger g
      where g.tgname = 'push_listener_begin_as_new' and g.tgrelid = pg_catalog.to_regclass('public.push_notifications')
        and pg_catalog.obj_description(g.oid, 'pg_trigger') is null
  loop
    execute pg_catalog.format('comment on trigger push_listener_begin_as_new on public.push_notifications is %L',
                              push_listener.user_inserts());
  end loop;
end
$$;
revoke all on function push_listener.mark_policies from public;
